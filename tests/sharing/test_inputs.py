"""Images that are not plain RGB: an export makes of them what training does, or the card says that it does not."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.exports import exported
from PIL import Image

from stml_semi import load
from stml_semi.config import TrainConfig
from stml_semi.sharing.card import CardFacts, card_files
from stml_semi.sharing.inputs import Inputs, find_inputs
from stml_semi.sharing.origin import Origin

ALL_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
WRONG_BY_PATH = {"rgba.png", "rgba.webp", "la.png", "palette.png", "gray16.png", "turned.webp"}
WRONG_OPENED = {"turned.jpg", "turned.png", "turned.webp", "gray16.png"}


def write_images(folder: Path) -> list[Path]:
    """Colors under the transparency, deep gray, CMYK, an image turned by EXIF: one file each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rgb = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    alpha = np.full((64, 64), 90, np.uint8)
    alpha[16:48, 16:48], alpha[:8] = 255, 0
    image, gray = Image.fromarray(rgb), rgb[..., 0]
    image.save(folder / "rgb.png")
    image.convert("1").save(folder / "one.png")
    image.convert("L").save(folder / "gray.png")
    image.convert("P").save(folder / "colors.gif")
    image.save(folder / "plain.jpg", quality=95)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.resize((1, 40)).save(folder / "thin.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(folder / "rgba.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(folder / "rgba.webp", lossless=True, exact=True)
    Image.fromarray(np.dstack([gray, alpha]), "LA").save(folder / "la.png")
    palette = image.convert("P")
    palette.save(folder / "palette.png", transparency=int(np.asarray(palette)[0, 0]))
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "gray16.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned, quality=95)
    image.save(folder / "turned.png", exif=turned)
    image.save(folder / "turned.webp", exif=turned, lossless=True)
    return sorted(folder.iterdir())


def opened(file: Path) -> Image.Image:
    return Image.open(io.BytesIO(file.read_bytes()))


def open_image_of(card: str) -> Any:
    """The function that the card offers."""
    names: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("model = ")[0], names)
    return names["open_image"]


def card_of(processor: Any) -> str:
    config = TrainConfig(labeled="kanji", max_steps=9)
    facts = CardFacts(
        config, [], "student", 9, (8, 8), "cls", "", Origin(None, (), None), inputs=find_inputs(processor)
    )
    return card_files(facts)["README.md"].decode()


@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # How others read files.
@pytest.mark.parametrize("kind", ["vit", "dinov2", "timm"])
def test_what_the_card_says_of_inputs_is_true(make_backbone, tmp_path, kind):
    from sentence_transformers import SentenceTransformer

    _, processor = exported(tmp_path / "model", make_backbone(kind), "auto")
    files = write_images(tmp_path / "images")
    model, inputs = SentenceTransformer(str(tmp_path / "model"), device="cpu"), find_inputs(processor)
    own = load(tmp_path / "model").encode([opened(file) for file in files])
    open_image = open_image_of(card_of(processor))

    def served(item: Any) -> Any:
        return model.encode([item])[0]

    assert inputs.modes == (("RGB",) if kind == "timm" else ALL_MODES)
    assert inputs.paths == (kind != "timm")
    for file, expected in zip(files, own, strict=True):
        image = open_image(io.BytesIO(file.read_bytes()))
        for item in (image, np.array(image)):
            np.testing.assert_allclose(served(item), expected, atol=1e-5, err_msg=file.name)
        if not inputs.paths:
            with pytest.raises(ValueError, match="flat list"):
                served(str(file))
        elif file.name not in WRONG_BY_PATH:
            np.testing.assert_allclose(served(str(file)), expected, atol=1e-5, err_msg=file.name)
        else:  # Once this fails, the card need not warn any more.
            assert not np.allclose(served(str(file)), expected, atol=1e-3), file.name
        if opened(file).mode in inputs.modes and file.name not in WRONG_OPENED:
            np.testing.assert_allclose(served(opened(file)), expected, atol=1e-5, err_msg=file.name)
        elif kind == "timm" and file.name not in WRONG_OPENED:
            with pytest.raises((RuntimeError, TypeError)):
                served(opened(file))


def test_the_card_speaks_of_this_models_processor(make_backbone, tmp_path):
    _, processor = exported(tmp_path / "vit", make_backbone("vit"), "auto")
    assert 'backend="torchvision"' in card_of(processor)
    assert "**without transparency**" in card_of(processor)
    _, processor = exported(tmp_path / "timm", make_backbone("timm"), "auto")
    assert "backend=" not in card_of(processor)
    assert "Paths are refused" in card_of(processor)


def test_the_image_processor_is_that_of_training(make_backbone, tmp_path):
    """The one on Pillow differs by a gray level: here it is what training uses."""
    import transformers
    from sentence_transformers import SentenceTransformer

    from stml_semi.models.backbone import open_backbone
    from stml_semi.sharing.export import export_model

    embedder, processor = exported(tmp_path / "torchvision", make_backbone("vit"), "auto")
    on_pillow = transformers.ViTImageProcessorPil(**processor.to_dict())
    export_model(embedder, on_pillow, tmp_path / "pillow")
    for backend in ("torchvision", "pil"):
        folder = tmp_path / ("pillow" if backend == "pil" else backend)
        assert json.loads((folder / "sentence_bert_config.json").read_text())["processor_kwargs"]["backend"] == backend
        opened: Any = SentenceTransformer(str(folder), device="cpu")
        assert opened[0].processor.backend == backend
    assert open_backbone(str(tmp_path / "torchvision")).processor.backend == "torchvision"


def test_a_processor_that_refuses_gray_is_exported_as_one_that_takes_it(make_backbone, tmp_path):
    from stml_semi.models.backbone import open_backbone

    processor = open_backbone(str(make_backbone("vit"))).processor
    processor.do_convert_rgb = False
    assert find_inputs(processor) == Inputs(ALL_MODES, True, "torchvision")
    assert processor.do_convert_rgb is False
