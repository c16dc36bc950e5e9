"""`export`: a model folder from a run's checkpoint, of the student or of the teacher."""

from pathlib import Path
from typing import NamedTuple

import torch

from stml_semi.config import TrainConfig
from stml_semi.data.views import view_size
from stml_semi.run_folder.checkpoint import list_checkpoints
from stml_semi.run_folder.folder import RunFolder
from stml_semi.run_folder.log import Served
from stml_semi.run_folder.recipe import build_config
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.failures import writing
from stml_semi.sharing.card import CardFacts, Dtype, card_files
from stml_semi.sharing.export import export_model
from stml_semi.sharing.inputs import find_inputs
from stml_semi.sharing.onnx import check_onnx, export_onnx
from stml_semi.sharing.origin import Origin, find_origin
from stml_semi.sharing.thresholds import of_run
from stml_semi.sharing.trained import Weights, open_trained


class Exported(NamedTuple):
    """What was written."""

    folder: Path
    weights: Served
    step: int
    alpha: float | None = None
    """Share of the student's weights in interpolated ones."""


def export_run(
    run: str,
    output: str,
    *,
    weights: Weights = "student",
    license: str | None = None,
    dtype: Dtype = "float32",
    onnx: bool = False,
    truncate_dim: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a model of a run's newest checkpoint as a model folder, with its card.

    Args:
        run: a run folder, finished or not.
        output: new or empty; with `overwrite` also a model folder, which is replaced.
        weights: student (if the run has validation classes: what these chose) or teacher.
        license: for the card; default: what the run was told, else the base model's.
        dtype: of the stored weights.
        onnx: write embedder.onnx (always float32) beside the usual files.
        truncate_dim: dimensions that embeddings keep, the leading ones; default: all.
        overwrite: replace a model.

    Raises:
        BadInput: no run, no checkpoint, a damaged one, one of before validation chose a step, or an output folder
            that holds something else.
    """
    if onnx:
        check_onnx()
    folder, target = RunFolder.open(run), Path(output)
    with writing("--output", target):
        if target.exists() and not _may_replace(target, folder):
            raise BadInput(f"--output {output}: holds something other than a model; choose another folder")
        if not overwrite and target.exists() and any(target.iterdir()):
            raise BadInput(f"--output {output}: holds a model; add --overwrite to replace it, or choose another folder")
    config = folder.config()
    if license is not None:
        config = build_config({**config.model_dump(), "license": license})
    found = list_checkpoints(folder.checkpoints)
    if not found:
        raise BadInput(f"{run}: has no checkpoint to export; --resume the run, or take {folder.model} if it is there")
    lines = folder.log.lines()
    trained = open_trained(config, found[-1], weights, lines)
    choice = trained.choice
    if choice.model == "student" and not choice.step:
        raise BadInput(
            f"{run}: no step was scored on the validation classes before {found[-1].name}, so none is chosen: --resume "
            f"the run, or take --weights teacher"
        )
    width = trained.embedder.head_f.out_features
    if truncate_dim is not None and choice.model == "frozen":
        raise BadInput("--truncate-dim: validation chose the frozen backbone, whose features do not become shorter")
    if truncate_dim is not None and not 0 < truncate_dim <= width:
        raise BadInput(f"--truncate-dim {truncate_dim}: embeddings have {width} dimensions; give a number from 1 to it")
    facts = CardFacts(
        config,
        lines,
        weights=choice.model,
        alpha=choice.alpha,
        step=choice.step,
        width=width if truncate_dim is None else truncate_dim,
        size=view_size(trained.backbone.processor),
        pooling=trained.embedder.pooling.kind,
        claim=folder.claim,
        origin=_origin(config, folder),
        dtype=dtype,
        inputs=find_inputs(trained.backbone.processor),
        # A cosine of fewer dimensions is another one.
        thresholds=of_run(lines, choice) if truncate_dim in (None, width) else None,
    )
    with torch.inference_mode(), writing("--output", target):
        files = card_files(facts)
        export_model(
            trained.embedder,
            trained.backbone.processor,
            target,
            files,
            dtype=getattr(torch, dtype),
            truncate_dim=truncate_dim,
        )
        if onnx:
            export_onnx(target)
            card = card_files(facts._replace(onnx=True))["README.md"]  # Told of only when it is there.
            (target / "README.md").write_bytes(card)
    return Exported(target, *choice)


def _may_replace(target: Path, folder: RunFolder) -> bool:
    """Nothing but a model is ever overwritten, and not the place where runs live."""
    if not target.is_dir() or target.resolve() in (folder.path.resolve(), *folder.path.resolve().parents):
        return False
    return (target / "modules.json").is_file() or not any(target.iterdir())


def _origin(config: TrainConfig, folder: RunFolder) -> Origin:
    """As the run's own card says, which was written where its paths were valid; else as it looks from here."""
    from huggingface_hub import ModelCard

    if not (folder.model / "README.md").is_file():
        return find_origin(config)._replace(commit=folder.backbone_commit)
    data = ModelCard.load(folder.model / "README.md", ignore_metadata_errors=True).data.to_dict()
    datasets = data.get("datasets") or []
    datasets = tuple([datasets] if isinstance(datasets, str) else datasets)
    return Origin(data.get("base_model"), datasets, data.get("license"), folder.backbone_commit)
