"""The files that ship inside the package: the kanji images and the backbones."""

import io
import logging
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Image
from numpy.typing import NDArray
from PIL import Image as Pictures
from transformers import AutoImageProcessor, AutoModel

ROOT = Path(__file__).parents[2]
DATA = ROOT / "stml_semi" / "data" / "embedded"
MODELS = ROOT / "stml_semi" / "models" / "embedded"
BACKBONES = sorted(path.name for path in MODELS.iterdir() if path.is_dir())

NUM_TYPEFACES = 22
NUM_CLASSES = {"train": 20, "test": 200, "more": 480}


def read(split: str, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    table = Dataset.from_parquet(
        str(DATA / f"kanji_{split}.parquet"), cache_dir=str(tmp_path_factory.mktemp("datasets")), keep_in_memory=True
    )
    assert isinstance(table, Dataset)
    return table


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    return {split: read(split, tmp_path_factory) for split in NUM_CLASSES}


@pytest.fixture(scope="module")
def pixels(tables: dict[str, Dataset]) -> dict[str, NDArray[np.uint8]]:
    """Per split (N, 32, 32, 3): what PIL makes of the bytes."""
    return {
        split: np.stack(
            [
                np.asarray(Pictures.open(io.BytesIO(row["bytes"])).convert("RGB"))
                for row in table.cast_column("image", Image(decode=False))["image"]
            ]
        )
        for split, table in tables.items()
    }


@pytest.mark.parametrize("split", NUM_CLASSES)
def test_every_class_in_every_typeface(split: str, pixels: dict[str, NDArray[np.uint8]]) -> None:
    assert len(pixels[split]) == NUM_CLASSES[split] * NUM_TYPEFACES


@pytest.mark.parametrize("split", NUM_CLASSES)
def test_pictures_are_gray_dark_on_light_and_centered(split: str, pixels: dict[str, NDArray[np.uint8]]) -> None:
    pictures = pixels[split]
    assert pictures.shape[1:] == (32, 32, 3)
    assert (pictures == pictures[..., :1]).all(), "not gray"
    ink = 255 - pictures[..., 0].astype(int)
    frame = ink.copy()
    frame[:, 2:-2, 2:-2] = 0
    assert not frame.any(), "ink in the margin"
    assert (ink.max((1, 2)) > 100).all(), "blank"
    assert ink.mean() < 128, "light on dark"
    for axis in (1, 2):
        inked = ink.max(axis) > 0
        first, last = inked.argmax(1), 31 - inked[:, ::-1].argmax(1)
        # Half a pixel each side for odd sizes, and edges too faint for 16 grays.
        assert np.abs(first - (31 - last)).max() <= 3, "off center"


@pytest.mark.parametrize("split", NUM_CLASSES)
def test_no_picture_twice(split: str, pixels: dict[str, NDArray[np.uint8]]) -> None:
    assert len({picture.tobytes() for picture in pixels[split]}) == len(pixels[split])


@pytest.mark.parametrize("split", NUM_CLASSES)
def test_nothing_but_pixels_is_told(split: str, tables: dict[str, Dataset]) -> None:
    raw = tables[split].cast_column("image", Image(decode=False))["image"]
    assert all(row["path"] is None for row in raw)
    assert not any(Pictures.open(io.BytesIO(row["bytes"])).getexif() for row in list(raw)[:50])


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels(split: str, tables: dict[str, Dataset]) -> None:
    feature = tables[split].features["label"]
    assert isinstance(feature, ClassLabel)
    assert len(feature.names) == len(set(feature.names)) == NUM_CLASSES[split]
    for name in feature.names:
        code, character = re.fullmatch(r"U\+([0-9A-F]{4}) (.)", name).groups()  # type: ignore[union-attr]
        assert int(code, 16) == ord(character)
    assert np.bincount(tables[split]["label"]).tolist() == [NUM_TYPEFACES] * NUM_CLASSES[split]


def test_train_and_test_share_no_class(tables: dict[str, Dataset]) -> None:
    train, test = (set(tables[split].features["label"].names) for split in ("train", "test"))
    assert not train & test


def test_splits_share_no_picture(pixels: dict[str, NDArray[np.uint8]]) -> None:
    sets = [{picture.tobytes() for picture in pictures} for pictures in pixels.values()]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_more_has_no_label_column(tables: dict[str, Dataset]) -> None:
    assert tables["more"].column_names == ["image"]


def echo(pictures: NDArray[np.uint8], max_lag: int = 600) -> float:
    """How far likeness at some distance in the row order stands out from chance, in standard deviations."""
    flat = pictures[..., 0].reshape(-1, 16, 2, 16, 2).mean((2, 4), dtype=np.float32).reshape(len(pictures), -1)
    flat -= flat.mean(0)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    likeness = np.array([np.einsum("nd,nd->n", flat[:-lag], flat[lag:]).mean() for lag in range(1, max_lag)])
    chance = np.random.default_rng(0).integers(len(flat), size=(2, 20_000))
    spread = np.einsum("nd,nd->n", flat[chance[0]], flat[chance[1]]).std() / np.sqrt(len(flat))
    return float(np.abs(likeness).max() / spread)


def test_order_of_more_says_nothing(pixels: dict[str, NDArray[np.uint8]]) -> None:
    # The largest of 600 draws from a normal distribution is rarely above five standard deviations.
    assert echo(pixels["more"]) < 6


def test_order_of_test_says_much(pixels: dict[str, NDArray[np.uint8]]) -> None:
    # The same measure does see an order by class, and one by typeface.
    assert echo(pixels["test"], max_lag=30) > 20
    by_typeface = pixels["test"].reshape(200, NUM_TYPEFACES, 32, 32, 3).swapaxes(0, 1).reshape(-1, 32, 32, 3)
    assert echo(by_typeface, max_lag=30) > 20


def test_size_of_data() -> None:
    assert sum(path.stat().st_size for path in DATA.glob("*.parquet")) <= 6e6


def test_readme_lists_every_typeface() -> None:
    pytest.importorskip("fontTools", reason="the build scripts need fonttools")
    typefaces = runpy.run_path(str(ROOT / "scripts" / "build_kanji.py"))["TYPEFACES"]
    assert len(set(typefaces)) == NUM_TYPEFACES
    rows = [line for line in (DATA / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for face in typefaces:
        row = next((row for row in rows if f"`{face.file}`" in row), None)
        assert row is not None, f"{face.file} is not in the table"
        assert face.package in row, f"{face.file} is from {face.package}"


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_loads_whole_and_maps_pictures(
    name: str,
    pixels: dict[str, NDArray[np.uint8]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = MODELS / name
    assert (folder / "model.safetensors").stat().st_size <= 2e6
    # transformers keeps its messages to itself unless told otherwise.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        model, report = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(folder)
    assert not caplog.records, caplog.text
    assert not any(report.values()), report
    inputs = processor([Pictures.fromarray(picture) for picture in pixels["train"][:4]], return_tensors="pt")
    assert inputs["pixel_values"].shape == (4, 3, processor.size["height"], processor.size["width"])
    assert inputs["pixel_values"].max() == 1, "paper is 1, ink is -1"
    features = model.eval()(**inputs).last_hidden_state
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def test_tiny_resnet_is_worth_its_name(tables: dict[str, Dataset], pixels: dict[str, NDArray[np.uint8]]) -> None:
    """Its features, never trained on kanji, find the same character in another typeface."""
    model = AutoModel.from_pretrained(MODELS / "tiny-resnet", dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(MODELS / "tiny-resnet")
    inputs = processor([Pictures.fromarray(picture) for picture in pixels["train"]], return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state.flatten(2)
    features = torch.nn.functional.normalize(hidden.mean(2) + hidden.amax(2), dim=1)
    labels = torch.tensor(tables["train"]["label"])
    nearest = (features @ features.T).fill_diagonal_(-1).argmax(1)
    assert (labels[nearest] == labels).float().mean() > 0.8
