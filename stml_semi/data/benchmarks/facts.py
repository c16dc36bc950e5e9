"""What is known of data sets that have a name: splits, counts, protocol, terms. Layouts are in archives.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

DEFAULT_RECALL_AT = (1, 2, 4, 8)
_EMBEDDED = Path(__file__).parents[1] / "embedded"


@dataclass(frozen=True)
class Split:
    """One split, and what it has to hold: another count is an error."""

    images: int
    classes: int | None = None
    """None where there are no labels, or the number is not known for sure."""
    queries: int | None = None
    """Images that ask; the others are the gallery they are looked for in. None: each image asks all others."""
    file: Path | None = None
    """A table that ships with the package; None for what the user has to bring."""
    exact: bool = True
    """Whether the counts are the publisher's; those from notes of others are no reason to refuse an archive."""
    optional: bool = False
    """Whether an archive without it is complete."""


class HubCopy(NamedTuple):
    """A trustworthy copy on the Hugging Face hub, with splits `train` and `test` of its own."""

    id: str
    label: str
    """Column of the class."""
    revision: str | None = None
    train_classes: int = 0
    """How many classes, in the order of their numbers, train; 0: the copy's own splits are those of the protocol."""


@dataclass(frozen=True)
class Benchmark:
    """One data set: where its splits are, and what is customary with it."""

    name: str
    """What the user types."""
    title: str
    splits: Mapping[str, Split]
    """The first one is meant where none is named."""
    labeled: bool
    eval: str | None
    """The split it is evaluated on, as `name:split`; None if there is no retrieval protocol."""
    recall_at: tuple[int, ...] = DEFAULT_RECALL_AT
    backbone: str | None = None
    """What `--backbone auto` means here; None leaves it to the general default."""
    augment: str = "paper"
    """What `--augment auto` means here."""
    learning_rate: float | None = None
    """Default with unlabeled images, where it is not the general one."""
    license: str = "read the publisher's terms"
    """What a user has to know before publishing results or models."""
    hub: HubCopy | None = None
    shares: Mapping[str, str] = field(default_factory=dict)
    """Other benchmark -> what is known of its test classes among these images."""

    @property
    def default_split(self) -> str:
        """What the bare name means."""
        return next(iter(self.splits))

    @property
    def embedded(self) -> bool:
        """Whether it ships with the package."""
        return all(split.file for split in self.splits.values())


_KANJI_LICENSE = "Images of characters, drawn with freely licensed typefaces (listed in scripts/build_kanji.py)."
# A small ResNet bears more than the large pretrained models that the general default is for.
_KANJI_LEARNING_RATE = 1e-3
_NON_COMMERCIAL = "non-commercial"
_PROBABLY = "non-commercial (unconfirmed: read the publisher's terms)"


def _table(images: int, classes: int | None, name: str) -> Split:
    return Split(images, classes, file=_EMBEDDED / f"{name}.parquet")


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="kanji",
            title="Kanji in 22 typefaces: a class is a character",
            splits={"train": _table(440, 20, "kanji_train"), "test": _table(4400, 200, "kanji_test")},
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
            splits={"train": _table(10560, None, "kanji_more")},
            labeled=False,
            eval="kanji:test",
            backbone="tiny-resnet",
            augment="glyph",
            learning_rate=_KANJI_LEARNING_RATE,
            license=_KANJI_LICENSE,
        ),
        Benchmark(
            name="cub",
            title="CUB-200-2011: birds; classes 1-100 train, 101-200 test",
            splits={"train": Split(5864, 100), "test": Split(5924, 100)},
            labeled=True,
            eval="cub:test",
            hub=HubCopy("bentrevett/caltech-ucsd-birds-200-2011", "label", train_classes=100),
        ),
        Benchmark(
            name="cars",
            title="Cars-196: cars; classes 1-98 train, 99-196 test",
            splits={"train": Split(8054, 98), "test": Split(8131, 98)},
            labeled=True,
            eval="cars:test",
            hub=HubCopy(
                "tanganke/stanford_cars", "label", "9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40", train_classes=98
            ),
        ),
        Benchmark(
            name="sop",
            title="Stanford Online Products: a class is an item for sale",
            splits={"train": Split(59551, 11318), "test": Split(60502, 11316)},
            labeled=True,
            eval="sop:test",
            recall_at=(1, 10, 100, 1000),
            hub=HubCopy("nyris/stanford-online-products-v1", "item_id", "24a1b9b8ec6c0b1fc4dd324f24b2d829413a6c69"),
        ),
        Benchmark(
            name="inshop",
            title="DeepFashion In-shop: a class is a garment; queries are looked for in a gallery",
            splits={"train": Split(25882, 3997), "test": Split(26830, 3985, queries=14218)},
            labeled=True,
            eval="inshop:test",
            recall_at=(1, 10, 20, 30),
            license=_NON_COMMERCIAL,
        ),
        Benchmark(
            name="inat",
            title="iNaturalist 2018, the retrieval split of Smooth-AP: a class is a species",
            splits={"train": Split(325846), "test": Split(136093)},
            labeled=True,
            eval="inat:test",
            recall_at=(1, 4, 16, 32),
            license=_NON_COMMERCIAL,
            shares={"cub": "iNaturalist 2018 holds 81 of CUB's 100 test species"},
        ),
        Benchmark(
            name="inat21",
            title="iNaturalist 2021, a pool of 10,000 species",
            splits={"train": Split(2686843, 10000), "val": Split(100000, 10000, optional=True)},
            labeled=True,
            eval=None,
            license=_NON_COMMERCIAL,
        ),
        Benchmark(
            name="inat21-mini",
            title="iNaturalist 2021 mini, a pool of 10,000 species, 50 images each",
            splits={"train": Split(500000, 10000)},
            labeled=True,
            eval=None,
            license=_NON_COMMERCIAL,
        ),
        Benchmark(
            name="nabirds",
            title="NABirds: birds of North America, a pool",
            splits={"all": Split(48562, 555)},
            labeled=True,
            eval=None,
            license=_PROBABLY,
            shares={"cub": "NABirds holds 75 of CUB's 100 test species"},
        ),
        Benchmark(
            name="compcars",
            title="CompCars from the web, a pool; frequent: models with 100 images in its classification split",
            splits={"frequent": Split(16537, 145, exact=False), "all": Split(136726)},
            labeled=True,
            eval=None,
            license=_PROBABLY,
        ),
        Benchmark(
            name="fashion200k",
            title="Fashion200k: women's clothes, a pool without labels",
            splits={"train": Split(172049)},
            labeled=False,
            eval=None,
        ),
    )
}


def benchmark_of(spec: str) -> Benchmark | None:
    """The benchmark that `name` or `name:split` means, if any."""
    return BENCHMARKS.get(spec.strip().split(":")[0])
