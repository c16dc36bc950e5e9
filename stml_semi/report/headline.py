"""The result table of the page: what the runs logged, with intervals where the same images were looked at again."""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from stml_semi.metrics import Interval
from stml_semi.report.retrieval.view import Assessed, RetrievalView
from stml_semi.run_folder.log import (
    Choice,
    candidate_name,
    candidate_rows,
    exported,
    is_validation,
    result_name,
    score_keys,
)

# Precision may differ a little from the run's (bf16 there, float32 here); more than this is another model.
_SAME = 0.005
_ORDER = ("frozen", "interpolated", "student", "teacher")


class Cell(NamedTuple):
    """A score in percent, as text."""

    value: str
    interval: str = ""
    best: bool = False


class Row(NamedTuple):
    """A model's scores."""

    run: int
    name: str
    step: int
    cells: list[Cell]
    gain: list[Cell]
    """Over the frozen backbone; empty for that itself."""
    versus: list[Cell]
    """Over the first run's model, where both scored the same images; else empty."""
    exported: bool
    note: str = ""
    """How a candidate compares with the student."""
    truncated: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    """Number of leading dimensions -> their scores alone, 0..1."""


class Headline(NamedTuple):
    """Scores on one table of evaluation images."""

    name: str
    num_queries: int
    num_gallery: int
    """Images that are searched; the queries themselves, unless the table keeps them apart."""
    columns: list[str]
    rows: list[Row]
    has_intervals: bool
    runs: list[int]
    """Which runs were scored on them."""
    chose: bool
    """Whether they chose the exported model: then they are not what a run is tested on."""

    @property
    def compared(self) -> bool:
        """Whether the student was compared with other candidates."""
        return any(row.note for row in self.rows)


def headlines(runs: Sequence[Sequence[dict[str, Any]]], retrieval: Sequence[RetrievalView]) -> list[Headline]:
    """A table for every set of evaluation images.

    Args:
        runs: lines of metrics.jsonl, run by run.
        retrieval: of the runs' models; only those that looked at all images lend their intervals.
    """
    choices = [exported(lines) or Choice("student", 0) for lines in runs]
    shown = [_shown(lines, choice) for lines, choice in zip(runs, choices, strict=True)]
    lines = sorted(itertools.chain(*shown), key=is_validation)  # What is tested on comes first.
    names = list(dict.fromkeys(line["data"] for line in lines))
    return [_headline(name, shown, choices, next((g for g in retrieval if g.name == name), None)) for name in names]


def _shown(lines: Sequence[dict[str, Any]], choice: Choice) -> list[dict[str, Any]]:
    """The lines of a run that its tables show: candidates take the place of what validation scored before."""
    candidates = candidate_rows(lines)
    evaluated = [line for line in lines if "model" in line and line["step"] <= choice.step]
    return [line for line in evaluated if not (candidates and is_validation(line))] + candidates


def percent(interval: Interval) -> Cell:
    """An interval of a share as a cell."""
    low, high = (_minus(f"{100 * end:.1f}") for end in (interval.low, interval.high))
    return Cell(_minus(f"{100 * interval.mean:.1f}"), f"{low} to {high}")


def _signed(interval: Interval) -> Cell:
    return percent(interval)._replace(value=_minus(f"{100 * interval.mean:+.1f}"))


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def _headline(
    name: str, shown: Sequence[Sequence[dict[str, Any]]], choices: Sequence[Choice], view: RetrievalView | None
) -> Headline:
    by_run = [_newest([line for line in lines if line["data"] == name]) for lines in shown]
    first = next(line for lines in by_run for line in lines)
    columns = score_keys(first)
    best = {key: max(line.get(key, 0.0) for lines in by_run for line in lines) for key in columns}
    rows = [
        _row(place, line, lines, columns, best, choices[place], view)
        for place, lines in enumerate(by_run)
        for line in lines
    ]
    return Headline(
        name,
        first["num_queries"],
        first.get("num_gallery", first["num_queries"]),
        columns,
        rows,
        any(c.interval for row in rows for c in row.cells),
        sorted({row.run for row in rows}),
        is_validation(first),
    )


def _newest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each model, in the order of the table; candidates as they are."""
    if any("candidate" in line for line in lines):
        return list(lines)
    last = {line["model"]: line for line in lines}
    return [last[model] for model in _ORDER if model in last]


def _row(
    place: int,
    line: dict[str, Any],
    lines: Sequence[dict[str, Any]],
    columns: list[str],
    best: dict[str, float],
    choice: Choice,
    view: RetrievalView | None,
) -> Row:
    model = line["candidate"] if "candidate" in line else line["model"]
    is_exported = line["exported"] if "candidate" in line else model == choice.model
    assessed = _assessed(view, place, model, is_exported)
    frozen = next((other for other in lines if "frozen" in (other.get("model"), other.get("candidate"))), None)
    cells, gain = [], []
    for key in columns:
        value = line.get(key, float("nan"))
        own = assessed.scores.get(key) if assessed else None
        known = own is not None and abs(own.mean - value) < _SAME
        cells.append(Cell(f"{100 * value:.1f}", percent(own).interval if own and known else "", value == best[key]))
        if model != "frozen" and frozen is not None:
            more = assessed.gain.get(key) if assessed and assessed.gain and known else None
            gain.append(Cell(_minus(f"{100 * (value - frozen[key]):+.1f}"), percent(more).interval if more else ""))
    name = candidate_name(line) if "candidate" in line else result_name(line)
    found = assessed.versus if assessed and assessed.versus and is_exported else {}
    versus = [_signed(found[key]) for key in columns if key in found]
    step, truncated = line.get("weights_step", line["step"]), line.get("truncated", {})
    return Row(place, name, step, cells, gain, versus, is_exported, _compared(line), truncated)


def _compared(line: dict[str, Any]) -> str:
    if line.get("candidate", "student") == "student":
        return ""
    mean, low, high = (_minus(f"{100 * value:+.1f}") for value in line["gain"])
    return f"MAP@R {mean} vs. student, {low} to {high}"


def _assessed(view: RetrievalView | None, place: int, model: str, is_exported: bool) -> Assessed | None:
    """What is known of a model; of those of a run that are not exported, nothing is."""
    if view is None or not view.complete:
        return None
    if model == "frozen":
        return next((known for known in view.models if known.run is None), None)
    return next((known for known in view.models if known.run == place), None) if is_exported else None
