"""Open what was trained: a run folder, an export, a hub id, or a bare backbone."""

import itertools
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from stml_semi.config import Fit
from stml_semi.data.any_image import OneImage, is_one, name_of, open_image
from stml_semi.data.views import eval_views, view_problem, view_size
from stml_semi.models.backbone import open_backbone
from stml_semi.models.fit import fit_images
from stml_semi.models.image_size import resize
from stml_semi.models.model_files import commit_of, parse_name
from stml_semi.models.pooling import pool_output, resolve_pooling
from stml_semi.models.trial import try_backbone
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import BadInput, one_line
from stml_semi.runtime.exact import exact_float32
from stml_semi.runtime.finite import check_lengths, check_weights
from stml_semi.runtime.hub import reach_hub
from stml_semi.runtime.machine import best_device
from stml_semi.runtime.progress import Counter
from stml_semi.sharing.modules import Modules, read_modules


class Retriever(nn.Module):
    """A model that is ready to search with: images in, unit-length embeddings out."""

    def __init__(
        self,
        backbone: Any,
        processor: Any,
        pool: Callable[[Any], Tensor],
        dense: nn.Linear | None = None,
        commit: str | None = None,
    ) -> None:
        """
        Args:
            backbone: transformers model.
            processor: its image processor.
            pool: the backbone's output -> (B, C).
            dense: head f on the pooled vector; None serves the bare backbone.
            commit: of the hub, at which the model was opened; None of a local one.
        """
        super().__init__()
        self.backbone = backbone
        self.processor = processor
        self.pool = pool
        self.dense = dense
        self.commit = commit
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) from the image processor -> (B, d) float32, not normalized."""
        pooled = self.pool(self.backbone(pixel_values=pixels))
        return (pooled if self.dense is None else self.dense(pooled)).float()

    @overload
    def encode(
        self,
        images: OneImage | Iterable[OneImage],
        *,
        batch_size: int = ...,
        show_progress_bar: bool = ...,
        convert_to_tensor: Literal[False] = ...,
        normalize_embeddings: bool = ...,
        names: Sequence[str] | None = ...,
    ) -> NDArray[np.float32]: ...

    @overload
    def encode(
        self,
        images: OneImage | Iterable[OneImage],
        *,
        batch_size: int = ...,
        show_progress_bar: bool = ...,
        convert_to_tensor: Literal[True],
        normalize_embeddings: bool = ...,
        names: Sequence[str] | None = ...,
    ) -> Tensor: ...

    @exact_float32()
    @torch.inference_mode()
    def encode(
        self,
        images: OneImage | Iterable[OneImage],
        *,
        batch_size: int = 64,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = True,
        names: Sequence[str] | None = None,
    ) -> NDArray[np.float32] | Tensor:
        """Embeddings of one image or of many. Arguments are called as in sentence-transformers.

        Args:
            images: one image or an iterable: the path of a file, its bytes, a PIL image, an array (H, W), (H, W, 3) or
                (H, W, 4) of uint8, a tensor (3, H, W) or (1, H, W) of uint8 or of 0..1; also an array or tensor of
                many. An iterable is read batch by batch.
            batch_size: images per forward pass.
            show_progress_bar: on standard error.
            convert_to_tensor: give a tensor on the model's device in place of an array.
            normalize_embeddings: bring embeddings to unit length.
            names: of the images, for the message of an error; default: their paths or numbers.

        Returns:
            (N, d) float32; (d,) for one image.

        Raises:
            TypeError: something that is no image.
            BadInput: an image cannot be read, or some embeddings are not finite.
        """
        single = is_one(images)
        many = cast(Iterable[OneImage], [images] if single else images)
        total = len(many) if isinstance(many, Sized) else 0
        iterator, parts, done = iter(many), list[Tensor](), 0
        with Counter("embed", total, enabled=show_progress_bar) as counter:
            while batch := list(itertools.islice(iterator, batch_size)):
                known = [names[done + i] if names else name_of(image, done + i) for i, image in enumerate(batch)]
                opened = [open_image(image, name) for image, name in zip(batch, known, strict=True)]
                parts.append(self(self._views(opened, known).to(self.device)))
                fix = "the model diverged or is damaged; take another checkpoint or model"
                check_lengths(parts[-1], "the model", known.__getitem__, fix)
                done += len(batch)
                counter.total = max(total, done)
                counter.advance(len(batch))
        embeddings = torch.cat(parts) if parts else torch.zeros(0, self.num_features, device=self.device)
        embeddings = F.normalize(embeddings, dim=1) if normalize_embeddings else embeddings
        embeddings = embeddings[0] if single else embeddings
        return embeddings if convert_to_tensor else embeddings.cpu().numpy()

    def _views(self, images: list[Image.Image], names: Sequence[str]) -> Tensor:
        try:
            return eval_views(images, self.processor)
        except (RuntimeError, ValueError):
            for image, name in zip(images, names, strict=True):
                if why := view_problem(image, self.processor):
                    raise BadInput(f"{name}: {why}") from None
            raise

    def similarity(self, first: NDArray[np.float32] | Tensor, second: NDArray[np.float32] | Tensor) -> Tensor:
        """Cosine similarities, as sentence-transformers computes them.

        Args:
            first: (N, d) embeddings, or (d,) of one image.
            second: (M, d) or (d,).

        Returns:
            (N, M) float32 on the CPU.
        """
        rows, columns = (torch.as_tensor(x, dtype=torch.float32).cpu() for x in (first, second))
        return F.normalize(torch.atleast_2d(rows), dim=1) @ F.normalize(torch.atleast_2d(columns), dim=1).T

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.parameters()).device

    @property
    def num_features(self) -> int:
        """Width d of the embeddings."""
        if self.dense is not None:
            return self.dense.out_features
        height, width = view_size(self.processor)
        with torch.inference_mode():
            return self(torch.zeros(1, 3, height, width, device=self.device)).shape[1]


def load(
    model: str | Path,
    *,
    device: str | torch.device | None = None,
    image_size: int | None = None,
    fit: Fit = "auto",
    truncate_dim: int | None = None,
) -> Retriever:
    """Opens a trained model.

    Args:
        model: a run folder, a folder or hub id in sentence-transformers layout, or any image backbone (then its
            frozen features are served). A hub id may end in `@` and a branch, tag or commit.
        device: where it runs; default: a GPU if there is one (CUDA, Apple's), else the CPU.
        image_size: of a bare backbone, side of its input in pixels; default: its own.
        fit: of a bare backbone, what becomes of images of another shape: see `TrainConfig.fit`.
        truncate_dim: leading dimensions of its embeddings that are kept; default: all.

    Raises:
        BadInput: nothing of the kind there, a size for a model that was trained at one, or more dimensions than there
            are.
    """
    name = str(model)
    folder = model_folder(name)
    is_bare = not (folder / "modules.json").is_file()
    if image_size is not None and not is_bare:
        raise BadInput(f"--image-size {image_size}: {model} has the size that it was trained at; leave the flag out")
    if fit != "auto" and not is_bare:
        raise BadInput(f"--fit {fit}: {model} crops, pads or squashes as it was trained to; leave the flag out")
    try:
        modules = None if is_bare else read_modules(folder)
    except BadInput as error:
        raise BadInput(f"--model {model}: {error}") from error
    # A hub id stays one: of a bare backbone the hub may have weights of another format than the copy here holds.
    backbone = open_backbone(name if is_bare and not Path(name).is_dir() else str(folder), flag="--model")
    backbone = fit_images(backbone if image_size is None else resize(backbone, image_size), fit)
    size = view_size(backbone.processor, flag=f"--model {model}")
    if modules is None:
        pooling = resolve_pooling("auto", backbone.model, size, flag="--model")
        modules = Modules(partial(pool_output, pooling=pooling), None)
    else:
        _check_fit(modules, try_backbone(backbone.model, size, flag="--model"), f"--model {model}")
    if truncate_dim is not None:
        modules = modules._replace(dense=_truncated(modules.dense, truncate_dim, name))
    return Retriever(*backbone, *modules, commit_of(parse_name(name))).to(device or best_device())


def _truncated(dense: nn.Linear | None, size: int, name: str) -> nn.Linear:
    """
    Raises:
        BadInput: a bare backbone has no head that could be cut, or the head is not that wide.
    """
    if dense is None:
        raise BadInput(f"truncate_dim={size}: {name} is a bare backbone, without a head whose dimensions could be cut")
    if not 0 < size <= dense.out_features:
        raise BadInput(f"truncate_dim={size}: {name} has {dense.out_features} dimensions; give a number from 1 to it")
    cut = nn.Linear(dense.in_features, size, bias=dense.bias is not None)
    for kept, whole in zip(cut.parameters(), dense.parameters(), strict=True):
        kept.data = whole.data[:size].clone()
    return cut


def _check_fit(modules: Modules, output: Any, name: str) -> None:
    """
    Raises:
        BadInput: backbone and head are not made for each other, or the head is damaged.
    """
    if modules.dense is None:
        return
    width = modules.pool(output).shape[1]
    if width != modules.dense.in_features:
        raise BadInput(
            f"{name}: its head takes {modules.dense.in_features} features and its backbone gives {width}: the folder "
            f"mixes two models; export or download it again"
        )
    check_weights(modules.dense, f"{name}: its head", "its file is damaged, or the model diverged; take another")


def model_folder(model: str) -> Path:
    """Where the model's files are: the run's model/ folder, the folder itself, or the hub's local copy."""
    path, run = Path(model), RunFolder(model, writes=False)
    if run.is_run():
        if not run.model.is_dir():
            raise BadInput(f"--model {model}: this run has not finished: it has no model/ folder yet; --resume it")
        return run.model
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = parse_name(model)
        if Path(found.place).is_dir():
            return Path(found.place)
        reach_hub()
        patterns = ["*.json", "*.safetensors", "*.yaml"]
        return Path(snapshot_download(found.place, revision=found.revision, allow_patterns=patterns))
    except (BadInput, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = one_line(error)
        raise BadInput(
            f"--model {model}: no such run or folder, and the hub does not offer it ({reason}); check the spelling"
        ) from error
