"""A second world: colored images of emoji by nine openly licensed vendors. Nothing of it ships with the project.

    npm install --ignore-scripts @lobehub/fluent-emoji-3d @iconify-json/noto @iconify-json/noto-v1 \\
        @iconify-json/twemoji @iconify-json/openmoji @iconify-json/fluent-emoji @iconify-json/fluent-emoji-flat \\
        @iconify-json/emojione @iconify-json/emojione-v1
    pip install resvg-py
    python scripts/build_emoji.py node_modules emoji

A class is a code point, an instance a vendor's drawing of it, on a ground and in a crop of its own, so that neither a
vendor's style nor a ground is the answer. Skin tones, flags, keycaps, clock faces and joined sequences are left out.
Licenses: Noto and Noto v1 Apache-2.0; Twemoji and EmojiOne 2 CC BY 4.0; OpenMoji and EmojiOne 1 CC BY-SA 4.0;
Fluent MIT.

Writes labeled, test, validation, unlabeled and oracle (labeled and unlabeled, with all classes) as parquet files.
"""

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

SIDE = 64
LEAST = 6
"""Vendors that draw a thing, for it to be a class."""
SETS = {
    "noto": "@iconify-json/noto",
    "noto-v1": "@iconify-json/noto-v1",
    "twemoji": "@iconify-json/twemoji",
    "openmoji": "@iconify-json/openmoji",
    "fluent": "@iconify-json/fluent-emoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
    "emojione": "@iconify-json/emojione",
    "emojione-v1": "@iconify-json/emojione-v1",
}
NAMED_BY = ("noto", "twemoji", "fluent-flat", "openmoji")
"""Sets that say which code point each of their drawings is; the others use the same names."""
Draw = Callable[[], Image.Image]


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_points(modules: Path) -> dict[str, int]:
    """Name of a drawing -> code point, single ones only."""
    found: dict[str, int] = {}
    for name in NAMED_BY:
        for code, drawing in read(modules / SETS[name] / "chars.json").items():
            plain = code.replace("-fe0f", "")
            if "-" not in plain and is_thing(int(plain, 16)):
                found.setdefault(drawing, int(plain, 16))
    return found


def is_thing(code: int) -> bool:
    """No flag, clock face, keycap or skin tone, and no sign that is nothing but text."""
    flag, clock, tone = 0x1F1E6 <= code <= 0x1F1FF, 0x1F550 <= code <= 0x1F567, 0x1F3FB <= code <= 0x1F3FF
    return code > 0x2000 and not (flag or clock or tone)


def drawings(modules: Path) -> dict[int, dict[str, Draw]]:
    """Code point -> vendor -> how to draw it."""
    named = code_points(modules)
    found: dict[int, dict[str, Draw]] = {}
    for vendor, package in SETS.items():
        icons = read(modules / package / "icons.json")
        for name, icon in icons["icons"].items():
            if name in named:
                sizes = [icon.get(key, icons.get(key, 16)) for key in ("width", "height")]
                found.setdefault(named[name], {})[vendor] = vector(icon["body"], *sizes)
    for path in sorted((modules / "@lobehub/fluent-emoji-3d/assets").glob("*.webp")):
        plain = path.stem.replace("-fe0f", "")
        if "-" not in plain and is_thing(int(plain, 16)):
            found.setdefault(int(plain, 16), {})["fluent-3d"] = lambda path=path: Image.open(path).convert("RGBA")
    return {code: by_vendor for code, by_vendor in sorted(found.items()) if len(by_vendor) >= LEAST}


def vector(body: str, width: float, height: float) -> Draw:
    """A drawing from the body of an SVG."""
    from resvg_py import svg_to_bytes  # pyright: ignore[reportMissingImports]

    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}</svg>'
    return lambda: Image.open(io.BytesIO(bytes(svg_to_bytes(svg_string=svg, width=3 * SIDE)))).convert("RGBA")


def photograph(drawing: Image.Image, rng: np.random.Generator) -> bytes:
    """A drawing on a ground of its own, a little turned, moved and cropped: an encoded image of SIDE x SIDE pixels."""
    corners = rng.integers(0, 256, (2, 2, 3)) if rng.random() < 0.5 else np.tile(rng.integers(0, 256, 3), (2, 2, 1))
    ground = Image.fromarray(corners.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    side = int(SIDE * rng.uniform(0.75, 1.1))
    turned = drawing.resize((side, side), Image.Resampling.LANCZOS)
    turned = turned.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)
    left, top = ((SIDE - side) // 2 + rng.integers(-4, 5, 2)).tolist()
    ground.paste(turned, (left, top), turned)
    file = io.BytesIO()
    ground.save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Draws everything and divides the classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", type=Path, help="node_modules of the packages above")
    parser.add_argument("output", type=Path)
    parser.add_argument("--labeled", type=int, default=60, help="classes")
    parser.add_argument("--test", type=int, default=300, help="classes")
    parser.add_argument("--validation", type=int, default=150, help="classes")
    options = parser.parse_args()
    things = drawings(options.modules)
    order = np.random.default_rng(11).permutation(list(things)).tolist()
    ends = np.cumsum([options.labeled, options.test, options.validation])
    splits = dict(zip(("labeled", "test", "validation", "unlabeled"), np.split(order, ends), strict=True))
    rows: dict[str, list[tuple[bytes, str]]] = {}
    for split, codes in splits.items():
        rows[split] = [
            (photograph(draw(), np.random.default_rng([code, number])), f"U+{code:04X}")
            for code in map(int, codes)
            for number, (_, draw) in enumerate(sorted(things[code].items()))
        ]
    rows["oracle"] = rows["labeled"] + rows["unlabeled"]
    options.output.mkdir(parents=True, exist_ok=True)
    features = Features({"image": ImageFeature(), "label": Value("string")})
    for split, found in rows.items():
        shuffled = [found[i] for i in np.random.default_rng(12).permutation(len(found))]
        images = [{"bytes": data, "path": None} for data, _ in shuffled]
        table = Dataset.from_dict({"image": images, "label": [label for _, label in shuffled]}, features=features)
        table.to_parquet(options.output / f"{split}.parquet")
        print(f"{split}: {len(table):,} images of {len(set(table['label'])):,} classes")


if __name__ == "__main__":
    main()
