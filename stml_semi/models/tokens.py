"""What stands before the patches in a backbone's output, and the shape of the grid that the patches form."""

import math
from typing import Any

from torch import nn

_CLASS = {"cls_token", "class_token", "class_embedding"}
_REGISTERS = {"reg_token", "register_tokens"}
_SPECIAL = {*_CLASS, *_REGISTERS, "dist_token", "distillation_token"}
_STRIDES = range(2, 65)


def num_special_tokens(model: Any) -> int:
    """Class, distillation and register tokens: what timm says, else counted in the weights."""
    declared = getattr(getattr(model, "timm_model", None), "num_prefix_tokens", None)
    if declared is not None:
        return declared
    if model.config.model_type == "dinov3_convnext":  # The mean of its map takes the place of a class token.
        return 1
    parameters = [p for name, p in model.named_parameters() if name.rpartition(".")[2] in _SPECIAL]
    return sum(math.prod(p.shape[:-1]) for p in parameters)


def first_is_class_token(model: nn.Module) -> bool:
    """Whether the first of the tokens before the patches is a class token: timm has ViTs with registers alone."""
    names = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if parameter.numel()}
    return not names.isdisjoint(_CLASS) or names.isdisjoint(_REGISTERS)


def pair(value: Any) -> tuple[int, int] | None:
    """Height and width from a number or two of them, as configurations spell sizes; None if it is neither."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value[0], value[1]
    return None


def num_prefix_tokens(model: nn.Module, tokens: int, size: tuple[int, int]) -> int | None:
    """Tokens before the patches, of an output for an image of `size`; None if the rest is no grid of patches.

    The number of tokens alone is ambiguous: 4 x 8 patches could also be 5 x 5 patches and seven other tokens.
    """
    config = getattr(model, "config", None)
    patch = pair(getattr(config, "patch_size", None))
    if patch and not hasattr(config, "depths"):
        prefix = tokens - (size[0] // patch[0]) * (size[1] // patch[1])
        return prefix if prefix >= 0 else None
    # Pyramids (Swin) and timm's models do not say at which stride they end.
    height, width = size
    grids = {(height // s) * (width // s) for s in _STRIDES}
    grids |= {math.ceil(height / s) * math.ceil(width / s) for s in _STRIDES}  # Those that pad.
    special = num_special_tokens(model)
    if tokens == special:  # PiT returns its class tokens alone.
        return special
    # CoaT has one class token under other names.
    return next((prefix for prefix in (special, 0, 1) if tokens - prefix in grids), None)
