"""Small images for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int, *, seed: int = 0, side: int = 24) -> list[Path]:
    """PNG files 0.png, 1.png, ... that look alike for one seed: a class."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (4, 4, 3))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        pixels = np.clip(base + rng.normal(0, 25, base.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(paths[-1])
    return paths
