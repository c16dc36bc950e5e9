"""The exported model: a sentence-transformers folder that opens without this project."""

import copy
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stml_semi.models.adaptation import merged
from stml_semi.models.embedder import Embedder
from stml_semi.models.pooling import Pooling
from stml_semi.runtime.files import scratch_beside, share
from stml_semi.runtime.finite import check_weights
from stml_semi.sharing.inputs import for_any_image

PoolingMode = Literal["cls", "mean", "max"]


def export_model(
    embedder: Embedder,
    processor: Any,
    folder: Path,
    files: Mapping[str, bytes] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    truncate_dim: int | None = None,
) -> None:
    """Writes backbone, pooling, head f and normalization as standard modules of sentence-transformers.

    The backbone lies at the root in plain transformers format, so `AutoModel.from_pretrained(folder)` opens it too.
    The folder is complete or absent: it is written under a temporary name beside it and renamed.

    Args:
        embedder: the bare model, without wrappers.
        processor: its image processor; its output for an image is what the model was evaluated on.
        folder: replaced if it exists.
        files: further ones at the root (the card): name -> content.
        dtype: of the stored weights. Whoever opens the folder computes in float32 unless told otherwise: half precision
            is slow on many processors, and a ResNet in it refuses the image processor's float32 pixels.
        truncate_dim: leading dimensions of f that are kept; default: all.

    Raises:
        BadInput: weights are not finite, or not in `dtype`.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

    folder = Path(os.path.realpath(folder))  # A link stays one.
    pooling = embedder.pooling
    modes = pooling_modes(pooling)
    pooled = pooling.kind == "pooler"
    with _quiet(), scratch_beside(folder) as scratch, torch.random.fork_rng(devices=[]):
        backbone = scratch / "backbone"
        plain = merged(embedder.backbone)
        if dtype != torch.float32:
            plain = copy.deepcopy(plain).to(dtype)
        plain.save_pretrained(backbone, state_dict={k: v.contiguous() for k, v in plain.state_dict().items()})
        for_any_image(processor).save_pretrained(backbone)
        output = "pooler_output" if pooled else "last_hidden_state"
        # Opened by its configuration, a ViT has a pooler that nothing uses, at random: the same in every export.
        torch.manual_seed(0)
        modules: list[nn.Module] = [
            Transformer(
                str(backbone),
                modality_config={"image": {"method": "forward", "method_output_name": output}},
                module_output_name="sentence_embedding" if pooled else "token_embeddings",
            )
        ]
        if not pooled:
            modules.append(PoolingModule(pooling.num_features, modes))
        weight, bias = (part.detach().cpu()[:truncate_dim] for part in (embedder.head_f.weight, embedder.head_f.bias))
        weight = folded_weight(weight, pooling, _num_tokens(embedder, processor))
        dense = Dense(
            weight.shape[1],
            weight.shape[0],
            activation_function=nn.Identity(),
            init_weight=weight,
            init_bias=bias.clone(),
        )
        target = scratch / "model"
        served = SentenceTransformer(modules=[*modules, dense, Normalize()], device="cpu").to(dtype)
        other = " or --dtype float32" if dtype == torch.float16 else ""  # Whose largest number is 65,504.
        check_weights(served, f"the model for {folder}", f"take another checkpoint{other}")
        served.save_pretrained(str(target), create_model_card=False)
        _update(target / "config.json", dtype="float32")
        if backend := getattr(processor, "backend", None):  # The other one differs from it by a gray level.
            _update(target / "sentence_bert_config.json", processor_kwargs={"backend": backend})
        for name, content in (files or {}).items():
            (target / name).write_bytes(content)
        share(target)
        if folder.is_dir():
            folder.rename(scratch / "before")  # Until now whole, and gone with the scratch: no time without a model.
        target.rename(folder)


def pooling_modes(pooling: Pooling) -> tuple[PoolingMode, ...]:
    """The modes of the standard Pooling module whose concatenation holds what `pooling` computes."""
    if pooling.kind == "cls":
        return ("cls",)
    if pooling.kind == "mean_max":
        return ("mean", "max")
    return ("cls", "mean") if pooling.num_prefix_tokens == 1 else ("mean",)


def folded_weight(weight: torch.Tensor, pooling: Pooling, num_tokens: int) -> torch.Tensor:
    """Head f for the concatenation of `pooling_modes`, exactly equal to the head on the pooled vector.

    mean + max is one weight applied to both halves. The mean over patches, n of them beside one class token, is
    ((n + 1) mean over all - class token) / n.

    Args:
        weight: (d, C).
        pooling: how the vector of width C was pooled.
        num_tokens: tokens of an image, class token included.
    """
    if pooling.kind == "mean_max":
        return torch.cat([weight, weight], dim=1)
    if pooling.kind == "mean" and pooling.num_prefix_tokens == 1:
        patches = num_tokens - 1
        return torch.cat([-weight / patches, weight * (num_tokens / patches)], dim=1)
    return weight


def _num_tokens(embedder: Embedder, processor: Any) -> int:
    from stml_semi.data.views import view_size
    from stml_semi.models.trial import try_backbone

    if embedder.pooling.kind != "mean" or embedder.pooling.num_prefix_tokens != 1:
        return 0
    return try_backbone(embedder.backbone, view_size(processor), flag="--backbone").last_hidden_state.shape[1]


def _update(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars over single files and no advice about modules that are put together on purpose."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    transformers_logging.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()
