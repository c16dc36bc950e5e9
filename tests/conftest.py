"""Small random backbones of every kind, and images to go with them. Everything is offline."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import write_pictures
from helpers.real_runs import train
from helpers.shared import once
from hypothesis import settings
from jaxtyping import install_import_hook
from PIL import Image

# Every call of the tests checks the shapes that these modules state. None of them is imported before this line.
install_import_hook(["stml_semi.losses", "stml_semi.metrics", "stml_semi.neighbors"], "beartype.beartype")

pytest_plugins = ["helpers.source_helpers"]
torch.set_num_threads(1)
settings.register_profile("ours", deadline=None)  # Other tests may have the processor.
settings.load_profile("ours")

SIZE = 32


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-curves", action="store_true", help="replace the committed loss curves by what runs log now"
    )


@pytest.fixture(scope="session")
def make_backbone(tmp_path_factory) -> Callable[[str], Path]:
    """kind -> folder with a small random backbone and its image processor, in transformers format."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            _save_backbone(kind, folders[kind])
        return folders[kind]

    return make


def _save_backbone(kind: str, folder: Path) -> None:
    import transformers as tr

    torch.manual_seed(0)
    vit: dict[str, Any] = {
        "image_size": SIZE,
        "patch_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    text = {key: vit[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    side = {"height": SIZE, "width": SIZE}
    processor = tr.ViTImageProcessor(size=side)
    if kind == "resnet":
        model = tr.ResNetModel(
            tr.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        )
    elif kind == "convnext":
        model = tr.ConvNextModel(tr.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))
    elif kind == "vit":
        model = tr.ViTModel(tr.ViTConfig(**vit))  # With a pooler, as on the hub.
    elif kind == "vit_dropout":
        # Of large weights, as if trained: else all images look alike to it, and rounding decides who is near whom.
        model = tr.ViTModel(
            tr.ViTConfig(**vit, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, initializer_range=0.4)
        )
    elif kind == "deit":
        model = tr.DeiTModel(tr.DeiTConfig(**vit))
    elif kind == "dinov2":
        model = tr.Dinov2Model(tr.Dinov2Config(**vit))
        processor = tr.BitImageProcessor(size={"shortest_edge": 36}, crop_size=side)
    elif kind == "dinov3":
        model = tr.DINOv3ViTModel(tr.DINOv3ViTConfig(**vit, num_register_tokens=4))
    elif kind == "swin":
        model = tr.SwinModel(
            tr.SwinConfig(image_size=SIZE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
        )
    elif kind == "clip":
        model = tr.CLIPModel(tr.CLIPConfig(vision_config=vit, text_config=text, projection_dim=8))
        processor = tr.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=side)
    elif kind == "siglip":
        model = tr.SiglipModel(tr.SiglipConfig(vision_config=vit, text_config=text))
        processor = tr.SiglipImageProcessor(size=side)
    elif kind == "timm":
        # On the hub timm models keep their processor's settings in config.json.
        seen = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
        options: dict[str, Any] = {"pretrained_cfg": seen}
        config = tr.TimmWrapperConfig(architecture="resnet10t", do_pooling=False, **options)
        tr.TimmWrapperModel(config).save_pretrained(folder)
        return
    else:
        raise AssertionError(kind)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Eight different RGB images."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (8, 5, 6, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC) for pixels in small]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A real run on two folders beside it, `labeled` and `loose`: one image cannot be read, one is there twice."""
    return once(tmp_path_factory, "report", _finish_run) / "run"


def _finish_run(folder: Path) -> None:
    for name in "abcdefgh":
        write_pictures(folder / "labeled" / name, 6, seed=ord(name))
    loose = write_pictures(folder / "loose", 30)
    loose[4].write_bytes(b"no image")
    loose[7].write_bytes(loose[6].read_bytes())
    flags = ["--labeled", str(folder / "labeled"), "--unlabeled", str(folder / "loose"), "--max-bad-fraction", "0.1"]
    flags += ["--eval", str(folder / "labeled"), "--backbone", "tiny-resnet", "--labeled-batch-size", "8"]
    flags += ["--images-per-class", "2", "--unlabeled-batch-size", "20", "--max-steps", "6", "--log-every", "1"]
    done = train(folder / "run", *flags, report=True)
    assert done.returncode == 0, done.stderr
    assert f"report: {folder / 'run' / 'report.html'}" in done.stderr
