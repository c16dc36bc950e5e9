"""The model of a checkpoint: what `export` writes and the report looks through."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from stml_semi.config import TrainConfig
from stml_semi.models.backbone import Backbone
from stml_semi.models.build import build_embedder, open_configured_backbone
from stml_semi.models.embedder import Embedder
from stml_semi.models.interpolation import interpolate, serve_features, start_of
from stml_semi.run_folder.checkpoint import BEST, STUDENT, TEACHER, read_module, step_of
from stml_semi.run_folder.log import Choice, decided
from stml_semi.runtime.errors import BadInput, one_line

Weights = Literal["student", "teacher"]


class Trained(NamedTuple):
    """A model as training left it."""

    embedder: Embedder
    backbone: Backbone
    choice: Choice
    """Which weights these are; of step 0 if validation classes are to choose a student and have not chosen yet."""


def open_trained(
    config: TrainConfig, checkpoint: Path, weights: Weights, lines: Sequence[dict[str, Any]] = ()
) -> Trained:
    """Builds the model of a configuration with the weights of a checkpoint, on the CPU, in evaluation mode.

    Args:
        config: of the run.
        checkpoint: its folder.
        weights: student or teacher. If the run has validation classes, student is what these chose: at its end any
            candidate, before it the best student so far.
        lines: of metrics.jsonl, which hold the choice.

    Raises:
        BadInput: the checkpoint cannot be read, or the backbone cannot be opened.
    """
    last = step_of(checkpoint)
    backbone = open_configured_backbone(config)
    embedder = build_embedder(config.model_copy(update={"compile": False}), backbone)
    if weights == "student" and config.validation_classes:
        choice = decided(lines, last)
        if choice is None or choice.model != "teacher":
            choice, tensors = _validated(read_module(checkpoint, BEST), choice, start_of(embedder))
        else:
            tensors = read_module(checkpoint, TEACHER)
    else:
        choice = Choice(weights, last)
        tensors = read_module(checkpoint, STUDENT if weights == "student" else TEACHER)
    try:
        embedder.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadInput(f"checkpoint {checkpoint} is not of the model in config.yaml ({one_line(error, 200)})") from None
    if choice.model == "frozen":
        serve_features(embedder)
    return Trained(embedder.eval(), backbone, choice)


def _validated(
    best: dict[str, Tensor], choice: Choice | None, start: dict[str, Tensor]
) -> tuple[Choice, dict[str, Tensor]]:
    """The best student of a checkpoint, or the weights between it and its start that were chosen."""

    def part(prefix: str, to: str = "") -> dict[str, Tensor]:
        return {to + key.removeprefix(prefix): value for key, value in best.items() if key.startswith(prefix)}

    if choice is None or choice.model == "student":
        return Choice("student", int(best["step"])), part("model.")
    start |= part("start_f.", "head_f.")
    return choice, interpolate(start, part("model."), choice.alpha or 0.0)
