"""A backbone for another input size than it was made for."""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stml_semi.data.views import made_sizes
from stml_semi.models.backbone import Backbone
from stml_semi.models.tokens import pair
from stml_semi.runtime.errors import BadInput, one_line


def resize(backbone: Backbone, image_size: int) -> Backbone:
    """The same backbone for another input size, saved as such: whoever opens the export needs no extra argument.

    Args:
        backbone: as it was opened.
        image_size: the longer side of its input in pixels; rectangles keep their shape.

    Raises:
        BadInput: its positions cannot be resampled, or its image processor makes images of any shape.
    """
    model = backbone.model
    if model.config.model_type == "timm_wrapper":
        return _resize_timm(backbone, image_size)
    patch = pair(getattr(model.config, "patch_size", None)) or (1, 1)
    processor = _resized_processor(backbone.processor, image_size, patch)
    native = getattr(model.config, "image_size", None)
    wanted = image_size if native is None or isinstance(native, int) else list(made_sizes(processor).pop()[1:])
    if native is None or native == wanted:
        return Backbone(model, processor)
    weights = model.state_dict()
    model.config.image_size = wanted
    options = {"add_pooling_layer": False} if getattr(model, "pooler", 0) is None else {}
    resized = type(model)(model.config, **options)
    for key, value in resized.state_dict().items():
        if key in weights and weights[key].shape != value.shape:
            grids = [
                _grid(size, patch, relative=key.endswith("relative_position_bias_table")) for size in (native, wanted)
            ]
            weights[key] = _resample(weights[key], value.shape, *grids, prefix_last="relative" in key)
    resized.load_state_dict(weights)
    return Backbone(resized.eval(), processor)


def _resize_timm(backbone: Backbone, image_size: int) -> Backbone:
    """Of convolutional models the processor alone; timm resamples positions and windows of the others itself."""
    model, config = backbone.model, backbone.model.config
    native = config.pretrained_cfg["input_size"]
    scale = image_size / max(native[1:])
    height, width = (max(1, round(side * scale)) for side in native[1:])
    config.pretrained_cfg = config.pretrained_cfg | {"input_size": [native[0], height, width]}
    try:
        # PyTorch warns of how timm calls it.
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            if hasattr(model.timm_model, "set_input_size"):
                model.timm_model.set_input_size(img_size=(height, width))
                config.model_args = (config.model_args or {}) | {"img_size": [height, width]}
            model(torch.zeros(1, native[0], height, width))
            # Whoever opens the export builds it from its configuration.
            rebuilt = type(model)(config).state_dict()
        if any(value.shape != rebuilt[name].shape for name, value in model.state_dict().items()):
            raise ValueError("an export of that size could not be opened")
    except Exception as error:  # Models check their input in as many ways as there are models.
        raise BadInput(
            f"--image-size {image_size}: {config.architecture} does not take it ({one_line(error)}); leave the flag "
            "out, or take an id that was trained at the size you want"
        ) from error
    processor = type(backbone.processor)(config.pretrained_cfg, architecture=config.architecture)
    return Backbone(model, processor)


def _resized_processor(processor: Any, image_size: int, patch: tuple[int, int]) -> Any:
    """The processor scaled to another output; one whose output follows the image's shape now resizes and crops."""
    settings = processor.to_dict()
    square = {"height": image_size, "width": image_size}
    crop = {"do_resize": True, "do_center_crop": True, "size": {"shortest_edge": image_size}, "crop_size": square}
    squeeze = {"do_resize": True, "size": square}
    for change in (_scaled_sizes(processor, image_size, patch), crop, squeeze):
        made = type(processor).from_dict({**settings, **change})
        try:
            fixed = len(made_sizes(made)) == 1
        except Exception:  # Of a size that it does not take.
            fixed = False
        if fixed:
            return made
    raise BadInput(
        f"--image-size: {type(processor).__name__} makes images of any shape, whatever its size; take another backbone"
    )


def _scaled_sizes(processor: Any, image_size: int, patch: tuple[int, int]) -> dict[str, dict[str, int]]:
    """size and crop_size for another output, the share that the crop leaves out (256 -> 224, say) unchanged."""
    fields = {}
    for name in ("size", "crop_size"):
        size = getattr(processor, name, None)
        if size:
            fields[name] = {key: value for key, value in dict(size).items() if value is not None}
    cropped = fields.get("crop_size") if getattr(processor, "do_center_crop", False) else None
    if not (output := cropped or fields.get("size")):
        return {}
    scale = image_size / max(output.values())
    scaled = {name: {key: round(value * scale) for key, value in size.items()} for name, size in fields.items()}
    made = scaled["crop_size" if cropped else "size"]
    if len(set(made.values())) == 2 and made.keys() == {"height", "width"}:
        # The shorter side of a rectangle holds whole patches: a ViT would leave the rest of the image out.
        side, of = min(("height", patch[0]), ("width", patch[1]), key=lambda name: made[name[0]])
        made[side] = max(1, round(output[side] * scale / of)) * of
    return scaled


def _grid(size: Any, patch: tuple[int, int], *, relative: bool) -> tuple[int, int]:
    """Patches of an image, down and across; with `relative`, the offsets between two of them."""
    height, width = (side // part for side, part in zip(pair(size) or (0, 0), patch, strict=True))
    return (2 * height - 1, 2 * width - 1) if relative else (height, width)


def _resample(
    positions: Tensor, shape: torch.Size, old: tuple[int, int], new: tuple[int, int], *, prefix_last: bool
) -> Tensor:
    """Bicubic resampling of a grid of position embeddings (..., prefix + h w, d); class tokens stay as they are.

    Args:
        positions: of the old grid.
        shape: of the result.
        old: height and width of the grid.
        new: the same, of the result.
        prefix_last: what belongs to class tokens stands behind the grid (BEiT's tables), not before it.
    """
    extra = positions.shape[-2] - math.prod(old)
    if extra < 0 or shape[-2] - math.prod(new) != extra or positions.shape[-1] != shape[-1]:
        raise BadInput("--image-size: this backbone's positions do not resample; leave --image-size out")
    flat = positions.reshape(-1, positions.shape[-1])
    special, grid = (flat[math.prod(old) :], flat[: math.prod(old)]) if prefix_last else (flat[:extra], flat[extra:])
    grid = F.interpolate(grid.T.reshape(1, -1, *old), size=new, mode="bicubic", align_corners=False)
    parts = [special, grid.reshape(-1, math.prod(new)).T]
    return torch.cat(parts[::-1] if prefix_last else parts).reshape(shape)
