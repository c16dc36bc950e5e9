"""The result table of the page: what the runs logged, with intervals where the same pictures were looked at again."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from stml_semi.metrics import Interval
from stml_semi.report.retrieval.view import Assessed, RetrievalView
from stml_semi.run_folder.log import exported_step, is_validation, score_keys

# Precision may differ a little from the run's (bf16 there, float32 here); more than this is another model.
_SAME = 0.005
_MODELS = {"frozen": "frozen backbone", "student": "trained", "teacher": "trained (teacher)"}


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


class Headline(NamedTuple):
    """Scores on one table of evaluation pictures."""

    name: str
    num_queries: int
    num_gallery: int
    """Pictures that are searched; the queries themselves, unless the table keeps them apart."""
    columns: list[str]
    rows: list[Row]
    has_intervals: bool
    runs: list[int]
    """Which runs were scored on them."""
    chose: bool
    """Whether they chose the exported step: then they are not what a run is tested on."""


def headlines(runs: Sequence[Sequence[dict[str, Any]]], retrieval: Sequence[RetrievalView]) -> list[Headline]:
    """A table for every set of evaluation pictures.

    Args:
        runs: lines of metrics.jsonl, run by run.
        retrieval: of the runs' models; only those that looked at all pictures lend their intervals.
    """
    steps = [exported_step(lines) or 0 for lines in runs]
    evaluations = [
        [line for line in lines if line.get("model") in _MODELS and line["step"] <= step]
        for lines, step in zip(runs, steps, strict=True)
    ]
    lines = sorted(itertools.chain(*evaluations), key=is_validation)  # What is tested on comes first.
    names = list(dict.fromkeys(line["data"] for line in lines))
    return [_headline(name, evaluations, next((g for g in retrieval if g.name == name), None)) for name in names]


def percent(interval: Interval) -> Cell:
    """An interval of a share as a cell."""
    low, high = (_minus(f"{100 * end:.1f}") for end in (interval.low, interval.high))
    return Cell(_minus(f"{100 * interval.mean:.1f}"), f"{low} to {high}")


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def _headline(name: str, evaluations: Sequence[Sequence[dict[str, Any]]], view: RetrievalView | None) -> Headline:
    last = [{line["model"]: line for line in lines if line["data"] == name} for lines in evaluations]
    first = next(line for models in last for line in models.values())
    columns = score_keys(first)
    best = {key: max(line.get(key, 0.0) for models in last for line in models.values()) for key in columns}
    rows = [
        _row(place, model, models, columns, best, _assessed(view, place, model))
        for place, models in enumerate(last)
        for model in _MODELS
        if model in models
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


def _row(
    place: int,
    model: str,
    models: dict[str, dict[str, Any]],
    columns: list[str],
    best: dict[str, float],
    assessed: Assessed | None,
) -> Row:
    line, frozen = models[model], models.get("frozen")
    cells, gain = [], []
    for key in columns:
        value = line.get(key, float("nan"))
        own = assessed.scores.get(key) if assessed else None
        known = own is not None and abs(own.mean - value) < _SAME
        cells.append(Cell(f"{100 * value:.1f}", percent(own).interval if own and known else "", value == best[key]))
        if model != "frozen" and frozen is not None:
            more = assessed.gain.get(key) if assessed and assessed.gain and known else None
            gain.append(Cell(_minus(f"{100 * (value - frozen[key]):+.1f}"), percent(more).interval if more else ""))
    return Row(place, _MODELS[model], line["step"], cells, gain)


def _assessed(view: RetrievalView | None, place: int, model: str) -> Assessed | None:
    """What is known of a model; the teacher is not exported, so it knows nothing of that."""
    if view is None or not view.complete:
        return None
    if model == "student":
        return next((known for known in view.models if known.run == place), None)
    if model == "frozen":
        return next((known for known in view.models if known.run is None), None)
    return None
