"""Images of another shape: cropped, padded or squashed alike in training, in evaluation and by who opens an export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tr
from helpers.backbones import processor, timm_folder, vit
from helpers.exports import exported
from PIL import Image
from sentence_transformers import SentenceTransformer

import stml_semi
from stml_semi.data.framing import Framing, frame
from stml_semi.data.views import augment, eval_view, normalization, view_rng, view_size
from stml_semi.models.backbone import Backbone, open_backbone
from stml_semi.models.fit import fit_images, framing_of
from stml_semi.models.image_size import resize
from stml_semi.runtime.errors import BadInput

SQUARE = {"height": 32, "width": 32}
PROCESSORS: dict[str, tuple[Any, str]] = {
    "vit": (processor(), "squash"),
    "dinov2": (tr.BitImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE), "crop"),
    "dinov3": (tr.DINOv3ViTImageProcessor(size=SQUARE), "squash"),
    "clip": (tr.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE), "crop"),
    "siglip": (tr.SiglipImageProcessor(size=SQUARE), "squash"),
    "resnet": (tr.ConvNextImageProcessor(size={"shortest_edge": 32}), "crop"),
    "large convnext": (tr.ConvNextImageProcessor(size={"shortest_edge": 384}), "squash"),
    "levit": (tr.LevitImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE), "crop"),
    "rectangle": (processor(48, 24), "squash"),
}
SHAPES = [(96, 40), (40, 96), (64, 64), (11, 300)]


def picture(width: int, height: int) -> Image.Image:
    """Smooth, so that ways of interpolation agree, and unlike at each of its sides."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    red, green = np.broadcast_to(across, (height, width)), np.broadcast_to(down[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, 255 - red], 2).astype(np.uint8))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_what_is_trained_on_is_what_is_evaluated(name, fit, tmp_path):
    made, native = PROCESSORS[name]
    before = framing_of(made)
    assert before is not None
    assert before.fit == native
    if (name, fit) == ("rectangle", "crop"):
        with pytest.raises(BadInput, match=r"^--fit crop: .*\(ViTImageProcessor\) cannot do it; leave the flag out$"):
            fit_images(Backbone(vit(), made), fit)
        return
    found = fit_images(Backbone(vit(), made), fit).processor
    assert view_size(found) == view_size(made)
    mean, std = normalization(found)
    torch.testing.assert_close(normalization(made), (mean, std))
    framing = framing_of(found)
    assert framing is not None
    assert framing.fit == fit
    found.save_pretrained(tmp_path)
    opened: Any = tr.AutoImageProcessor.from_pretrained(tmp_path)
    for width, height in SHAPES:
        image = picture(width, height)
        view = eval_view(image, opened)
        assert torch.equal(view, eval_view(image, found))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        trained = augment(pixels, preset="none", size=view_size(made), rng=view_rng(0, 0, 0, 0), framing=framing)
        shown = 255 * (view * std[:, None, None] + mean[:, None, None])
        if fit != native or fit != "crop":  # Processors that crop may leave out a margin of squares too.
            assert (shown - trained.float()).abs().mean() < 8, (width, height)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_models_of_timm_have_it_in_their_configuration(fit, tmp_path):
    backbone = open_backbone(timm_folder(tmp_path / "m", "tf_efficientnet_lite0"))
    changed = fit_images(backbone, fit)
    gray = (128, 128, 128) if fit == "pad" else (0, 0, 0)
    assert framing_of(changed.processor) == Framing(fit, gray)  # Timm's bars are of the mean color.
    changed.model.save_pretrained(tmp_path / "saved")
    assert framing_of(open_backbone(str(tmp_path / "saved")).processor) == Framing(fit, gray)


def test_bars_stand_on_both_sides_and_crops_in_the_middle():
    wide = torch.arange(40, dtype=torch.uint8).repeat(3, 20, 1)
    padded = frame(wide, (40, 40), Framing("pad", (1, 2, 3)))
    assert padded[:, 0, 0].tolist() == padded[:, -1, -1].tolist() == [1, 2, 3]
    assert torch.equal(padded[:, 10:30], wide)
    assert torch.equal(frame(wide, (20, 20), Framing("crop")), wide[:, :, 10:30])
    assert torch.equal(frame(wide.mT, (20, 20), Framing("crop")), wide.mT[:, 10:30])
    thin = torch.full((3, 1, 500), 9, dtype=torch.uint8)
    assert frame(thin, (8, 8), Framing("pad")).sum() == 3 * 8 * 9


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_who_opens_an_export_pads_too(name, make_backbone, tmp_path):
    """And whoever opens it for another size first: the bars follow."""
    model, made = open_backbone(str(make_backbone("vit")))._replace(processor=PROCESSORS[name][0])
    padded = fit_images(Backbone(model, made), "pad")
    folder = tmp_path / "backbone"
    padded.model.save_pretrained(folder)
    padded.processor.save_pretrained(folder)
    exported(tmp_path / "model", folder, "cls")
    image = picture(90, 30)
    ours = stml_semi.load(tmp_path / "model").encode(image)
    assert not np.allclose(ours, stml_semi.load(tmp_path / "model").encode(picture(30, 30)), atol=1e-3)
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "model")).encode([image])[0], ours, atol=1e-5)
    larger = resize(padded, 48)
    assert view_size(larger.processor) == (48, 48)
    assert framing_of(larger.processor) == Framing("pad")


