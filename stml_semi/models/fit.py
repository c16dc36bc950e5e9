"""A backbone whose image processor crops, pads or squashes images of another shape."""

from collections.abc import Iterator
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from stml_semi.config import Fit
from stml_semi.data.framing import Framing
from stml_semi.data.views import eval_view, normalization, view_size
from stml_semi.models.backbone import Backbone
from stml_semi.runtime.errors import BadInput

_INSIDE, _OUTSIDE = (0, 0, 255), (255, 0, 0)
_COLORS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")


def fit_images(backbone: Backbone, fit: Fit) -> Backbone:
    """The same backbone with another processor; exports have it too, so whoever opens one needs no extra argument.

    Args:
        backbone: as it was opened, after another size is set.
        fit: see `TrainConfig.fit`.

    Raises:
        BadInput: no such fit, or the processor cannot do it.
    """
    if fit not in get_args(Fit):
        raise BadInput(f"--fit {fit}: choose one of {', '.join(get_args(Fit))}")
    if fit == "auto" or ((found := framing_of(backbone.processor)) and found.fit == fit):
        return backbone
    size = view_size(backbone.processor)
    for changed in _changed(backbone, fit, size):
        try:
            same = view_size(changed) == size and _same_colors(changed, backbone.processor)
        except BadInput:  # Fields that it does not take.
            continue
        if same and (found := framing_of(changed)) and found.fit == fit:
            return Backbone(backbone.model, changed)
    kind = type(backbone.processor).__name__
    raise BadInput(f"--fit {fit}: the image processor of this backbone ({kind}) cannot do it; leave the flag out")


def framing_of(processor: Any) -> Framing | None:
    """What a processor does to an image that is wider than its views; None: neither of the three.

    Found by showing it one, since there are a dozen ways to ask for each.

    Args:
        processor: an image processor of `transformers` that makes views of one size.
    """
    height, width = view_size(processor)
    image = Image.new("RGB", (4 * width, 2 * height), _INSIDE)
    for left in (0, 4 * width - width // 2):
        image.paste(_OUTSIDE, (left, 0, left + width // 2, 2 * height))
    view = eval_view(image, processor)
    inside, outside = _color(_INSIDE, processor), _color(_OUTSIDE, processor)

    def shows(color: Tensor, row: int, column: int) -> bool:
        return bool((view[:, row, column] - color).norm() < 0.25 * (inside - outside).norm())

    ends = {shows(inside, row, width // 2) for row in (0, -1)}
    if len(ends) > 1 or not shows(inside, height // 2, width // 2):
        return None  # Bars at one end only, or an image that is not in the middle.
    if shows(inside, height // 2, 0):
        return Framing("crop") if ends == {True} else None
    if not shows(outside, height // 2, 0):
        return None
    if ends == {True}:
        return Framing("squash")
    black, white = _color((0, 0, 0), processor), _color((255, 255, 255), processor)
    red, green, blue = (255 * (view[:, 0, width // 2] - black) / (white - black)).round().clamp(0, 255).int().tolist()
    return Framing("pad", (red, green, blue))


def _color(color: tuple[int, int, int], processor: Any) -> Tensor:
    """(3,): what becomes of a color."""
    view = eval_view(Image.new("RGB", (64, 64), color), processor)
    return view[:, view.shape[1] // 2, view.shape[2] // 2]


def _same_colors(one: Any, other: Any) -> bool:
    return all(map(torch.allclose, normalization(one), normalization(other)))


def _changed(backbone: Backbone, fit: Fit, size: tuple[int, int]) -> Iterator[Any]:
    """Processors that may do what is wanted: not all of them follow what they were told."""
    from transformers import ViTImageProcessor

    config = backbone.model.config
    if config.model_type == "timm_wrapper":
        mode: dict[str, Any] = {"crop_mode": {"crop": "center", "pad": "border", "squash": "squash"}[fit]}
        config.pretrained_cfg = config.pretrained_cfg | mode | ({} if fit == "crop" else {"crop_pct": 1.0})
        yield type(backbone.processor)(config.pretrained_cfg, architecture=config.architecture)
        return
    height, width = size
    exact = {"height": height, "width": width}
    match fit:
        case "squash":
            resized, cropped = exact, {"do_center_crop": False}
        case "pad":
            resized, cropped = {"max_height": height, "max_width": width}, {"do_center_crop": True, "crop_size": exact}
        case _ if height != width:
            return  # They know no way to fill a rectangle.
        case _:
            resized, cropped = {"shortest_edge": height}, {"do_center_crop": True, "crop_size": exact}
    changes = {"do_resize": True, "do_pad": False, "size": resized, **cropped}
    settings = backbone.processor.to_dict()
    yield type(backbone.processor).from_dict({**settings, **changes})
    # Some do as they like, such as ConvNeXt's, which ResNets have too. This one does what it is told, in their colors.
    yield ViTImageProcessor.from_dict({**{name: settings[name] for name in _COLORS if name in settings}, **changes})
