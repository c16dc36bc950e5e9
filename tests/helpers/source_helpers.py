"""What the tests of sources share: small images in folders and lists, and what opens them."""

import csv
import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import read_image
from stml_semi.data.sources.open_source import open_source


def open_labeled(spec: str | Path, **options: Any) -> ImageTable:
    return open_source(str(spec), **{"flag": "--labeled", "labels": "required", **options})


def open_unlabeled(spec: str | Path, **options: Any) -> ImageTable:
    return open_source(str(spec), **{"flag": "--unlabeled", "labels": "ignored", **options})


def save(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level, level, level)).save(path)
    return path


def level(table: ImageTable, row: int) -> int:
    """The gray level that tells the test's images apart."""
    red = read_image(table.source(row)).getpixel((0, 0))
    assert isinstance(red, tuple)
    return red[0]


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def refusal(open_it: Any, *arguments: Any, **options: Any) -> str:
    """The text of the one-line ValueError."""
    with pytest.raises(ValueError) as caught:
        open_it(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(options.get("flag", "--labeled" if open_it is open_labeled else "--unlabeled") + " ")
    return text


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Three class folders: wren (2 images), robin (2, one nested), tit (1)."""
    save(tmp_path / "birds/wren/b.png", 10)
    save(tmp_path / "birds/wren/a.PNG", 20)
    save(tmp_path / "birds/robin/z.bmp", 30)
    save(tmp_path / "birds/robin/deep/down/y.png", 40)
    save(tmp_path / "birds/tit/x.gif", 50)
    (tmp_path / "birds/tit/notes.txt").write_text("not an image")
    save(tmp_path / "birds/tit/.hidden.png", 60)
    save(tmp_path / "birds/.cache/c.png", 70)
    (tmp_path / "birds/empty").mkdir()
    return tmp_path / "birds"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A csv beside the images it names."""
    rows = [("pics/0.png", "wren"), ("pics/1.png", "robin"), ("pics/2.png", "wren")]
    for i, (path, _) in enumerate(rows):
        save(tmp_path / path, i)
    return write_csv(tmp_path / "list.csv", ("path", "label"), *rows)


def write_csv(path: Path, *rows: tuple[Any, ...], delimiter: str = ",") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def saved(values: list[int]) -> Dataset:
    features = Features({"img": datasets.Image(), "fine_label": ClassLabel(names=["b", "a"])})
    rows = {"img": [{"bytes": encoded(v), "path": None} for v in values], "fine_label": [v % 2 for v in values]}
    return Dataset.from_dict(rows, features=features)
