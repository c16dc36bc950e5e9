"""Images per second and core, from encoded bytes to two training views, against bare decoding and the usual way.

    python benchmarks/input.py                     500 x 375 JPEG images, 224 px views: a minute on a core
    python benchmarks/input.py --width 1600 --height 1200

The usual way opens an image with Pillow and makes every view with torchvision's transforms v2: random resized crop,
flip, float, normalization. Ours decodes once and crops twice; views stay uint8, since the device normalizes. The crops
of both come from the same distribution. Ours is what training runs on, `data.loading.Steps`: finding the image in its
table, its random numbers and the copy into the batch are in the figures.

All ways take turns in one run on one thread; times are CPU time of the process, a ratio is the median of the ratios of
each turn. Ratios carry over to other machines, seconds do not.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

import stml_semi.data.images as reader
from stml_semi.data.batches.loading import Steps, ViewSettings, one_batch_of
from stml_semi.data.image_table import ImageTable, image_dataset
from stml_semi.data.picture_cache import cached

NUM_PICTURES = 64
USUAL, BARE, OURS, PILLOW, RAW, RAW_SMALL, JPEG_SMALL = WAYS = (
    "Pillow and torchvision v2, float, normalized per view",
    "bare decoding with Pillow",
    "this project",
    "this project without simplejpeg",
    "this project, --cache-images raw",
    "this project, --cache-images raw --cache-side 256",
    "this project, --cache-images jpeg --cache-side 256",
)


class Setting(NamedTuple):
    width: int
    height: int
    size: int
    quality: int
    repeats: int


def photo(seed: int, setting: Setting) -> bytes:
    """A JPEG with as many bytes for its pixels as photographs have: soft shapes, finer ones on them, and noise."""
    rng = np.random.default_rng(seed)
    shape = (setting.width, setting.height)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 255, side, np.uint8)).resize(shape, Image.Resampling.BICUBIC))
        for side in ((12, 16, 3), (setting.height // 4, setting.width // 4, 3))
    ]
    pixels = 0.7 * layers[0] + 0.3 * layers[1] + rng.normal(0, 6, layers[0].shape)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=setting.quality)
    return buffer.getvalue()


def table_of(pictures: list[bytes]) -> ImageTable:
    import pyarrow
    from datasets import Image as ImageFeature

    rows = pyarrow.array([{"bytes": data, "path": None} for data in pictures])
    dataset = image_dataset(pyarrow.table({"image": rows})).cast_column("image", ImageFeature(decode=False))
    return ImageTable("pictures", dataset, None, ())


def steps_of(table: ImageTable, setting: Setting) -> Steps:
    """A step shows every image once, in two views."""
    return one_batch_of(np.arange(len(table)), table, ViewSettings("paper", (setting.size, setting.size), 2, seed=0))


def ways_of(setting: Setting, folder: Path) -> dict[str, Callable[[int], object]]:
    """Way -> what it does in a turn, with all images."""
    os.environ["HF_DATASETS_CACHE"] = str(folder)  # Before datasets is imported.
    pictures = [photo(seed, setting) for seed in range(NUM_PICTURES)]
    print(f"{sum(map(len, pictures)) / len(pictures) / 1e3:.0f} KB an image")
    table = table_of(pictures)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(setting.size, scale=(0.16, 1)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    def usual(turn: int) -> list[torch.Tensor]:
        images = (Image.open(io.BytesIO(data)).convert("RGB") for data in pictures)
        return [torch.stack([transform(image), transform(image)]) for image in images]

    def bare(turn: int) -> None:
        for data in pictures:
            Image.open(io.BytesIO(data)).load()

    def without_simplejpeg(turn: int) -> object:
        found, reader.simplejpeg = reader.simplejpeg, None
        try:
            return uncached[turn]
        finally:
            reader.simplejpeg = found

    uncached = steps_of(table, setting)
    kept = {
        RAW: cached(table, "raw", 2 * setting.size, num_workers=0),
        RAW_SMALL: cached(table, "raw", 256, num_workers=0),
        JPEG_SMALL: cached(table, "jpeg", 256, num_workers=0),
    }
    ways: dict[str, Callable[[int], object]] = {USUAL: usual, BARE: bare}
    if reader.simplejpeg is not None:
        ways[OURS] = uncached.__getitem__
    ways[PILLOW] = without_simplejpeg
    return ways | {name: steps_of(replace(table, cache=own.cache), setting).__getitem__ for name, own in kept.items()}


def measure(ways: dict[str, Callable[[int], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds for an image, turn by turn: what slows the machine down slows all ways."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.process_time()
            way(turn)
            if turn:  # Libraries and caches warm up in the first turn.
                seconds[name].append((time.process_time() - start) / NUM_PICTURES * 1e3)
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--repeats", type=int, default=21)
    setting = Setting(**vars(parser.parse_args()))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(ways_of(setting, Path(folder)), setting.repeats)
    ours = found.get(OURS, found[PILLOW])
    heads = f"{'ms':>6s} {'a second':>9s} {'usual way':>10s} {'decoding':>9s} {'uncached':>9s}"
    print(f"{'two views of a picture':56s} {heads}")
    for name, times in found.items():
        milliseconds = statistics.median(times)
        print(
            f"{name:56s} {milliseconds:6.2f} {1e3 / milliseconds:9.0f} {ratio(found[USUAL], times):9.2f}x "
            f"{ratio(times, found[BARE]):8.2f}x {ratio(ours, times):8.2f}x"
        )
    print("usual way, uncached: times as fast as that; decoding: times as long as that")


if __name__ == "__main__":
    main()
