"""How a backbone's output becomes one vector."""

from typing import Any, NamedTuple

from torch import Tensor

from stml_semi.config import PoolingKind
from stml_semi.models.backbone import probe
from stml_semi.runtime.errors import BadInput

# Vision towers whose pooler was trained: their class token alone lacks the last norm (CLIP) or does not exist (SigLIP).
_TRAINED_POOLER = {"clip_vision_model", "siglip_vision_model", "siglip2_vision_model"}


class Pooling(NamedTuple):
    """How a backbone's output becomes one vector."""

    kind: PoolingKind
    """cls, mean, mean_max or pooler; never auto."""
    num_prefix_tokens: int
    """Tokens before the patches (class and register tokens); 0 for feature maps."""
    num_features: int


def resolve_pooling(pooling: PoolingKind, backbone: Any, size: tuple[int, int]) -> Pooling:
    """The pooling that fits a backbone, found by looking at its output.

    Raises:
        BadInput: the backbone has no such output.
    """
    output = probe(backbone, size)
    features = output.last_hidden_state
    kind = backbone.config.model_type
    is_map = features.ndim == 4
    prefix = 0 if is_map else _num_prefix_tokens(backbone.config, features.shape[1], size)
    if pooling == "auto":
        if is_map:
            pooling = "mean_max"
        elif kind in _TRAINED_POOLER:
            pooling = "pooler"
        else:
            pooling = "cls" if prefix else "mean"
    if pooling == "cls" and not prefix:
        raise BadInput(f"--pooling cls: {kind} has no class token; use mean or mean_max")
    if pooling == "mean_max" and prefix:
        raise BadInput(f"--pooling mean_max is for feature maps, and {kind} has a class token: use cls or mean")
    if pooling == "pooler" and getattr(output, "pooler_output", None) is None:
        raise BadInput(f"--pooling pooler: {kind} has no pooler; use {'mean_max' if is_map else 'cls or mean'}")
    width = output.pooler_output.flatten(1).shape[1] if pooling == "pooler" else features.shape[1 if is_map else -1]
    return Pooling(pooling, prefix, width)


def _num_prefix_tokens(config: Any, tokens: int, size: tuple[int, int]) -> int:
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and not hasattr(config, "depths"):
        return tokens - (size[0] // patch) * (size[1] // patch)
    # Pyramids (Swin) and wrapped models do not tell their stride: the patches are the largest square.
    return tokens - int(tokens**0.5) ** 2


def pool_output(output: Any, pooling: Pooling) -> Tensor:
    """A backbone's output, with features (B, C, H, W) or (B, prefix + patches, C), as vectors (B, C)."""
    if pooling.kind == "pooler":
        return output.pooler_output.flatten(1)
    features = output.last_hidden_state
    if features.ndim == 4:
        features = features.flatten(2).transpose(1, 2)
    if pooling.kind == "cls":
        return features[:, 0]
    if pooling.kind == "mean_max":
        return features.mean(1) + features.amax(1)
    # With registers the standard modules of an export can only average all tokens: then so do we.
    return features[:, pooling.num_prefix_tokens :].mean(1) if pooling.num_prefix_tokens <= 1 else features.mean(1)
