"""Builds the embedded kanji images: a class is a character, its images are that character in 22 typefaces.

    python scripts/build_kanji.py
    python scripts/build_kanji.py --validation 200 --output kanji_validation.parquet
    python scripts/build_kanji.py --large --long-tailed --output kanji_large_tail.parquet

Same fonts, same pixels: which characters go where depends on a hash of the character, not on a random generator.
"""

import argparse
import hashlib
import io
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars
from fontTools.ttLib import TTFont
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

EMBEDDED = Path(__file__).parents[1] / "stml_semi" / "data" / "embedded"
FONT_FOLDER = Path("/usr/share/fonts")

SIDE = 32
"""Side of an image, pixels."""
MARGIN = 2
"""Empty pixels on each side of the longer dimension of a glyph."""
FONT_SIZE = 128
"""Pixels per em at which glyphs are drawn before they are scaled down."""
WHITE = 255
NUM_GRAYS = 16

NUM_TRAIN, NUM_TEST, NUM_MORE = 20, 200, 480
NUM_VALIDATION = 200
"""Classes at the front of the spare ones that no large collection holds."""


class Typeface(NamedTuple):
    """One font file and the Debian package that holds it."""

    file: str
    package: str


TYPEFACES = (
    Typeface("ipag.ttf", "fonts-ipafont-gothic"),
    Typeface("ipam.ttf", "fonts-ipafont-mincho"),
    Typeface("kiloji.ttf", "fonts-kiloji"),
    Typeface("setofont.ttf", "fonts-seto"),
    Typeface("KleeOne-Regular.ttf", "fonts-klee"),
    Typeface("RocknRollOne-Regular.ttf", "fonts-rocknroll"),
    Typeface("ReggaeOne-Regular.ttf", "fonts-reggae"),
    Typeface("RampartOne-Regular.ttf", "fonts-rampart"),
    Typeface("Stick-Regular.ttf", "fonts-stick"),
    Typeface("DotGothic16-Regular.ttf", "fonts-dotgothic16"),
    Typeface("sawarabi-mincho-medium.ttf", "fonts-sawarabi-mincho"),
    Typeface("MTLmr3m.ttf", "fonts-motoya-l-maruberi"),
    Typeface("BIZUDMincho-Regular.ttf", "fonts-morisawa-bizud-mincho"),
    Typeface("Mplus1-Thin.otf", "fonts-mplus"),
    Typeface("Mplus1-Black.otf", "fonts-mplus"),
    Typeface("aoyagi-soseki.ttf", "fonts-aoyagi-soseki"),
    Typeface("kouzan-mouhitsu.ttf", "fonts-kouzan-mouhitsu"),
    Typeface("kouzan-mouhitsu-gyosho.ttf", "fonts-kouzan-mouhitsu"),
    Typeface("KouzanBrushFontSousyo.ttf", "fonts-kouzan-mouhitsu"),
    Typeface("HanaMinA.ttf", "fonts-hanazono"),
    Typeface("Konatu.ttf", "fonts-konatu"),
    Typeface("ume-hgo4.ttf", "fonts-horai-umefont"),
)


class Splits(NamedTuple):
    """Characters of each split; no character is in two of them."""

    train: list[str]
    test: list[str]
    more: list[str]
    spare: list[str]
    """In no file: validation classes are taken from its front."""


def find_fonts(typefaces: Sequence[Typeface] = TYPEFACES, folder: Path = FONT_FOLDER) -> list[Path]:
    """The font files of the typefaces, in their order.

    Raises:
        ValueError: some are not installed; the text names the Debian packages.
    """
    installed = {path.name: path for path in sorted(folder.rglob("*.[ot]tf"))}
    missing = sorted({face.package for face in typefaces if face.file not in installed})
    if missing:
        raise ValueError(f"fonts are missing below {folder} - apt-get install {' '.join(missing)}")
    return [installed[face.file] for face in typefaces]


def characters_of(font: Path) -> set[str]:
    """The characters for which a font has a glyph, blank or not."""
    with TTFont(font, lazy=True) as table:
        return {chr(code) for code in table.getBestCmap() or {}}


