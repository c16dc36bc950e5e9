"""Model folders of strangers: no code of theirs runs, nothing leads out of them, and whatever is wrong is one line."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers.exports import exported
from safetensors.torch import load_file, save_file

from stml_semi import load
from stml_semi.models.backbone import open_backbone
from stml_semi.runtime.errors import BadInput

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
HEAD = "2_Dense/model.safetensors"


@pytest.fixture
def folder(make_backbone, tmp_path):
    return shutil.copytree(make_backbone("vit"), tmp_path / "model")


@pytest.fixture(scope="module")
def served(make_backbone, tmp_path_factory):
    model = tmp_path_factory.mktemp("served") / "model"
    exported(model, make_backbone("vit"), "mean")
    return model


@pytest.fixture
def export(served, tmp_path):
    return shutil.copytree(served, tmp_path / "export")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder) -> str:
    with pytest.raises(BadInput) as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith(f"--model {folder}: ")
    assert "\n" not in text
    assert "trust_remote_code" not in text
    return text


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Python files for a model's folder that leave a trace when they are imported, and a "y" on standard input."""
    trace = tmp_path / "ran"
    lines = [f"open({str(trace)!r}, 'w').close()", "from transformers import *"]
    lines += ["class C(PreTrainedConfig): model_type = 'own'", "class M(PreTrainedModel): config_class = C"]
    lines += ["class P(BaseImageProcessor): pass"]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))

    def spring(folder):
        (folder / "own.py").write_text("\n".join(lines))
        return trace

    return spring


@pytest.mark.parametrize("file", [CONFIG, PROCESSOR])
def test_a_models_own_code_never_runs(folder, trap, file):
    trace = trap(folder)
    own = {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoImageProcessor": "own.P"}
    change(folder / file, auto_map=own, **{"model_type": "own"} if file == CONFIG else {"image_processor_type": "P"})
    assert "never run" in refused(folder)
    with pytest.raises(BadInput, match="--backbone .* never run"):
        open_backbone(str(folder))
    assert not trace.exists()


def test_names_of_code_do_not_travel_into_exports(folder, trap, tmp_path):
    trace = trap(folder)
    own = {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoImageProcessor": "own.P"}
    change(folder / CONFIG, auto_map=own, custom_pipelines={"x": {"impl": "own.C"}})
    change(folder / PROCESSOR, auto_map=own)
    exported(tmp_path / "out", folder, "auto")  # transformers knows this model without the code.
    written = "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json"))
    assert "own." not in written
    assert not trace.exists()


class _Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_among_the_weights_does_not_run(folder, export, tmp_path):
    trace = tmp_path / "ran"
    for file in (folder / "pytorch_model.bin", export / "2_Dense" / "pytorch_model.bin"):
        file.write_bytes(pickle.dumps(_Evil(str(trace))))
        file.with_name(WEIGHTS).unlink()
    assert "without running code" in refused(folder)
    assert HEAD in refused(export)
    assert not trace.exists()


def test_weights_in_an_older_format_open(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert load(folder).num_features == 16


TORN = {
    "no weights": lambda f: (f / WEIGHTS).unlink(),
    "empty weights": lambda f: (f / WEIGHTS).write_bytes(b""),
    "truncated weights": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1]),
    "a pointer of git-lfs": lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
    "no configuration": lambda f: (f / CONFIG).unlink(),
    "torn configuration": lambda f: (f / CONFIG).write_text((f / CONFIG).read_text()[:40]),
    "a list": lambda f: (f / CONFIG).write_text("[]"),
    "null": lambda f: (f / CONFIG).write_text("null"),
    "deep": lambda f: (f / CONFIG).write_text("[" * 100_000),
    "another encoding": lambda f: (f / CONFIG).write_text((f / CONFIG).read_text(), encoding="utf-16"),
    "unknown type": lambda f: change(f / CONFIG, model_type="unheard-of"),
    "a type that is a list": lambda f: change(f / CONFIG, model_type=["vit"]),
    "a language model": lambda f: change(f / CONFIG, model_type="bert"),
    "a width in words": lambda f: change(f / CONFIG, hidden_size="many"),
    "another width": lambda f: change(f / CONFIG, hidden_size=32),
    "a billion layers": lambda f: change(f / CONFIG, num_hidden_layers=10**9),
    "quantized": lambda f: change(f / CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}),
    "a dtype of no name": lambda f: change(f / CONFIG, dtype="float7"),
    "auto_map of a number": lambda f: change(f / CONFIG, auto_map=5),
    "an adapter": lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "/"}'),
    "torn processor": lambda f: (f / PROCESSOR).write_text("{"),
    "a list of processors": lambda f: (f / PROCESSOR).write_text("[]"),
    "a processor of text": lambda f: change(f / PROCESSOR, image_processor_type="BertTokenizer"),
    "a negative size": lambda f: change(f / PROCESSOR, size={"height": -3, "width": 5}),
    "another size": lambda f: change(f / PROCESSOR, size={"height": 64, "width": 64}),
    "weights elsewhere": lambda f: _shard(f, "../other.safetensors"),
    "weights at a path": lambda f: _shard(f, "/etc/hostname"),
}


