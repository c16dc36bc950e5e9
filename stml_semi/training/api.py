"""`stml_semi.train`: a run from Python, in one call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from stml_semi.config import command_of
from stml_semi.data.sources.objects import Source, as_spec
from stml_semi.losses.proxy import PYTHON, LossFunction
from stml_semi.run_folder.log import exported
from stml_semi.training.outputs import Callbacks
from stml_semi.training.resolve import resolve
from stml_semi.training.run import Result, run


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    """Of the run."""
    model: Path
    """Folder of the exported model, which `stml_semi.load` and sentence-transformers open."""
    report: Path | None
    """The page of the run, if it was written."""
    metrics: dict[str, Any]
    """Scores of the exported model on --eval (or --test-classes), such as `recall@1` and `map@r`; {} without either."""
    lines: list[dict[str, Any]]
    """All evaluations, in order."""
    claim: str
    """What may be said of the classes that were evaluated on."""


def train(
    *,
    labeled: Source = None,
    unlabeled: Source = None,
    eval: Source = None,
    backbone: str = "auto",
    labeled_loss: str | LossFunction = "proxy_anchor",
    on_log: Callable[[dict[str, Any]], object] | None = None,
    on_evaluation: Callable[[dict[str, Any]], object] | None = None,
    on_checkpoint: Callable[[Path], object] | None = None,
    **fields: Any,
) -> Run:
    """Trains as the command line does: on labels and unlabeled images (`semi`), or on either alone (`sup`, `unsup`).

    Ctrl-C saves a checkpoint before it ends the run; `resume=True` continues. Programs that call this need the usual
    guard `if __name__ == "__main__":`, since decoding processes import them.

    Args:
        labeled: labeled images: what --labeled takes, a `datasets.Dataset`, a data frame, or pairs (path, label).
        unlabeled: unlabeled images: what --unlabeled takes, a data set or frame, or paths.
        eval: labeled images of classes that are not trained on, like `labeled`.
        backbone: what --backbone takes.
        labeled_loss: what --labeled-loss takes, or a module or function: (B, d) embeddings, (B,) labels -> scalar.
        on_log: gets every line of training terms.
        on_evaluation: gets every line of scores.
        on_checkpoint: gets the folder of every checkpoint that was written.
        fields: other fields of TrainConfig; what is missing is filled in from data and backbone.

    Raises:
        BadInput: naming the field and the fix; nothing has been written then.
        RunFailed: the run could not be finished, or was stopped after saving.
    """
    given = {"labeled": labeled, "unlabeled": unlabeled, "eval": eval}
    sources = {name: as_spec(source, name) for name, source in given.items()}
    own = None if isinstance(labeled_loss, str) else labeled_loss
    name = labeled_loss if isinstance(labeled_loss, str) else PYTHON + _name(labeled_loss)
    values = {**sources, "backbone": backbone, "labeled_loss": name, **fields}
    config = resolve(command_of(sources["labeled"], sources["unlabeled"]), values)
    return _finished(run(config, labeled_loss=own, callbacks=Callbacks(on_log, on_evaluation, on_checkpoint)))


def _name(loss: Any) -> str:
    return str(getattr(loss, "__name__", type(loss).__name__))


def _finished(result: Result) -> Run:
    folder, choice = result.folder, exported(result.folder.log.lines())
    tested = [line for line in result.lines if "split" not in line]
    chosen = [line for line in tested if choice and (line["model"], line["step"]) == (choice.model, choice.step)]
    report = folder.path / "report.html"
    return Run(
        folder=folder.path,
        model=folder.model,
        report=report if report.is_file() else None,
        metrics=chosen[-1] if chosen else {},
        lines=result.lines,
        claim=result.claim,
    )
