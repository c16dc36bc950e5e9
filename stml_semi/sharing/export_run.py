"""`export`: a model folder from a run's checkpoint, of the student or of the teacher."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError

from stml_semi.config import TrainConfig, read_recipe
from stml_semi.data.views import view_size
from stml_semi.models.build import build_embedder, open_configured_backbone
from stml_semi.run_folder.checkpoint import TEACHER, list_checkpoints, read_module
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import BadInput
from stml_semi.sharing.card import CardFacts, Dtype, Origin, Weights, card_files, find_origin
from stml_semi.sharing.export import export_model
from stml_semi.sharing.onnx import check_onnx, export_onnx
from stml_semi.training.best_student import BEST

_PREFIXES: dict[Weights, str] = {"student": "embedder.", "teacher": TEACHER}


class Exported(NamedTuple):
    """What was written."""

    folder: Path
    weights: Weights
    step: int


def export_run(
    run: str,
    output: str,
    *,
    weights: Weights = "student",
    license: str | None = None,
    dtype: Dtype = "float32",
    onnx: bool = False,
) -> Exported:
    """Writes the student or the teacher of a run's newest checkpoint as a model folder, with its card.

    Args:
        run: a run folder, finished or not.
        output: new or empty, or a model folder, which is replaced.
        weights: which of the two.
        license: for the card; default: what the run was told, else the base model's.
        dtype: of the stored weights.
        onnx: write embedder.onnx (always float32) beside the usual files.

    Raises:
        BadInput: no run, no checkpoint, a damaged one, one of before validation chose a step, or an output folder
            that holds something else.
    """
    if onnx:
        check_onnx()
    folder, target = RunFolder(run, writes=False), Path(output)
    if not folder.config.is_file() or not folder.metrics.is_file():
        raise BadInput(f"{run}: is no run folder (config.yaml and metrics.jsonl); give one that training left")
    if target.exists() and not _may_replace(target, folder):
        raise BadInput(f"--output {output}: holds something other than a model; choose another folder")
    values = read_recipe(folder.config)
    config = TrainConfig.build(values if license is None else values | {"license": license})
    found = list_checkpoints(folder.checkpoints)
    if not found:
        raise BadInput(f"{run}: has no checkpoint to export; --resume the run, or take {folder.model} if it is there")
    step = int(found[-1].name.removeprefix("step-"))
    chosen = bool(config.validation_classes) and weights == "student"
    backbone = open_configured_backbone(config)
    embedder = build_embedder(config.model_copy(update={"compile": False}), backbone)
    try:
        tensors = read_module(found[-1], BEST if chosen else _PREFIXES[weights])
        if chosen:
            step = int(tensors.pop("step"))
            tensors = {key.removeprefix("model."): value for key, value in tensors.items() if key != "map_at_r"}
        embedder.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{run}: {found[-1].name} cannot be read ({reason}): delete it to export an earlier one"
        ) from None
    if chosen and not step:
        raise BadInput(
            f"{run}: no step was scored on the validation classes before {found[-1].name}, so none is chosen: --resume "
            f"the run, or take --weights teacher"
        )
    facts = CardFacts(
        config,
        folder.lines(),
        weights=weights,
        step=step,
        size=view_size(backbone.processor),
        pooling=embedder.pool.kind,
        claim=folder.claim,
        origin=_origin(config, folder),
        dtype=dtype,
    )
    with torch.inference_mode():
        export_model(embedder.eval(), backbone.processor, target, card_files(facts), dtype=getattr(torch, dtype))
    if onnx:
        export_onnx(target)
        card = card_files(facts._replace(onnx=True))["README.md"]  # Told of only when it is there.
        (target / "README.md").write_bytes(card)
    return Exported(target, weights, step)


def _may_replace(target: Path, folder: RunFolder) -> bool:
    """Nothing but a model is ever overwritten, and not the place where runs live."""
    if not target.is_dir() or target.resolve() in (folder.path.resolve(), *folder.path.resolve().parents):
        return False
    return (target / "modules.json").is_file() or not any(target.iterdir())


def _origin(config: TrainConfig, folder: RunFolder) -> Origin:
    """As the run's own card says, which was written where its paths were valid; else as it looks from here."""
    from huggingface_hub import ModelCard

    if not (folder.model / "README.md").is_file():
        return find_origin(config)
    data = ModelCard.load(folder.model / "README.md", ignore_metadata_errors=True).data.to_dict()
    datasets = data.get("datasets") or []
    return Origin(
        data.get("base_model"), tuple([datasets] if isinstance(datasets, str) else datasets), data.get("license")
    )
