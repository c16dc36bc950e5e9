"""What is known of data sets that have a name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_RECALL_AT = (1, 2, 4, 8)
_EMBEDDED = Path(__file__).with_name("embedded")


@dataclass(frozen=True)
class Benchmark:
    """One data set: where its splits are, and what is customary with it."""

    name: str
    """What the user types."""
    title: str
    splits: Mapping[str, Path]
    """Split -> parquet file with a column `image`, and `label` if labeled."""
    labeled: bool
    eval: str
    """The split it is evaluated on, as `name:split`."""
    recall_at: tuple[int, ...] = DEFAULT_RECALL_AT
    disjoint_classes: bool = True
    """Whether no class of the eval split occurs in any split meant for training."""
    backbone: str | None = None
    """What `--backbone auto` means here; None leaves it to the general default."""
    augment: str = "paper"
    """What `--augment auto` means here."""
    learning_rate: float | None = None
    """Default with unlabeled images, where it is not the general one."""
    license: str = ""
    """What a user has to know before publishing results or models."""


_KANJI_LICENSE = "Pictures of characters, drawn with freely licensed typefaces (listed in scripts/build_kanji.py)."
# A small ResNet bears more than the large pretrained models that the general default is for.
_KANJI_LEARNING_RATE = 1e-3

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="kanji",
            title="Kanji in 22 typefaces: a class is a character",
            splits={split: _EMBEDDED / f"kanji_{split}.parquet" for split in ("train", "test")},
            labeled=True,
            eval="kanji:test",
            backbone="tiny-resnet",
            augment="glyph",
            learning_rate=_KANJI_LEARNING_RATE,
            license=_KANJI_LICENSE,
        ),
        Benchmark(
            name="kanji-more",
            title="Further kanji in the same typefaces, without labels",
            splits={"train": _EMBEDDED / "kanji_more.parquet"},
            labeled=False,
            eval="kanji:test",
            backbone="tiny-resnet",
            augment="glyph",
            learning_rate=_KANJI_LEARNING_RATE,
            license=_KANJI_LICENSE,
        ),
    )
}