def _shard(folder, place):
    weights = load_file(folder / WEIGHTS)
    shutil.move(folder / WEIGHTS, folder.parent / "other.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, place)})
    )


@pytest.mark.parametrize("harm", TORN.values(), ids=TORN.keys())
def test_a_torn_or_strange_folder_is_one_line(folder, harm):
    harm(folder)
    refused(folder)


def test_weights_of_another_shape_are_named(folder):
    weights = load_file(folder / WEIGHTS)
    name = "layers.0.attention.q_proj.weight" if "layers.0.attention.q_proj.weight" in weights else min(weights)
    save_file(weights | {name: torch.zeros(3, 3)}, folder / WEIGHTS, metadata={"format": "pt"})
    assert f"in another shape ({name}, ...)" in refused(folder)


@pytest.mark.parametrize("values", [{"architecture": "hf-hub:a/b"}, {"model_args": {"checkpoint_path": "/tmp/x.pth"}}])
def test_a_timm_model_brings_its_own_weights(make_backbone, tmp_path, values):
    folder = shutil.copytree(make_backbone("timm"), tmp_path / "model")
    change(folder / CONFIG, **values)
    assert "config.json names a model elsewhere" in refused(folder)


@pytest.mark.parametrize("kind", ["Pooling", "Dense"])
@pytest.mark.parametrize("way", ["../outside", "{}", "link", "1_Pooling/../../outside"])
def test_modules_do_not_lead_out_of_the_folder(export, tmp_path, kind, way):
    outside, modules = tmp_path / "outside", json.loads((export / "modules.json").read_text())
    for entry in modules:
        if entry["type"].endswith(kind):
            shutil.copytree(export / entry["path"], outside)
            entry["path"] = way.format(outside)
    (export / "link").symlink_to(outside)
    (export / "modules.json").write_text(json.dumps(modules))
    assert "modules.json leads out of its folder" in refused(export)


def test_a_module_that_is_a_link_to_elsewhere(export, tmp_path):
    shutil.move(export / HEAD, tmp_path / "head.safetensors")
    (export / HEAD).symlink_to(tmp_path / "head.safetensors")
    assert "leads out of its folder" in refused(export)


def test_a_folder_may_be_a_link_itself(export, tmp_path):
    (tmp_path / "newest").symlink_to(export)
    assert load(tmp_path / "newest").num_features == 7


MODULES = {
    "an object": lambda f: (f / "modules.json").write_text("{}"),
    "no modules": lambda f: (f / "modules.json").write_text("[]"),
    "torn": lambda f: (f / "modules.json").write_text("[{"),
    "numbers": lambda f: (f / "modules.json").write_text("[1]"),
    "no path": lambda f: (f / "modules.json").write_text('[{"type": "a.Transformer"}]'),
    "another class": lambda f: (f / "modules.json").write_text('[{"type": "os.system", "path": ""}]'),
    "a pooling of numbers": lambda f: (f / "1_Pooling" / CONFIG).write_text('{"pooling_mode": [{}]}'),
    "no head": lambda f: (f / HEAD).unlink(),
    "a truncated head": lambda f: (f / HEAD).write_bytes((f / HEAD).read_bytes()[:-1]),
    "a head of other names": lambda f: save_file({"weight": torch.zeros(7, 32)}, f / HEAD),
    "a head of another width": lambda f: save_file({"linear.weight": torch.zeros(7, 99)}, f / HEAD),
}


@pytest.mark.parametrize("harm", MODULES.values(), ids=MODULES.keys())
def test_torn_or_strange_modules_are_one_line(export, harm):
    harm(export)
    refused(export)


@pytest.mark.parametrize("file", [WEIGHTS, HEAD])
def test_weights_that_may_not_be_read_are_said_so(export, monkeypatch, file):
    opened = Path.open

    def denied(path, *arguments, **options):
        if path == export / file:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refused(export)
