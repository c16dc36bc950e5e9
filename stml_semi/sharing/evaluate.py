"""`evaluate`: any model on any labeled images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stml_semi.config import Fit
from stml_semi.data.class_split import with_gallery
from stml_semi.data.image_table import ImageTable
from stml_semi.data.run_tables import open_labeled
from stml_semi.data.sources.objects import Source, as_spec
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.workers import resolve_num_workers
from stml_semi.metrics import (
    ClassScores,
    Threshold,
    bootstrap,
    class_scores,
    false_non_match_rate,
    precision_thresholds,
    score_names,
    score_values,
    summarize,
)
from stml_semi.models.evaluation import (
    EmbeddedTable,
    count_left_out,
    count_pairs,
    embed_table,
    score_open_set,
    score_queries,
    score_truncated,
)
from stml_semi.run_folder.folder import RunFolder
from stml_semi.run_folder.log import exported_step
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.failures import writing
from stml_semi.runtime.progress import Counter
from stml_semi.sharing.load import load, model_folder
from stml_semi.sharing.thresholds import Thresholds, as_lists, write_thresholds

_MATCH_RATES = (0.1, 0.01, 0.001, 0.0001)
"""False match rates that are reported..."""
_FEW = 10
"""...if so many false matches make them up."""


def evaluate_model(
    model: str | Path,
    data: Source,
    *,
    gallery: Source = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | None = None,
    fit: Fit = "auto",
    batch_size: int = 256,
    num_workers: int | None = None,
    recall_at: str | None = None,
    bf16: bool = False,
    confidence: float | None = None,
    per_class: bool = False,
    open_set: bool = False,
    save_thresholds: bool = False,
    truncate_dims: str | None = None,
    data_root: str | None = None,
) -> dict[str, Any]:
    """Retrieval metrics of a model: a line like those of metrics.jsonl; `step` is None unless the model is a run.

    Images that cannot be read are listed as `unreadable`, with reasons; classes of queries that find no image of their
    class in the gallery as `unmatched_classes`, name -> number of queries. `num_trained_classes` counts those with
    the name of a class that the model was trained on, where it is that of a run whose labeled images are still there.

    Args:
        model: what `load` opens.
        data: labeled images, named or as `stml_semi.train` takes them: each is looked up in all others, unless there is
            a gallery.
        gallery: labeled images that those of `data` are looked up in; classes are the same where their names are.
        image_column: of both.
        label_column: of both.
        image_size: of a bare backbone, side of its input in pixels; default: its own.
        fit: of a bare backbone, what becomes of images of another shape: see `TrainConfig.fit`.
        batch_size: images per forward pass.
        num_workers: decoding processes.
        recall_at: numbers of neighbors, joined by commas; default: what is customary with the data.
        bf16: run the backbone in bfloat16 (scores are computed from float32 embeddings either way).
        confidence: percent; adds `intervals`, name of a metric -> [low, high], from a bootstrap over queries.
        per_class: adds `per_class`, a dict per class, worst MAP@R first.
        open_set: adds `thresholds`, lists of a precision, the cosine from which the nearest image is a match with this
            precision, and the share of matches found then (see `precision_thresholds`); and `fnmr`, false match rate
            -> false non-match rate over all pairs.
        save_thresholds: write these thresholds beside the model, for `search`.
        truncate_dims: numbers joined by commas; adds `truncated`, number of leading dimensions -> their scores.

    Raises:
        BadInput: nothing to open, or nothing to score.
    """
    model, wanted = str(model), _numbers(recall_at, "--k", "numbers of neighbors", "1,10,100")
    sizes = _numbers(truncate_dims, "--truncate-dims", "numbers of dimensions", "64,128,256")
    place = _model_here(model) if save_thresholds else None
    data, gallery = as_spec(data, "--data"), as_spec(gallery, "--gallery")
    if confidence is not None and not 0 < confidence < 100:
        raise BadInput(f"--confidence {confidence}: is in percent; give a number between 0 and 100, such as 95")
    columns = {"image_column": image_column, "label_column": label_column, "data_root": data_root}
    table = open_source(data, flag="--data", labels="required", **columns)
    if gallery is not None:
        if gallery == data:
            raise BadInput(f"--gallery {gallery}: is --data itself, where every image finds itself; leave it out")
        table = with_gallery(table, open_source(gallery, flag="--gallery", labels="required", **columns))
    wanted = wanted or table.recall_at
    shared = len(trained_classes(model) & set(table.classes))
    if place is not None and shared == len(table.classes):
        raise BadInput(f"--save-thresholds: the model was trained on the classes of {data}; give images of others")
    accelerator = Accelerator()
    retriever = load(model, device=accelerator.device, image_size=image_size, fit=fit)
    if sizes and sizes[-1] >= (width := retriever.num_features):
        raise BadInput(f"--truncate-dims {truncate_dims}: embeddings have {width} dimensions; give smaller numbers")
    workers = resolve_num_workers(num_workers)

    def encode(pixels: Tensor) -> Tensor:
        with torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=bf16):
            return retriever(pixels)

    with Counter("embed", len(table), enabled=accelerator.is_main_process) as counter:
        embedded = embed_table(
            table,
            encode,
            retriever.processor,
            batch_size=batch_size,
            num_workers=workers,
            device=accelerator.device,
            progress=lambda count: counter.advance(count * distributed.world_size()),
        )
    found = score_queries(table, embedded, wanted)
    scores = summarize(found.scores, recall_at=wanted, num_gallery=found.num_gallery)
    left_out = count_left_out(table, embedded.readable, found.scores)
    line: dict[str, Any] = {"step": _step(model), "data": table.name, "model": model, **scores, **left_out}
    if left_out["num_unmatched"]:
        line["unmatched_classes"] = _per_name(table.classes, found.labels[found.scores.num_relevant == 0])
    if embedded.bad:
        line["unreadable"] = [bad._asdict() for bad in embedded.bad]
    if table.skipped:
        line["skipped"] = list(table.skipped)
    if shared:
        line["num_trained_classes"] = shared
    if confidence is not None:
        # Queries are drawn one by one, not by class: the classes themselves count as given.
        intervals = bootstrap(score_values(found.scores), confidence=confidence / 100)
        ends = {name: [i.low, i.high] for name, i in zip(score_names(wanted), intervals, strict=True)}
        line |= {"confidence": confidence, "intervals": ends}
    if open_set or place is not None:
        line |= _open_set(table, embedded)
    if place is not None and accelerator.is_main_process:
        with writing("--save-thresholds", place):
            write_thresholds(place, _thresholds(line))
    if sizes:
        line["truncated"] = score_truncated(table, embedded, sizes)
    if per_class:
        line["per_class"] = _per_class(table.classes, class_scores(found.scores, found.labels, recall_at=wanted))
    accelerator.end_training()
    return line


def _open_set(table: ImageTable, embedded: EmbeddedTable) -> dict[str, Any]:
    pairs = count_pairs(table, embedded)
    if pairs is None:
        raise BadInput(f"{table.name}: thresholds need at least two classes, and two images of one of them")
    enough = [rate for rate in _MATCH_RATES if rate * int(pairs.impostor.sum()) >= _FEW]
    return {
        "thresholds": as_lists(precision_thresholds(score_open_set(table, embedded))),
        "fnmr": {f"{rate:g}": false_non_match_rate(pairs, rate) for rate in enough},
    }


def _thresholds(line: dict[str, Any]) -> Thresholds:
    known = [Threshold(*one) for one in line["thresholds"]]
    return Thresholds(Path(line["data"]).name, line["num_queries"], line["num_gallery"], known)


def _model_here(model: str) -> Path:
    folder = model_folder(model) if Path(model).exists() else Path()
    if not (folder / "modules.json").is_file():
        raise BadInput(
            f"--save-thresholds: {model} is no model on this disk; give a finished run, or what `export` wrote"
        )
    return folder


def _numbers(text: str | None, flag: str, what: str, example: str) -> tuple[int, ...]:
    """1,10,100 -> (1, 10, 100), in rising order; nothing -> ()."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise BadInput(f"{flag} {text}: give {what} joined by commas, such as {example}")
    return tuple(sorted({int(part) for part in parts}))


