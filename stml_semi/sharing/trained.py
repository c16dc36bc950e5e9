"""The model of a checkpoint: what `export` writes and the report looks through."""

from pathlib import Path
from typing import Literal, NamedTuple

from stml_semi.config import TrainConfig
from stml_semi.models.backbone import Backbone
from stml_semi.models.build import build_embedder, open_configured_backbone
from stml_semi.models.embedder import Embedder
from stml_semi.run_folder.checkpoint import BEST, STUDENT, TEACHER, read_module, step_of
from stml_semi.runtime.errors import BadInput, one_line

Weights = Literal["student", "teacher"]


class Trained(NamedTuple):
    """A model as training left it."""

    embedder: Embedder
    backbone: Backbone
    step: int
    """Steps that the weights have taken; 0 if validation classes are to choose them and have not chosen yet."""


def open_trained(config: TrainConfig, checkpoint: Path, weights: Weights) -> Trained:
    """Builds the model of a configuration with the weights of a checkpoint, on the CPU, in evaluation mode.

    Args:
        config: of the run.
        checkpoint: its folder.
        weights: student (the one that validation chose, if the run has validation classes) or teacher.

    Raises:
        BadInput: the checkpoint cannot be read, or the backbone cannot be opened.
    """
    chosen = bool(config.validation_classes) and weights == "student"
    backbone = open_configured_backbone(config)
    embedder = build_embedder(config.model_copy(update={"compile": False}), backbone)
    step = step_of(checkpoint)
    tensors = read_module(checkpoint, BEST if chosen else STUDENT if weights == "student" else TEACHER)
    if chosen:
        step = int(tensors.pop("step"))
        tensors = {key.removeprefix("model."): value for key, value in tensors.items() if key != "map_at_r"}
    try:
        embedder.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadInput(f"checkpoint {checkpoint} is not of the model in config.yaml ({one_line(error, 200)})") from None
    return Trained(embedder.eval(), backbone, step)
