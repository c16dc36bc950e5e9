"""A small trial of a backbone before anything relies on it: does it take its images, and is it a function of them?"""

from typing import Any

import torch
from torch import Tensor

from stml_semi.models.tokens import pair
from stml_semi.runtime.errors import BadInput, one_line

_TOLERANCE = 1e-3
"""How far two passes may differ, relative to the largest number: rounding differs by less, another mask by far more."""


def try_backbone(backbone: Any, size: tuple[int, int], *, flag: str) -> Any:
    """The output for two images of noise, after two passes in evaluation mode gave the same.

    Raises:
        BadInput: the backbone does not take RGB images of `size`, is random, or gives NaN.
    """
    name = describe(backbone, flag)
    channels = getattr(backbone.config, "num_channels", 3)
    if channels != 3:
        raise BadInput(f"{name} takes images of {channels} channel{'s' * (channels != 1)}, not RGB: {another(flag)}")
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(next(backbone.parameters()).device)
    was_training = backbone.training
    try:
        # What a backbone draws must not shift the numbers that are drawn after it: the heads.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            backbone.eval()
            outputs = [backbone(pixel_values=pixels) for _ in range(2)]
    except Exception as error:  # Other people's models raise nearly everything.
        raise BadInput(
            f"{name} fails on two RGB images of {size[0]} x {size[1]} px ({one_line(error)}): "
            f"{another(flag) if isinstance(error, TypeError) else _fix(backbone, size, flag)}"
        ) from error
    finally:
        backbone.train(was_training)
    features = getattr(outputs[0], "last_hidden_state", None)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4) or len(features) != 2:
        raise BadInput(f"{name} gives neither a feature map nor tokens for an image: {another(flag)}")
    for key in ("last_hidden_state", "pooler_output"):
        first, second = (getattr(output, key, None) for output in outputs)
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            _check_repeatable(first, second, name, flag)
    return outputs[0]


def _check_repeatable(first: Tensor, second: Tensor, name: str, flag: str) -> None:
    if not (first.isfinite().all() and second.isfinite().all()):
        raise BadInput(f"{name} gives NaN or infinity for ordinary images: its weights are damaged; {another(flag)}")
    if first.shape != second.shape or (first - second).abs().max() > _TOLERANCE * first.abs().max():
        raise BadInput(
            f"{name} is random: two passes over the same image give different features, so it cannot retrieve: "
            f"{another(flag)}"
        )


def describe(backbone: Any, flag: str) -> str:
    """The flag and the backbone's name, as messages begin."""
    return f"{flag} {backbone.name_or_path or backbone.config.model_type}:"


def another(flag: str) -> str:
    """The last resort."""
    return f"take another {flag.removeprefix('--').removesuffix('-weights')}"


def _fix(backbone: Any, size: tuple[int, int], flag: str) -> str:
    made_for = pair(getattr(backbone.config, "image_size", None))
    squeezed = made_for is not None and made_for[0] == made_for[1] and size[0] != size[1]  # No --image-size does that.
    if flag == "--model" or squeezed:
        if made_for is None or made_for == size:
            return another(flag)
        return f'give it the "size" {made_for[0]} x {made_for[1]} in its preprocessor_config.json'
    if backbone.config.model_type == "timm_wrapper":  # --image-size is not for them.
        return another(flag)
    if made_for is None or made_for == size:
        return f"take another --image-size or another {flag.removeprefix('--').removesuffix('-weights')}"
    return f"set --image-size {max(made_for)}"
