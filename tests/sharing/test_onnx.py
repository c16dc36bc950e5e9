"""ONNX: the same embeddings without PyTorch. Runs where the extra `onnx` is installed."""

import re
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from helpers.command_line import call
from helpers.exports import exported
from helpers.pictures import write_pictures
from PIL import Image

from stml_semi import load
from stml_semi.data.views import eval_views
from stml_semi.run_folder.recipe import build_config
from stml_semi.runtime.errors import RunFailed
from stml_semi.sharing import onnx as onnx_export
from stml_semi.sharing.card import PLACE, CardFacts, Origin, card_files

needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="the extra `onnx` is not installed"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pooling"), [("resnet", "auto"), ("dinov2", "mean"), ("swin", "auto")])
def test_onnxruntime_gives_the_same_embeddings(make_backbone, tmp_path, pictures, kind, pooling):
    import onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    exported(tmp_path / "model", make_backbone(kind), pooling)
    assert onnx_export.export_onnx(tmp_path / "model") < 1e-5
    path = str(tmp_path / "model" / "embedder.onnx")
    opsets = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    assert opsets[""] == onnx_export.OPSET
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    retriever = load(tmp_path / "model")
    for count in (1, 3, 8):
        pixels = eval_views(pictures[:count], retriever.processor).numpy()
        found = session.run(None, {"pixel_values": pixels})[0]
        np.testing.assert_allclose(np.asarray(found), retriever.encode(pictures[:count]), atol=1e-4)


@needs_onnx
@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_left_behind(make_backbone, tmp_path, monkeypatch):
    exported(tmp_path / "model", make_backbone("resnet"), "auto")
    monkeypatch.setattr(onnx_export, "_difference", lambda *_: float("nan"))
    with pytest.raises(RunFailed, match="differ by nan"):
        onnx_export.export_onnx(tmp_path / "model")
    assert not (tmp_path / "model" / "embedder.onnx").exists()


@needs_onnx
@pytest.mark.slow
def test_the_command_writes_it_and_the_card_tells(monkeypatch, capsys, tmp_path):
    for i in range(4):
        write_pictures(tmp_path / "birds" / str(i), 3, seed=i)
    monkeypatch.chdir(tmp_path)
    small = ["--labeled-batch-size", 4, "--images-per-class", 2, "--num-workers", 0, "--embedding-dim", 8]
    flags = ["--labeled", "birds", "--backbone", "tiny-resnet", "--max-steps", 1, *small, "--output-dir", "run"]
    code, _, err = call(monkeypatch, capsys, "sup", *flags)
    assert code == 0, err
    code, _, err = call(monkeypatch, capsys, "export", "run", "--output", "model", "--format", "onnx")
    assert code == 0, err
    assert (tmp_path / "model" / "embedder.onnx").is_file()
    assert not list((tmp_path / "model").glob(".*"))
    card = (tmp_path / "model" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    opening, _, _ = blocks[0].partition("model = ")  # Defines what the others open files with.
    code = opening + next(block for block in blocks if "onnx" in block)
    monkeypatch.chdir(tmp_path / "model")
    with Image.open(tmp_path / "birds" / "0" / "0.png") as picture:
        picture.save("a.jpg")
    names: dict[str, Any] = {}
    exec(code.replace(PLACE, "."), names)
    with Image.open("a.jpg") as picture:
        np.testing.assert_allclose(names["embeddings"], load(".").encode([picture]), atol=1e-4)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--format onnx needs onnx, onnxscript, onnxruntime: pip install"):
        onnx_export.check_onnx()


def test_the_card_promises_only_what_is_there():
    config = build_config({"labeled": "kanji"})
    facts = CardFacts(config, [], "student", 1000, (8, 8), "cls", "", Origin(None, (), None))
    assert b"onnx" not in card_files(facts)["README.md"].lower()
    assert b"embedder.onnx" in card_files(facts._replace(onnx=True))["README.md"]
