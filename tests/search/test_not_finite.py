"""NaN, infinity and overflow: what is compared with them is never near, so neighbors would vanish without a word."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from helpers.command_line import call
from helpers.exports import exported
from helpers.indexes import rewrite
from helpers.pictures import write_pictures
from PIL import Image
from safetensors.torch import load_file, save_file

from stml_semi import load
from stml_semi.data.sources.open_source import open_source
from stml_semi.models.backbone import open_backbone
from stml_semi.models.evaluation import embed_table
from stml_semi.models.model_files import EMBEDDED
from stml_semi.runtime.errors import BadInput
from stml_semi.search.duplicates import find_duplicates
from stml_semi.search.embed import embed_source
from stml_semi.search.index import Index
from stml_semi.search.query import search
from stml_semi.sharing import onnx


@pytest.fixture
def photos(tmp_path):
    for seed in range(2):
        write_pictures(tmp_path / "photos" / str(seed), 3, seed=seed)
    return tmp_path / "photos"


def damage(file: Path, ending: str, value: float) -> None:
    """One number of one weight."""
    tensors = load_file(file)
    key = sorted(key for key in tensors if key.endswith(ending))[-1]
    tensors[key] = tensors[key].clone()
    tensors[key].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("ending", "value"),
    [("convolution.weight", np.nan), ("convolution.weight", np.inf), ("running_var", np.nan)],
)
def test_a_model_with_such_weights_is_refused_by_every_command(monkeypatch, capsys, photos, tmp_path, ending, value):
    shutil.copytree(EMBEDDED / "tiny-resnet", tmp_path / "nan")
    damage(tmp_path / "nan" / "model.safetensors", ending, value)
    model, data = str(tmp_path / "nan"), str(photos)
    for flag, command in (
        ("--model", ["embed", "--model", model, "--data", data, "--output", tmp_path / "index"]),
        ("--model", ["evaluate", "--model", model, "--data", data]),
        (
            "--backbone",
            [
                "sup",
                "--backbone",
                model,
                "--labeled",
                data,
                "--labeled-batch-size",
                8,
                "--output-dir",
                tmp_path / "run",
            ],
        ),
    ):
        code, _, err = call(monkeypatch, capsys, *command)
        assert code == 2, command
        assert err.splitlines()[-1].startswith(f"error: {flag} {model}: holds weights that are NaN or infinite (")
        assert ending in err
    assert not (tmp_path / "index").exists()


def test_the_head_of_an_export_is_checked(make_backbone, tmp_path):
    exported(tmp_path / "model", make_backbone("resnet"), "auto")
    damage(next(tmp_path.glob("model/*Dense/model.safetensors")), "weight", np.nan)
    with pytest.raises(BadInput, match=r"--model .*model: its head: holds weights that are NaN or infinite \(weight\)"):
        load(tmp_path / "model")


class Broken(torch.nn.Module):
    """Finite weights, but an embedding that is not a number for dark images."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        means = pixels.mean((2, 3))
        return torch.where(means.mean(1, keepdim=True) < -0.99, self.value, means)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e25])
def test_images_whose_embeddings_are_not_finite_are_named(photos, monkeypatch, tmp_path, value):
    Image.new("RGB", (24, 24)).save(photos / "1" / "dark.png")
    processor = open_backbone("tiny-resnet").processor
    table = open_source(str(photos), flag="--data", labels="ignored")
    with pytest.raises(BadInput, match=r"photos: 1 of 7 embeddings are NaN, infinite or too large \(.*dark.png\)"):
        embed_table(table, Broken(value), processor)
    retriever = load("tiny-resnet")
    monkeypatch.setattr(retriever, "forward", Broken(value).forward)
    with pytest.raises(BadInput, match=r"1 of 2 embeddings .* \(image 1\)"):
        retriever.encode([Image.new("RGB", (24, 24), "white"), Image.new("RGB", (24, 24))])
    embed_source("tiny-resnet", str(photos), str(tmp_path / "index"), num_workers=0)
    monkeypatch.setattr("stml_semi.search.query.open_model", lambda *_: retriever)
    with pytest.raises(BadInput, match=r"1 of 1 embeddings .*dark.png\)"):
        search(str(tmp_path / "index"), [str(photos / "1" / "dark.png")])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25])
def test_an_index_that_holds_them_is_refused(photos, tmp_path, value):
    folder = str(tmp_path / "index")
    embed_source("tiny-resnet", str(photos), folder, num_workers=0, part_size=4)
    embeddings = Index.open(folder).part(0).embeddings.numpy().copy()
    embeddings[5, 3] = value
    flat = pyarrow.array(embeddings.reshape(-1))
    rewrite(tmp_path / "index", embedding=pyarrow.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]))
    said = r"--index .*: 1 of 6 embeddings are NaN, .*2.png\): the table is damaged; embed again into another folder"
    with pytest.raises(BadInput, match=said):
        find_duplicates(folder)
    with pytest.raises(BadInput, match=said):
        search(folder, [str(photos / "0" / "0.png")])


def test_embeddings_of_another_width_are_refused(photos, tmp_path):
    embed_source("tiny-resnet", str(photos), str(tmp_path / "index"), num_workers=0)
    flat = pyarrow.array(np.ones(18, np.float32))
    rewrite(tmp_path / "index", embedding=pyarrow.FixedSizeListArray.from_arrays(flat, 3))
    with pytest.raises(BadInput, match=r"images.lance cannot be read \(shape .* is invalid for input of size 18\)"):
        find_duplicates(str(tmp_path / "index"))


def test_weights_that_do_not_fit_into_half_precision_are_not_exported(make_backbone, tmp_path):
    from stml_semi.sharing.export import export_model

    embedder, processor = exported(tmp_path / "model", make_backbone("resnet"), "auto")
    with torch.no_grad():
        embedder.head_f.weight[0, 0] = 1e6
    with pytest.raises(BadInput, match=r"half: holds weights .*linear.weight\).*or --dtype float32"):
        export_model(embedder, processor, tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half").exists()


def test_onnx_that_gives_nan_is_a_difference(monkeypatch):
    class Session:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self, _: object, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full((len(given["pixel_values"]), 2), np.nan, np.float32)]

    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    assert np.isnan(onnx._difference(Path("embedder.onnx"), torch.nn.Flatten(), torch.zeros(2, 2, 1, 1)))
