"""How a backbone's output becomes one vector."""

from typing import Any, NamedTuple

from torch import Tensor

from stml_semi.config import PoolingKind
from stml_semi.models.tokens import first_is_class_token, num_prefix_tokens
from stml_semi.models.trial import another, describe, try_backbone
from stml_semi.runtime.errors import BadInput

_POOLER_PARTS = {"post_layernorm", "attn_pool", "fc_norm"}


class Pooling(NamedTuple):
    """How a backbone's output becomes one vector."""

    kind: PoolingKind
    """cls, mean, mean_max or pooler; never auto."""
    num_prefix_tokens: int
    """Tokens before the patches (class and register tokens); 0 for feature maps."""
    num_features: int


class _Output(NamedTuple):
    """What a trial showed of a backbone's output."""

    num_features: int
    is_map: bool
    only_pooler: bool
    """A map with its channels last: the standard modules of an export pool (B, C, H, W), so its own pooler must."""
    num_prefix_tokens: int
    has_class_token: bool
    pooled: int | None
    """Width of the one vector that the model pools by itself; None if there is none."""


def resolve_pooling(pooling: PoolingKind, backbone: Any, size: tuple[int, int], *, flag: str = "--backbone") -> Pooling:
    """The pooling that fits a backbone, found by trying it on images of `size`.

    Raises:
        BadInput: the backbone has no such output, or none to rely on: it fails, or is random.
    """
    output = _inspect(backbone, size, flag)
    kind, prefix = backbone.config.model_type, output.num_prefix_tokens
    if pooling == "auto":
        # A mean that leaves registers out, or with a norm or attention of its own, is nothing but the model's own.
        own = (prefix > 0 and not output.has_class_token) or _has_trained_pooler(backbone)
        if output.only_pooler or (own and not output.is_map and output.pooled is not None):
            pooling = "pooler"
        elif output.is_map:
            pooling = "mean_max"
        else:
            pooling = "cls" if output.has_class_token else "mean"
    if output.only_pooler and pooling != "pooler":
        raise BadInput(f"--pooling {pooling}: {kind} gives maps with channels last; use pooler or auto")
    if pooling == "cls" and not output.has_class_token:
        raise BadInput(f"--pooling cls: {kind} has no class token; use {'mean' if prefix else 'mean or mean_max'}")
    if pooling == "mean_max" and prefix:
        fix = "cls or mean" if output.has_class_token else "mean"
        raise BadInput(f"--pooling mean_max is for feature maps, and {kind} has tokens beside its patches: use {fix}")
    if pooling == "pooler":
        if output.pooled is None:
            raise BadInput(
                f"--pooling pooler: {kind} has no pooler; use {'mean_max' if output.is_map else 'cls or mean'}"
            )
        return Pooling(pooling, prefix, output.pooled)
    return Pooling(pooling, prefix, output.num_features)


def _inspect(backbone: Any, size: tuple[int, int], flag: str) -> _Output:
    output, name = try_backbone(backbone, size, flag=flag), describe(backbone, flag)
    features = output.last_hidden_state
    is_map = features.ndim == 4
    channels_last = not is_map or _channels_last(backbone, features, size, name)
    width = _checked_width(backbone, features, -1 if channels_last else 1, name)
    prefix = 0 if is_map else num_prefix_tokens(backbone, features.shape[1], size)
    if prefix is None:
        raise BadInput(
            f"{name} gives {features.shape[1]} tokens for {size[0]} x {size[1]} px, which fit no grid of patches, so "
            f"its class token cannot be found: {another(flag)}"
        )
    pooled = _pooler_width(output)
    if is_map and channels_last and pooled is None:
        raise BadInput(
            f"{name} gives maps with channels last and has no pooler, so no export could serve it: {another(flag)}"
        )
    has_class_token = prefix > 0 and first_is_class_token(backbone)
    return _Output(width, is_map, is_map and channels_last, prefix, has_class_token, pooled)


def _pooler_width(output: Any) -> int | None:
    """Width of the one vector that a model pools by itself; None if there is none, or a map."""
    pooled = getattr(output, "pooler_output", None)
    if not isinstance(pooled, Tensor) or pooled.ndim < 2 or pooled.flatten(1).shape[1] != pooled.shape[1]:
        return None
    return pooled.shape[1]


def _has_trained_pooler(backbone: Any) -> bool:
    """CLIP and its kin norm the class token, SigLIP and AIMv2 attend to the patches, timm's norm their mean, in the
    pooler alone."""
    names = {name.rpartition(".")[2] for name, module in backbone.named_modules() if list(module.parameters())}
    return bool(getattr(backbone.config, "use_head", False)) or not names.isdisjoint(_POOLER_PARTS)


def _channels_last(backbone: Any, maps: Tensor, size: tuple[int, int], name: str) -> bool:
    """Whether maps are (B, H, W, C) and not (B, C, H, W): what timm says, else the width, else the shape of the image.

    Raises:
        BadInput: none of these tells.
    """
    declared = getattr(getattr(backbone, "timm_model", None), "output_fmt", None)
    if declared is not None:
        return str(getattr(declared, "value", declared)) == "NHWC"
    _, first, middle, last = maps.shape
    width = _declared_width(backbone)
    if (first == width) != (last == width):
        return last == width
    is_first, is_last = _is_grid(middle, last, size), _is_grid(first, middle, size)
    if is_first != is_last:
        return is_last
    if first == width:  # And the last as well: torch's order.
        return False
    raise BadInput(f"{name} gives maps of {first} x {middle} x {last}, of which no axis is known to be the channels")


def _is_grid(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether a map of such a height and width has the shape of the image, up to rounding."""
    return abs(height * size[1] / size[0] - width) <= 1 and height <= size[0] and width <= size[1]


def _declared_width(backbone: Any) -> int | None:
    """Channels of the last features, as the model says."""
    if (timm_model := getattr(backbone, "timm_model", None)) is not None:
        return timm_model.num_features
    for name in ("neck_hidden_sizes", "hidden_sizes", "embed_dims", "hidden_size"):
        value = getattr(backbone.config, name, None)
        if value:
            return value[-1] if isinstance(value, list | tuple) else value
    return None


def _checked_width(backbone: Any, features: Tensor, axis: int, name: str) -> int:
    """The width of the channel axis. transformers' configurations name that of an inner layer at times: timm's do not.

    Raises:
        BadInput: the model says otherwise.
    """
    width, declared = features.shape[axis], _declared_width(backbone)
    elsewhere = declared in features.shape[1:]
    if width != declared and declared is not None and (elsewhere or hasattr(backbone, "timm_model")):
        shape = " x ".join(map(str, features.shape[1:]))
        raise BadInput(f"{name} gives features of {shape} with {width} channels, but says that it has {declared}")
    return width


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
