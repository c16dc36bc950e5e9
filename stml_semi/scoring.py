"""`evaluate`: any model on any labeled pictures."""

from typing import Any

from accelerate import Accelerator

from stml_semi import distributed
from stml_semi.data.loading import default_num_workers
from stml_semi.data.sources import open_source
from stml_semi.evaluation import embed_table, score
from stml_semi.hub import load
from stml_semi.run_folder import RunFolder


def evaluate_model(
    model: str,
    data: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    batch_size: int = 256,
    num_workers: int | None = None,
    data_root: str | None = None,
) -> dict[str, Any]:
    """Retrieval metrics of a model: a line like those of metrics.jsonl; `step` is None unless the model is a run.

    Raises:
        ValueError: nothing to open, or nothing to score.
    """
    table = open_source(
        data,
        flag="--data",
        labels="required",
        image_column=image_column,
        label_column=label_column,
        data_root=data_root,
    )
    accelerator = Accelerator()
    retriever = load(model, device=accelerator.device)
    workers = default_num_workers(distributed.local_world_size()) if num_workers is None else num_workers
    embedded = embed_table(
        table, retriever, retriever.processor, batch_size=batch_size, num_workers=workers, device=accelerator.device
    )
    line = {"step": _step(model), "data": table.name, "model": model, **score(table, embedded, table.recall_at)}
    accelerator.end_training()
    return line


def _step(model: str) -> int | None:
    """How far a run was trained."""
    folder = RunFolder(model, writes=False)
    if not folder.metrics.is_file():
        return None
    return max((line["step"] for line in folder.lines()), default=None)