def _per_name(names: Sequence[str], labels: Tensor) -> dict[str, int]:
    found, counts = labels.unique(return_counts=True)
    numbers: list[int] = found.tolist()
    return {names[number]: int(count) for number, count in zip(numbers, counts, strict=True)}


def _per_class(names: Sequence[str], scores: ClassScores) -> list[dict[str, Any]]:
    columns = {name: values.tolist() for name, values in scores.values.items()}
    counts = scores.num_queries.tolist()
    rows = [
        {"class": names[label], "num_queries": counts[i], **{name: values[i] for name, values in columns.items()}}
        for i, label in enumerate(scores.label.tolist())
    ]
    return sorted(rows, key=lambda row: (row["map@r"], row["class"]))


def trained_classes(model: str) -> set[str]:
    """Names of the classes that a run was trained on, if the model is that of a run and its images are still there."""
    path = Path(model)
    folder = RunFolder(path.parent if path.name == "model" else path, writes=False)
    if not folder.is_run():
        return set()
    try:
        labeled = open_labeled(folder.config())[0]
    except BadInput:  # Moved or deleted since: nothing can be said.
        return set()
    return set() if labeled is None else set(labeled.classes)


def _step(model: str) -> int | None:
    """How far a run was trained."""
    folder = RunFolder(model, writes=False)
    return exported_step(folder.log.lines()) if folder.is_run() else None
