"""Training views (augmented) and the evaluation view (the backbone's own image processor).

Training views are made as uint8; the device turns them into what the backbone expects with `normalization`.
All of their randomness comes from one generator, made by `view_rng` from the place of the view in the run.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stml_semi.data.framing import SQUASH, Framing, frame, resize
from stml_semi.runtime.errors import BadInput, one_line

AUGMENTS: tuple[str, ...] = ("paper", "strong", "glyph", "none")

# Of random crops: the least share of the area, and the least side over the other.
_SMALLEST_AREA, _NARROWEST = 0.16, 3 / 4
_GRAY = torch.tensor([0.299, 0.587, 0.114])
# Images per call of the processor: it stacks images of one size, which pays until they outgrow the caches.
_EVAL_CHUNK_BYTES = 2**20


class Normalization(NamedTuple):
    """`(pixels / 255 - mean) / std`, per channel."""

    mean: Tensor
    """(3,) float32."""
    std: Tensor
    """(3,) float32."""


def view_rng(seed: int, step: int, position: int, view: int) -> np.random.Generator:
    """The randomness of one view: depends on its place in the run, never on worker, process or time.

    (seed, step) is the key of the counter-based Philox generator and (position, view) are the high words of
    its counter: streams cannot overlap, and none is shared with the generators that draw batches.
    """
    key = np.array([seed, step], dtype=np.uint64)
    counter = np.array([0, 0, position, view], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def augment(
    pixels: Tensor, *, preset: str, size: tuple[int, int], rng: np.random.Generator, framing: Framing = SQUASH
) -> Tensor:
    """One random view of an image.

    paper: random resized crop (16-100% of the area, 3/4 to 4/3) and flip, as in the STML paper.
    strong: paper, then color jitter, grayscale and blur.
    glyph: small rotation, shear, zoom and shift, a little contrast; no flip, since writing has a direction.
    none: the whole image, resized.

    Args:
        pixels: (3, H, W) uint8; left as it is.
        preset: one of `AUGMENTS`.
        size: height and width of the view, 2 at least: torch resizes to a width of 1 wrongly.
        rng: source of all randomness.
        framing: what becomes of an image of another shape, where the whole of it is shown (glyph, none).

    Returns:
        (3, *size) uint8; those of crops are channels-last in memory, as `blank_views`.
    """
    match preset:
        case "paper":
            return _crop_and_flip(pixels, size, rng)
        case "strong":
            return _blur(_jitter(_crop_and_flip(pixels, size, rng), rng), rng)
        case "glyph":
            return _wiggle(frame(pixels, size, framing), rng)
        case "none":
            return frame(pixels, size, framing)
    raise BadInput(f"--augment '{preset}' is unknown: choose one of {', '.join(AUGMENTS)}")


def fine_enough(
    height: int, width: int, *, preset: str, size: tuple[int, int], rngs: Iterable[np.random.Generator]
) -> bool:
    """Whether no view of an image of such a height and width would be enlarged: a larger one would not be sharper.

    Args:
        height: pixels.
        width: pixels.
        preset: one of `AUGMENTS`.
        size: height and width of views.
        rngs: as `augment` will get for the image's views; they are used up.
    """
    if height < size[0] or width < size[1]:
        return False
    if preset not in ("paper", "strong"):
        return True
    boxes = (_random_box(height, width, rng) for rng in rngs)
    return all(box_height >= size[0] and box_width >= size[1] for _, _, box_height, box_width in boxes)


def blank_views(*shape: int, size: tuple[int, int]) -> Tensor:
    """Room for views, (*shape, 3, *size) uint8, channels-last in memory as views and convolutions are."""
    return torch.empty((*shape, *size, 3), dtype=torch.uint8).movedim(-1, -3)


def _crop_and_flip(pixels: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    height, width = pixels.shape[1:]
    top, left, box_height, box_width = _random_box(height, width, rng)
    view = resize(pixels[:, top : top + box_height, left : left + box_width], size)
    return view[None].flip(-1)[0] if rng.random() < 0.5 else view


def _random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of 16-100% of the area, at most 4:3 or 3:4 in shape."""
    for _ in range(10):
        share, shape, down, right = rng.random(4).tolist()  # At once: each call costs as much as drawing.
        area = height * width * (_SMALLEST_AREA + (1 - _SMALLEST_AREA) * share)
        ratio = _NARROWEST ** (2 * shape - 1)
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(down * (height - box_height + 1)), int(right * (width - box_width + 1))
            return top, left, box_height, box_width
    # Strips hold no such box: the largest in their middle.
    box_width, box_height = min(width, max(1, height * 4 // 3)), min(height, max(1, width * 4 // 3))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _jitter(view: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue in 80% of the views, gray in 20%: all in one 3 x 3 matrix."""
    matrix, offset = torch.eye(3), torch.zeros(3, 1)
    values = view.reshape(3, -1).float()
    if rng.random() < 0.8:
        brightness, contrast, saturation = rng.uniform(0.6, 1.4, 3).tolist()
        gray = _GRAY.expand(3, 3)
        hue = _hue_rotation(rng.uniform(-0.1, 0.1))
        matrix = (saturation * torch.eye(3) + (1 - saturation) * gray) @ hue * brightness
        middle = float(_GRAY @ matrix @ values.mean(1))
        matrix, offset = contrast * matrix, offset + (1 - contrast) * middle
    if rng.random() < 0.2:
        matrix, offset = _GRAY.expand(3, 3) @ matrix, _GRAY.expand(3, 3) @ offset
    mixed = torch.addmm(offset, matrix, values)
    return mixed.round_().clamp_(0, 255).to(torch.uint8).view(view.shape)


def _hue_rotation(turns: float) -> Tensor:
    """(3, 3) matrix that turns colors around the gray axis, so grays stay what they are."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    rest, spin = (1 - cos) / 3, sin / math.sqrt(3)
    own, left, right = cos + rest, rest - spin, rest + spin
    return torch.tensor([[own, left, right], [right, own, left], [left, right, own]])


def _blur(view: Tensor, rng: np.random.Generator) -> Tensor:
    """Gaussian blur of half the views, sigma 0.1 to 2 pixels at a side of 224 and in proportion at others."""
    if rng.random() < 0.5:
        return view
    height, width = view.shape[1:]
    sigma = rng.uniform(0.1, 2.0) * min(height, width) / 224
    radius = min(math.ceil(2.5 * sigma), min(height, width) - 1)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    weights = [w / sum(weights) for w in weights]
    # Sums of shifted copies: several times faster on a CPU than a convolution of so few channels.
    values = F.pad(view[None].float(), [radius] * 4, mode="reflect")[0] if radius else view.float()
    for dim, length in ((1, height), (2, width)):
        blurred = torch.zeros_like(values.narrow(dim, 0, length))
        for k, weight in enumerate(weights):
            blurred.add_(values.narrow(dim, k, length), alpha=weight)
        values = blurred
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _wiggle(view: Tensor, rng: np.random.Generator) -> Tensor:
    """A small affine map around the middle, filled up with the color of the border, and a little contrast."""
    angle, shear = math.radians(rng.uniform(-10, 10)), math.tan(math.radians(rng.uniform(-8, 8)))
    zoom = rng.uniform(0.85, 1.1)
    right, down = rng.uniform(-0.2, 0.2, 2)  # A side is 2 long in these units: up to a tenth of it.
    contrast, brightness = rng.uniform(0.8, 1.2), rng.uniform(-20, 20)
    height, width = view.shape[1:]
    cos, sin, aspect = math.cos(angle) / zoom, math.sin(angle) / zoom, width / height
    # From places in the view to places in the image. Both axes run from -1 to 1: rotation needs the aspect.
    rows = [[cos, (sin + shear * cos) / aspect, -right], [-sin * aspect, cos - shear * sin, -down]]
    matrix = torch.tensor([rows], dtype=torch.float32)
    grid = F.affine_grid(matrix, [1, 3, height, width], align_corners=False)
    border = _border_color(view)
    moved = F.grid_sample(view[None].float() - border, grid, mode="bilinear", align_corners=False)[0]
    middle = (1 - contrast) * 127.5 + brightness
    return moved.add_(border).mul_(contrast).add_(middle).round_().clamp_(0, 255).to(torch.uint8)


def _border_color(view: Tensor) -> Tensor:
    """(3, 1, 1) float32: the median of the outermost pixels, per channel."""
    edges = torch.cat([view[:, 0], view[:, -1], view[:, :, 0], view[:, :, -1]], dim=1)
    return edges.median(dim=1).values.float()[:, None, None]


def eval_view(image: Image.Image, processor: Any) -> Tensor:
    """What the backbone was made for: its own image processor, nothing else. (3, h, w) float32.

    Args:
        image: RGB.
        processor: an image processor of `transformers`.
    """
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


def eval_views(images: list[Image.Image], processor: Any) -> Tensor:
    """`eval_view` of every image, stacked; faster where views are small. (N, 3, h, w) float32.

    For processors that make views of one size, which `view_size` finds out; at least one image.
    """
    first = eval_view(images[0], processor)
    views = first.new_empty((len(images), *first.shape))
    views[0] = first
    per_call = max(1, _EVAL_CHUNK_BYTES // (first.numel() * first.element_size()))
    for start in range(1, len(images), per_call):
        chunk = images[start : start + per_call]
        views[start : start + len(chunk)] = processor(images=chunk, return_tensors="pt")["pixel_values"]
    return views


def view_problem(image: Image.Image, processor: Any) -> str | None:
    """Why a processor makes no view of an image (a strip of which padding leaves no pixel); None if it does."""
    try:
        eval_view(image, processor)
    except (RuntimeError, ValueError) as error:
        return f"{image.width} x {image.height} pixels: the backbone's image processor fails on it ({one_line(error)})"
    return None


def view_size(processor: Any, *, flag: str = "--backbone") -> tuple[int, int]:
    """Height and width of what the processor makes of any image.

    Found by trying it: sizes are spelled in a dozen ways, and some processors crop without saying so.

    Args:
        processor: an image processor of `transformers`.
        flag: what the user named the backbone with; after it perhaps its name.

    Raises:
        BadInput: the size follows the image, or the result is no RGB image.
    """
    name = f"{flag}: its image processor ({type(processor).__name__})"
    fix = (
        "set --image-size, and images are resized and cropped to it"
        if flag.startswith("--backbone")
        else 'set "do_resize": true and a "size" of "height" and "width" in its preprocessor_config.json'
    )
    try:
        made = made_sizes(processor)
    except Exception as error:  # It calls what its file says.
        raise BadInput(f"{name} fails on RGB images ({one_line(error)}): {fix}") from error
    if len(made) > 1:
        raise BadInput(f"{name} keeps the size or the shape of images, which cannot be put in one batch: {fix}")
    channels, height, width = made.pop()
    if channels != 3:
        raise BadInput(
            f"{name} makes images of {channels} channels, not RGB: take another {flag.split()[0].removeprefix('--')}"
        )
    return height, width


def made_sizes(processor: Any) -> set[tuple[int, ...]]:
    """Channels, height and width of what the processor makes of images of three shapes.

    Raises:
        ValueError: it makes no images (NaFlex processors make patches). Whatever else the processor raises.
    """
    sizes = ((300, 300), (400, 300), (200, 500))
    made = {tuple(eval_view(Image.new("RGB", size), processor).shape) for size in sizes}
    if any(len(shape) != 3 for shape in made):
        raise ValueError("it makes no image of channels, height and width")
    return made


def normalization(processor: Any) -> Normalization:
    """The mean and std with which `(pixels / 255 - mean) / std` is what the processor does to colors.

    Found by showing it black, white and gray: that covers rescale_factor, do_rescale and do_normalize, and
    processors that keep their numbers elsewhere.

    Raises:
        BadInput: the processor does something else to colors.
    """
    black, white, gray = (_middle_color(processor, level) for level in (0, 255, 51))
    std = 1 / (white - black)
    mean = -black * std
    if not (mean.isfinite() & std.isfinite()).all():
        raise BadInput(
            f"--backbone: {type(processor).__name__} gives black and white the same or no value: correct image_mean, "
            f"image_std and rescale_factor in its preprocessor_config.json"
        )
    if not torch.allclose((0.2 - mean) / std, gray, atol=1e-4):
        raise BadInput(
            f"--backbone: {type(processor).__name__} does more to colors than subtract a mean and "
            f"divide by a std, so training views cannot match it: take another backbone"
        )
    return Normalization(mean.float(), std.float())


def _middle_color(processor: Any, level: int) -> Tensor:
    """(3,) float64: what becomes of a gray level; in the middle, as some processors pad."""
    view = eval_view(Image.new("RGB", (64, 64), (level,) * 3), processor)
    return view[:, view.shape[1] // 2, view.shape[2] // 2].double()