def test_a_run_pads_and_so_does_its_model(tmp_path, monkeypatch):
    from stml_semi.data.batches import loading

    framings: list[Framing] = []

    def look(*args: Any, framing: Framing, **options: Any) -> Any:
        framings.append(framing)
        return augment(*args, framing=framing, **options)

    monkeypatch.setattr(loading, "augment", look)
    labeled = []
    for name in ("wren", "robin"):
        for number in range(4):
            picture(20 + 9 * number, 24).save(tmp_path / f"{name}{number}.png")
            labeled.append((tmp_path / f"{name}{number}.png", name))
    small: dict[str, Any] = {
        "embedding_dim": 8,
        "auxiliary_dim": 8,
        "max_steps": 2,
        "num_workers": 0,
        "no_report": True,
    }
    run = stml_semi.train(
        labeled=labeled, backbone="tiny-resnet", fit="pad", augment="none", output_dir=str(tmp_path / "run"), **small
    )
    assert set(framings) == {Framing("pad")}
    assert json.loads((run.model / "preprocessor_config.json").read_text())["size"].keys() == {
        "max_height",
        "max_width",
    }
    assert framing_of(stml_semi.load(run.model).processor) == Framing("pad")
    with pytest.raises(
        BadInput, match=r"^--fit crop: .*crops, pads or squashes as it was trained to; leave the flag out"
    ):
        stml_semi.load(run.model, fit="crop")


def test_what_cannot_be_is_said(tmp_path):
    backbone: Any = Backbone(vit(), processor())
    with pytest.raises(BadInput, match="^--fit stretch: choose one of auto, crop, pad, squash$"):
        fit_images(backbone, "stretch")  # pyright: ignore[reportArgumentType]
    assert fit_images(backbone, "auto") is backbone
    assert fit_images(backbone, "squash") is backbone
    model: Any = type("Model", (), {"config": tr.ViTConfig()})()
    one_sided = tr.ViTImageProcessor(size={"max_height": 32, "max_width": 32}, do_pad=True, pad_size=SQUARE)
    assert framing_of(one_sided) is None
    assert framing_of(fit_images(Backbone(model, one_sided), "pad").processor) == Framing("pad")


def test_an_index_remembers_it(tmp_path, photos_folder: Path):
    from stml_semi.search.embed import embed_source
    from stml_semi.search.query import search

    folder = str(tmp_path / "index")
    embed_source("tiny-resnet", str(photos_folder), folder, fit="pad", num_workers=0)
    query = str(photos_folder / "1.png")
    assert search(folder, [query], k=1)[0].hits[0].similarity == pytest.approx(1, abs=1e-5)
    with pytest.raises(BadInput, match="holds an index of another fit"):
        embed_source("tiny-resnet", str(photos_folder), folder, num_workers=0)


def test_a_strip_that_padding_leaves_nothing_of_is_a_bad_image(tmp_path, photos_folder: Path):
    """The library of processors rounds a height of 0.8 pixels down."""
    from stml_semi.search.embed import embed_source

    picture(400, 3).save(photos_folder / "strip.png")
    with pytest.raises(BadInput, match=r"strip\.png: 400 x 3 pixels: the backbone's image processor fails on it"):
        stml_semi.load("tiny-resnet", fit="pad").encode(sorted(photos_folder.iterdir()))
    made = embed_source("tiny-resnet", str(photos_folder), str(tmp_path / "index"), fit="pad", num_workers=0)
    assert (made.num_rows, made.num_bad) == (5, 1)
    reason = json.loads((tmp_path / "index" / "bad_images.jsonl").read_text())["reason"]
    assert reason.startswith("400 x 3 pixels: the backbone's image processor fails on it (")


@pytest.fixture
def photos_folder(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        picture(20 + 30 * number, 40).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"