def load_font(font: Path) -> ImageFont.FreeTypeFont:
    """A font ready for `draw_glyph`; the basic layout is the one that every build of PIL has."""
    return ImageFont.truetype(font, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def draw_glyph(font: ImageFont.FreeTypeFont, character: str) -> Pictures.Image | None:
    """The ink of a glyph, cropped to it: gray, 255 = ink, its size in pixels at `FONT_SIZE`. None if it is blank."""
    left, top, right, bottom = font.getbbox(character)
    canvas = Pictures.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(canvas).text((4 - left, 4 - top), character, fill=WHITE, font=font)
    box = canvas.getbbox()
    return canvas.crop(box) if box else None


def fit_glyph(ink: Pictures.Image, side: int = SIDE, margin: int = MARGIN) -> Pictures.Image:
    """Dark ink in the middle of a light square of `side` pixels, proportions kept, 16 grays."""
    scale = (side - 2 * margin) / max(ink.size)
    width, height = (max(1, round(length * scale)) for length in ink.size)
    small = np.asarray(ink.resize((width, height), Pictures.Resampling.LANCZOS))
    step = WHITE // (NUM_GRAYS - 1)
    square = np.full((side, side), WHITE, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] -= np.rint(small / step).astype(np.uint8) * np.uint8(step)
    return Pictures.fromarray(square)


def render(font: ImageFont.FreeTypeFont, character: str) -> Pictures.Image | None:
    """An image of a character, 32 x 32 gray, dark on light; None where the font has only an empty glyph."""
    ink = draw_glyph(font, character)
    return fit_glyph(ink) if ink else None


def common_kanji(fonts: Iterable[Path]) -> list[str]:
    """JIS level-1 kanji (rows 16 to 47 of JIS X 0208) that every font really draws, in code point order.

    A glyph that a font uses for several characters is a placeholder and does not count.
    """
    cells = ((row, cell) for row in range(16, 48) for cell in range(1, 95))
    codes = (bytes((0xA0 + row, 0xA0 + cell)) for row, cell in cells)
    common = {code.decode("euc_jp", errors="ignore") for code in codes} - {""}
    for path in fonts:
        font = load_font(path)
        seen: dict[bytes, list[str]] = {}
        for character in sorted(common & characters_of(path)):
            ink = draw_glyph(font, character)
            if ink:
                seen.setdefault(hashlib.sha256(repr(ink.size).encode() + ink.tobytes()).digest(), []).append(character)
        common = {owners[0] for owners in seen.values() if len(owners) == 1}
    return sorted(common)


def split(kanji: Iterable[str], seed: int = 0) -> Splits:
    """Sorts by a hash of (seed, character) and cuts: a font more or less hardly changes who is where."""
    order = sorted(kanji, key=lambda character: hashlib.sha256(f"{seed} {character}".encode()).digest())
    cuts = np.cumsum([0, NUM_TRAIN, NUM_TEST, NUM_MORE])
    parts = [sorted(order[start:stop]) for start, stop in pairwise(cuts)]
    return Splits(*parts, spare=order[cuts[-1] :])


def encode(picture: Pictures.Image) -> bytes:
    """Lossless WebP: half the bytes of a PNG, and it carries nothing but pixels."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def draw_all(characters: Iterable[str], fonts: Iterable[Path]) -> list[list[bytes]]:
    """Encoded images: one list per character, in it one image per font."""
    loaded = [load_font(path) for path in fonts]
    rows = [[render(font, character) for font in loaded] for character in characters]
    assert all(picture for row in rows for picture in row), "common_kanji let a blank glyph through"
    return [[encode(picture) for picture in row if picture] for row in rows]


def labeled(characters: Sequence[str], fonts: Iterable[Path]) -> Dataset:
    """Columns image and label, class after class; a class is named like 'U+4E9C 亜'."""
    names = [f"U+{ord(character):04X} {character}" for character in characters]
    rows = [(picture, label) for label, row in enumerate(draw_all(characters, fonts)) for picture in row]
    columns = {
        "image": [{"bytes": picture, "path": None} for picture, _ in rows],
        "label": [label for _, label in rows],
    }
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=names)}))


def tail_sizes(classes: int, largest: int) -> list[int]:
    """Class sizes that fall geometrically from `largest` to 1, as the middle of iNaturalist's do."""
    return [max(1, round(largest ** (1 - rank / max(1, classes - 1)))) for rank in range(classes)]


def unlabeled(characters: Sequence[str], fonts: Iterable[Path], sizes: Sequence[int] | None = None) -> Dataset:
    """Column image alone, `sizes` of each character. Order and choice follow a hash of the pixels, which says nothing
    about the class."""
    pictures = []
    for row, size in zip(draw_all(characters, fonts), sizes or [None] * len(characters), strict=True):
        pictures += sorted(row, key=lambda picture: hashlib.sha256(picture).digest())[:size]
    pictures.sort(key=lambda picture: hashlib.sha256(picture).digest())
    columns = {"image": [{"bytes": picture, "path": None} for picture in pictures]}
    return Dataset.from_dict(columns, features=Features({"image": Image()}))


def write(table: Dataset, path: Path) -> None:
    """Writes parquet and says how large it became."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    print(f"{path}: {len(table)} images, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="folder of the three files; with --validation, the file")
    parser.add_argument("--validation", type=int, metavar="N", help="only N classes that no embedded file holds")
    parser.add_argument("--oracle", action="store_true", help="only the classes of train and more, all labeled")
    parser.add_argument("--large", action="store_true", help="only the classes of no other file, unlabeled")
    parser.add_argument("--long-tailed", action="store_true", help="with --large: classes of 22 images down to 1")
    parser.add_argument("--fonts", type=Path, default=FONT_FOLDER, help="folder below which the fonts lie")
    options = parser.parse_args()
    disable_progress_bars()
    try:
        fonts = find_fonts(folder=options.fonts)
    except ValueError as error:
        parser.error(str(error))
    kanji = common_kanji(fonts)
    splits = split(kanji)
    print(f"{len(fonts)} typefaces share {len(kanji)} kanji")
    if options.validation is not None:
        if not options.output or not 0 < options.validation <= len(splits.spare):
            parser.error(f"--validation takes 1 to {len(splits.spare)} classes, and --output the file to write")
        write(labeled(splits.spare[: options.validation], fonts), options.output)
        return
    if options.large:
        if not options.output:
            parser.error("--large needs --output, the file to write")
        characters = splits.spare[NUM_VALIDATION:]
        sizes = tail_sizes(len(characters), len(fonts)) if options.long_tailed else None
        write(unlabeled(characters, fonts, sizes), options.output)
        return
    if options.oracle:
        if not options.output:
            parser.error("--oracle needs --output, the file to write")
        write(labeled([*splits.train, *splits.more], fonts), options.output)
        return
    folder = options.output or EMBEDDED
    write(labeled(splits.train, fonts), folder / "kanji_train.parquet")
    write(labeled(splits.test, fonts), folder / "kanji_test.parquet")
    write(unlabeled(splits.more, fonts), folder / "kanji_more.parquet")


if __name__ == "__main__":
    main()
