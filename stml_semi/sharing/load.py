"""Open what was trained: a run folder, an export, a hub id, or a bare backbone."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from stml_semi.data.images import to_rgb
from stml_semi.data.views import eval_views, view_size
from stml_semi.models.backbone import open_backbone, resolve_backbone
from stml_semi.models.pooling import pool_output, resolve_pooling
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import BadInput, one_line


class Retriever(nn.Module):
    """A model that is ready to search with: pictures in, unit-length embeddings out."""

    def __init__(
        self, backbone: Any, processor: Any, pool: Callable[[Any], Tensor], dense: nn.Linear | None = None
    ) -> None:
        """
        Args:
            backbone: transformers model.
            processor: its image processor.
            pool: the backbone's output -> (B, C).
            dense: head f on the pooled vector; None serves the bare backbone.
        """
        super().__init__()
        self.backbone = backbone
        self.processor = processor
        self.pool = pool
        self.dense = dense
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) from the image processor -> (B, d) float32, not normalized."""
        pooled = self.pool(self.backbone(pixel_values=pixels))
        return (pooled if self.dense is None else self.dense(pooled)).float()

    @torch.inference_mode()
    def encode(self, images: list[Image.Image], *, batch_size: int = 64, normalize: bool = True) -> NDArray[np.float32]:
        """Embeddings of pictures.

        Args:
            images: PIL pictures of any mode and size.
            batch_size: pictures per forward pass.
            normalize: bring embeddings to unit length.

        Returns:
            (N, d) float32.
        """
        device = next(self.parameters()).device
        parts = []
        for start in range(0, len(images), batch_size):
            pictures = [to_rgb(image) for image in images[start : start + batch_size]]
            parts.append(self(eval_views(pictures, self.processor).to(device)))
        embeddings = torch.cat(parts) if parts else torch.zeros(0, self.num_features, device=device)
        return (F.normalize(embeddings, dim=1) if normalize else embeddings).cpu().numpy()

    @property
    def num_features(self) -> int:
        """Width d of the embeddings."""
        if self.dense is not None:
            return self.dense.out_features
        height, width = view_size(self.processor)
        device = next(self.parameters()).device
        with torch.inference_mode():
            return self(torch.zeros(1, 3, height, width, device=device)).shape[1]


def _pooler(output: Any) -> Tensor:
    return output.pooler_output.flatten(1)


def _concatenated(modes: tuple[str, ...]) -> Callable[[Any], Tensor]:
    """The standard Pooling module: modes over all tokens, side by side."""

    def pool(output: Any) -> Tensor:
        tokens = output.last_hidden_state
        tokens = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
        return torch.cat([_MODES[mode](tokens) for mode in modes], dim=1)

    return pool


_MODES: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda tokens: tokens[:, 0],
    "mean": lambda tokens: tokens.mean(1),
    "max": lambda tokens: tokens.amax(1),
}


def load(model: str | Path, *, device: str | torch.device = "cpu") -> Retriever:
    """Opens a trained model.

    Args:
        model: a run folder, a folder or hub id in sentence-transformers layout, or any image backbone (then its
            frozen features are served).
        device: where it runs.

    Raises:
        BadInput: nothing of the kind there.
    """
    folder = _folder(str(model))
    if not (folder / "modules.json").is_file():
        backbone = open_backbone(str(model), flag="--model")
        pooling = resolve_pooling("auto", backbone.model, view_size(backbone.processor, flag="--model"), flag="--model")
        return Retriever(backbone.model, backbone.processor, partial(pool_output, pooling=pooling)).to(device)
    backbone = open_backbone(str(folder), flag="--model")
    entries = [(entry["type"].rsplit(".", 1)[-1], entry["path"]) for entry in _json(folder / "modules.json")]
    kinds = {kind: folder / path for kind, path in entries}
    expected = [kind for kind in ("Transformer", "Pooling", "Dense", "Normalize") if kind in kinds]
    if [kind for kind, _ in entries] != expected or entries[0] != ("Transformer", ""):
        listed = ", ".join(kind for kind, _ in entries)
        raise BadInput(f"--model {model}: is made of {listed}; open it with sentence_transformers instead")
    pool_of = _pooler
    if "Pooling" in kinds:
        mode = _json(kinds["Pooling"] / "config.json").get("pooling_mode", ())
        modes = (mode,) if isinstance(mode, str) else tuple(mode)
        if not modes or not set(modes) <= _MODES.keys():
            raise BadInput(f"--model {model}: pools by {modes or 'older rules'}; open it with sentence_transformers")
        pool_of = _concatenated(modes)
    dense = None
    if "Dense" in kinds:
        weights = load_file(kinds["Dense"] / "model.safetensors")
        if not _json(kinds["Dense"] / "config.json")["activation_function"].endswith("Identity"):
            raise BadInput(f"--model {model}: its head is not linear; open it with sentence_transformers instead")
        width, features = weights["linear.weight"].shape
        dense = nn.Linear(features, width, bias="linear.bias" in weights)
        dense.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    return Retriever(backbone.model, backbone.processor, pool_of, dense).to(device)


def _folder(model: str) -> Path:
    """Where the model's files are: the run's model/ folder, the folder itself, or the hub's local copy."""
    path, run = Path(model), RunFolder(model, writes=False)
    if run.is_run():
        if not run.model.is_dir():
            raise BadInput(f"--model {model}: this run has not finished: it has no model/ folder yet; --resume it")
        return run.model
    if path.is_dir():
        return path
    embedded = Path(resolve_backbone(model))
    if embedded.is_dir():
        return embedded
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.yaml"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = one_line(error)
        raise BadInput(
            f"--model {model}: no such run or folder, and the hub does not offer it ({reason}); check the spelling"
        ) from error


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
