"""Images and backbones that arms of the study need, made from what is embedded."""

from functools import partial
from pathlib import Path

import numpy as np
from arms import BUDGET, DIVIDED, UNLABELED

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "stml_semi" / "data" / "embedded"
# Typefaces (numbers in the list of scripts/build_kanji.py) that imitate handwriting or brush; the others are printed.
HANDWRITTEN = (2, 3, 4, 15, 16, 17, 18)
NUM_TYPEFACES = 22


def random_backbone(folder: Path) -> Path:
    """tiny-resnet before its pretraining."""
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    target, source = folder / "random-resnet", ROOT / "stml_semi" / "models" / "embedded" / "tiny-resnet"
    if not target.exists():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.from_pretrained(source)).save_pretrained(target)
        AutoImageProcessor.from_pretrained(source).save_pretrained(target)
    return target


def printed(folder: Path) -> Path:
    """The labeled images of printed typefaces."""
    return _by_typeface(folder / "printed.parquet", "kanji_train.parquet", handwritten=False)


def handwritten(folder: Path) -> Path:
    """The test images of handwriting and brush."""
    return _by_typeface(folder / "handwritten.parquet", "kanji_test.parquet", handwritten=True)


def _by_typeface(target: Path, source: str, *, handwritten: bool) -> Path:
    from datasets import Dataset

    if not target.exists():
        table = Dataset.from_parquet(str(EMBEDDED / source))
        rows = [i for i in range(len(table)) if (i % NUM_TYPEFACES in HANDWRITTEN) == handwritten]
        table.select(rows).to_parquet(target)
    return target


def few(folder: Path, count: int) -> Path:
    """The labeled images of the first classes."""
    from datasets import Dataset

    target = folder / f"few-{count}.parquet"
    if not target.exists():
        table = Dataset.from_parquet(str(EMBEDDED / "kanji_train.parquet"))
        kept = sorted(set(table["label"]))[:count]
        table.select([i for i, label in enumerate(table["label"]) if label in kept]).to_parquet(target)
    return target


def part(folder: Path, count: int) -> Path:
    """Random unlabeled images; fewer are among more."""
    from datasets import Dataset

    target = folder / f"part-{count}.parquet"
    if not target.exists():
        table = Dataset.from_parquet(str(EMBEDDED / "kanji_more.parquet"))
        table.select(np.sort(np.random.default_rng(0).permutation(len(table))[:count])).to_parquet(target)
    return target


def foreign(folder: Path) -> Path:
    """As many images as kanji-more has, of other things: digits, pieces of photographs, noise."""
    from datasets import Dataset, Features, Image
    from PIL import Image as Pictures
    from sklearn.datasets import load_digits, load_sample_images

    target = folder / "foreign.parquet"
    if not target.exists():
        rng = np.random.default_rng(0)
        digits = [
            255 - np.kron(digit.reshape(8, 8), np.ones((4, 4))) * 15.9 for digit in load_digits(return_X_y=True)[0]
        ]
        photographs = [np.asarray(Pictures.fromarray(photo).convert("L")) for photo in load_sample_images().images]
        pieces = []
        for _ in range(6_000):
            photo = photographs[rng.integers(len(photographs))]
            side = int(rng.integers(32, 200))
            top, left = (int(rng.integers(0, size - side)) for size in photo.shape)
            piece = Pictures.fromarray(photo[top : top + side, left : left + side])
            pieces.append(np.asarray(piece.resize((32, 32), Pictures.Resampling.BILINEAR)))
        coarse = [
            rng.integers(0, 256, (n, n)).astype(np.uint8) for n in rng.integers(2, 33, 10_560 - 6_000 - len(digits))
        ]
        noise = [np.asarray(Pictures.fromarray(c).resize((32, 32), Pictures.Resampling.BICUBIC)) for c in coarse]
        pictures = [Pictures.fromarray(x.astype(np.uint8)) for x in (*digits, *pieces, *noise)]
        Dataset.from_dict({"image": pictures}, features=Features({"image": Image()})).to_parquet(target)
    return target


def divided(folder: Path, classes: int, each: int, part: str, oracle: str) -> Path:
    """Random classes have some labels each; all other images, theirs too, are unlabeled. One of the two parts."""
    from datasets import Dataset

    target = folder / f"{part}-{classes}x{each}.parquet"
    if not target.exists():
        table = Dataset.from_parquet(oracle)
        rng = np.random.default_rng(0)
        order = rng.permutation(len(table))
        labels = np.asarray(table["label"])[order]
        labeled = np.concatenate([order[labels == c][:each] for c in rng.permutation(np.unique(labels))[:classes]])
        if part == "labels":
            table.select(np.sort(labeled)).to_parquet(target)
        else:
            table.select(np.setdiff1d(order, labeled)).remove_columns("label").to_parquet(target)
    return target


MADE = {"random": random_backbone, "printed": printed, "handwritten": handwritten, "foreign": foreign}
MADE |= {f"few{count}": partial(few, count=count) for count in BUDGET}
MADE |= {f"part{count}": partial(part, count=count) for count in UNLABELED}
FROM_ORACLE = {
    f"{part}{classes}x{each}": partial(divided, classes=classes, each=each, part=part)
    for classes, each in DIVIDED
    for part in ("labels", "others")
}
"""These also take the path of the file of all classes."""
