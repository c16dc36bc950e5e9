"""report.html: one page, readable from disk without a network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stml_semi.config import Mark, TrainConfig, fields_that, flag
from stml_semi.data.run_tables import Tables
from stml_semi.data.workers import resolve_num_workers
from stml_semi.metrics import score_title
from stml_semi.report.charts import candidate_charts, chart_keys, letter, score_charts, training_charts
from stml_semi.report.headline import headlines, percent
from stml_semi.report.pictures import Pictures
from stml_semi.report.retrieval.sample import frozen_backbone
from stml_semi.report.retrieval.view import MOST_CLASSES, Model, RetrievalView, view_retrieval
from stml_semi.report.unlabeled.affinities import affinity_charts
from stml_semi.report.unlabeled.pool_sample import DUPLICATE
from stml_semi.report.unlabeled.pool_view import PoolView, view_pool
from stml_semi.run_folder.folder import RunFolder
from stml_semi.run_folder.log import exported
from stml_semi.run_folder.verdict import Verdict, difference, verdict
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.files import write_text
from stml_semi.runtime.templates import render
from stml_semi.sharing.load import load

_MOST_BAD = 30


class ReportedRun(NamedTuple):
    """A run to report on."""

    folder: RunFolder
    config: TrainConfig
    tables: Tables | None
    """None if its images cannot be opened (any more)."""
    problem: str = ""
    """Why there are no tables."""


class Setting(NamedTuple):
    """A field of the configuration, in all runs of the page."""

    flag: str
    values: list[str]
    differs: bool
    is_default: bool


class Comparison(NamedTuple):
    """A run beside the first one, on the same images."""

    first: str
    """Its letter."""
    other: str
    verdict: Verdict
    name: str
    """Of the images."""
    num_pictures: int
    complete: bool
    """Whether these are all images of that name."""


class RunView(NamedTuple):
    """What the page shows of one run beside scores and curves."""

    letter: str
    name: str
    path: str
    step: int
    max_steps: int
    claim: str
    facts: list[tuple[str, str]]
    """What it learned from, and when: name and text."""
    verdict: Verdict | None
    sessions: list[dict[str, Any]]
    duration: str
    energy: str
    """Empty where it is not known."""
    pool: PoolView | None
    num_bad: int
    bad: list[dict[str, str]]


def write_page(runs: Sequence[ReportedRun], target: Path, *, device: torch.device | str = "cpu") -> Path:
    """Writes the page of one run, or of several side by side.

    Args:
        runs: one or more.
        target: the file.
        device: where the models embed.

    Raises:
        BadInput: models and images that do not go together.
        OSError: the file cannot be written.
    """
    pictures, notes = Pictures(), [run.problem for run in runs if run.problem]
    retrieval = _retrieval_views(runs, pictures, notes, device)
    lines = [run.folder.log.lines() for run in runs]
    views = [_view(place, run, pictures, notes, len(runs), device) for place, run in enumerate(runs)]
    charts = score_charts(lines) + candidate_charts(lines) + training_charts(lines) + affinity_charts(lines)
    compared = _comparisons(retrieval)
    if len({c.other for c in compared}) < len(runs) - 1:
        notes.append("Runs that were not evaluated on the same images, or have no model, are not compared.")
    text = render(
        "report/page.html",
        {
            "title": ", ".join(view.name for view in views),
            "kind": "report",
            "runs": views,
            "many": len(runs) > 1,
            "notes": notes,
            "headlines": headlines(lines, retrieval),
            "compared": compared,
            "charts": charts,
            "keys": chart_keys(charts, [view.letter for view in views]),
            "retrieval": retrieval,
            "settings": _settings([run.config for run in runs]),
            "pictures": pictures.uris,
            "letter": letter,
            "duplicate": DUPLICATE,
            "most_classes": MOST_CLASSES,
        },
        filters={"score_title": score_title, "percent": percent},
    )
    write_text(target, text)
    return target


# ------------------------------------------------------------------ retrieval


def _retrieval_views(
    runs: Sequence[ReportedRun], pictures: Pictures, notes: list[str], device: torch.device | str
) -> list[RetrievalView]:
    """A view of every table that runs were evaluated on, with the models of all these runs."""
    by_table: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        if run.tables is not None and run.tables.evaluation is not None:
            by_table.setdefault(run.tables.evaluation.name, []).append(place)
    retrieval = []
    for number, places in enumerate(by_table.values()):
        tables = runs[places[0]].tables
        assert tables is not None
        assert tables.evaluation is not None
        models = _models([(place, runs[place]) for place in places], notes, device, many=len(runs) > 1)
        if models:
            workers = resolve_num_workers(None)
            retrieval.append(
                view_retrieval(tables.evaluation, models, pictures, anchor=f"data-{number}", num_workers=workers)
            )
    return retrieval


def _models(
    runs: Sequence[tuple[int, ReportedRun]], notes: list[str], device: torch.device | str, *, many: bool
) -> list[Model]:
    """Frozen backbones, each once, then the trained models."""
    starts: dict[tuple[object, ...], int] = {}
    frozen: list[Model] = []
    trained: list[Model] = []
    for place, run in runs:
        key = (run.config.backbone, run.config.pooling, run.config.image_size, run.config.fit)
        if key not in starts:
            starts[key] = len(frozen)
            name = f"frozen {run.config.backbone}" if many else "frozen backbone"
            frozen.append(Model(name, frozen_backbone(run.config, device), None))
        if run.folder.model.is_dir():
            choice = exported(run.folder.log.lines())
            kind = "trained" if choice is None or choice.model != "frozen" else "exported frozen backbone"
            name = f"{kind}: run {letter(place)}" if many else kind
            trained.append(Model(name, load(run.folder.model, device=device), place, starts[key]))
        else:
            notes.append(f"{run.folder.path} has no model yet: it has not finished, so its neighbors are not shown.")
    return frozen + trained


def _comparisons(retrieval: Sequence[RetrievalView]) -> list[Comparison]:
    """Every run beside the first one that was evaluated on the same images."""
    found = []
    for view in retrieval:
        letters = [letter(model.run) for model in view.models if model.run is not None]
        for model in view.models:
            if model.run is not None and model.versus is not None:
                said = difference(model.versus, f"run {letters[0]}")
                text = f"Run {letter(model.run)}: {said.text[:1].lower()}{said.text[1:]}"
                shown = said._replace(text=text)
                found.append(
                    Comparison(letters[0], letter(model.run), shown, view.name, view.num_pictures, view.complete)
                )
    return found


# ------------------------------------------------------------------ one run


def _view(
    place: int,
    run: ReportedRun,
    pictures: Pictures,
    notes: list[str],
    total: int,
    device: torch.device | str,
) -> RunView:
    pool = None
    unlabeled, labeled = (None, None) if run.tables is None else (run.tables.unlabeled, run.tables.labeled)
    if unlabeled is not None:
        try:
            pool = view_pool(
                run.config,
                run.folder.checkpoints,
                unlabeled,
                labeled,
                pictures,
                device=device,
                num_workers=resolve_num_workers(None),
            )
        except BadInput as error:
            notes.append(f"{run.folder.path}: the unlabeled images are not shown: {error}.")
    bad = run.folder.log.bad_lines()
    sessions = run.folder.sessions()
    seconds = [session["seconds"] for session in sessions if session["seconds"] is not None]
    return RunView(
        letter=letter(place) if total > 1 else "",
        name=run.folder.path.resolve().name,
        path=str(run.folder.path),
        step=max((line["step"] for line in run.folder.log.lines()), default=0),
        max_steps=run.config.max_steps,
        claim=run.folder.claim,
        facts=_facts(run.config, sessions),
        verdict=verdict(run.folder.log.lines(), run.folder.claim),
        sessions=sessions,
        duration=_duration(sum(seconds)) if seconds else "not known",
        energy=_energy(sessions),
        pool=pool,
        num_bad=len(bad),
        bad=bad[:_MOST_BAD],
    )


def _facts(config: TrainConfig, sessions: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    known = {
        "Labeled": config.labeled,
        "Unlabeled": config.unlabeled,
        "Backbone": config.backbone_weights or config.backbone,
        "Date": sessions[-1]["started"].split()[0] if sessions else None,
    }
    return [(name, text) for name, text in known.items() if text]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _energy(sessions: Sequence[dict[str, Any]]) -> str:
    """Of all sessions together; what a session that was killed used is not known, so neither is the sum."""
    known = [session["gpu_joules"] for session in sessions if session.get("gpu_joules") is not None]
    return f"{sum(known) / 3.6e6:.3g} kWh" if known and len(known) == len(sessions) else ""


def _settings(configs: Sequence[TrainConfig]) -> list[Setting]:
    settings = []
    for name, field in TrainConfig.model_fields.items():
        if name in fields_that(Mark.START):
            continue
        values = [getattr(config, name) for config in configs]
        shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
        differs = len(set(shown)) > 1
        settings.append(Setting(flag(name), shown, differs, all(value == field.default for value in values)))
    return settings
