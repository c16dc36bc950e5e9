"""A model is opened by people who never heard of this project: a process in which it cannot even be imported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exports import exported
from PIL import Image

from stml_semi import load
from stml_semi.data.images import to_rgb
from stml_semi.data.views import eval_views

KINDS = {"resnet": "mean_max", "vit": "cls", "dinov2": "mean", "timm": "auto"}
STRANGER = """
import importlib.abc, sys
from pathlib import Path

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "stml_semi":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Refuse())
sys.path[:] = [entry for entry in sys.path if not (Path(entry) / "stml_semi" / "__init__.py").exists()]
try:
    import stml_semi
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("this process can import the project")

import numpy as np
import torch
from PIL import Image, ImageOps
from sentence_transformers import SentenceTransformer
from transformers import AutoImageProcessor, AutoModel

place = Path(sys.argv[1])
files = sorted((place / "pictures").iterdir())
for folder in sorted((place / "models").iterdir()):
    pictures = [ImageOps.exif_transpose(Image.open(file)) for file in files]
    model = SentenceTransformer(str(folder), device="cpu")
    plain = folder.name == "timm"  # timm's image processor takes RGB pictures and nothing else.
    shown = [picture.convert("RGB") for picture in pictures] if plain else pictures
    by_picture = np.stack([model.encode([picture])[0] for picture in shown])
    opaque = [i for i, file in enumerate(files) if "alpha" not in file.name]
    by_file = by_picture[opaque] if plain else np.stack([model.encode([str(files[i])])[0] for i in opaque])
    backbone = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    pictures = [picture.convert("RGB") for i, picture in enumerate(pictures) if i in opaque]
    pixels = torch.cat([processor(images=picture, return_tensors="pt")["pixel_values"] for picture in pictures])
    with torch.inference_mode():
        features = backbone(pixel_values=pixels).last_hidden_state.numpy()
    np.savez(place / f"{folder.name}.npz", by_picture=by_picture, by_file=by_file, opaque=opaque, features=features)
assert not [name for name in sys.modules if name.startswith("stml_semi")]
"""


def write_odd_pictures(folder: Path) -> list[Path]:
    """RGB, gray, transparent, palette, turned by EXIF, and one pixel wide."""
    folder.mkdir()
    small = np.random.default_rng(0).integers(0, 255, (8, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((60, 40), Image.Resampling.BICUBIC)
    alpha = np.full((40, 60), 255, dtype=np.uint8)
    alpha[:10], alpha[30:] = 0, 90
    transparent = picture.convert("RGBA")
    transparent.putalpha(Image.fromarray(alpha))
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "plain.png")
    picture.convert("L").save(folder / "gray.png")
    picture.convert("P").save(folder / "palette.png")
    transparent.save(folder / "alpha.png")
    picture.save(folder / "turned.jpg", exif=turned, quality=95)
    picture.resize((1, 40)).save(folder / "thin.png")
    return sorted(folder.iterdir())


@pytest.mark.slow
def test_models_open_where_the_project_is_not(make_backbone, tmp_path):
    files = write_odd_pictures(tmp_path / "pictures")
    (tmp_path / "models").mkdir()
    trained = {kind: exported(tmp_path / "models" / kind, make_backbone(kind), p) for kind, p in KINDS.items()}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(tmp_path)],
        cwd=elsewhere,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    pictures: list[Image.Image] = [Image.open(file) for file in files]
    for kind, (embedder, processor) in trained.items():
        with torch.inference_mode():
            pixels = eval_views([to_rgb(picture) for picture in pictures], processor)
            own = torch.nn.functional.normalize(embedder(pixels).f, dim=1).numpy()
            features = embedder.backbone(pixel_values=pixels).last_hidden_state.numpy()
        found = np.load(tmp_path / f"{kind}.npz")
        np.testing.assert_allclose(load(tmp_path / "models" / kind).encode(pictures), own, atol=1e-5, err_msg=kind)
        shown = slice(None) if kind != "timm" else found["opaque"]
        np.testing.assert_allclose(found["by_picture"][shown], own[shown], atol=1e-5, err_msg=kind)
        np.testing.assert_allclose(found["by_file"], own[found["opaque"]], atol=1e-5, err_msg=kind)
        np.testing.assert_allclose(found["features"], features[found["opaque"]], atol=1e-5, err_msg=kind)


def test_gray_and_transparent_pictures_need_no_conversion(make_backbone, tmp_path):
    from sentence_transformers import SentenceTransformer

    for kind in ("vit", "resnet"):
        exported(tmp_path / kind, make_backbone(kind), "auto")
        model = SentenceTransformer(str(tmp_path / kind), device="cpu")
        ours = load(tmp_path / kind)
        for file in write_odd_pictures(tmp_path / f"{kind}-pictures"):
            if file.name == "turned.jpg":
                continue
            picture = Image.open(file)
            served = model.encode([picture])  # pyright: ignore[reportArgumentType]
            np.testing.assert_allclose(served, ours.encode([picture]), atol=1e-5, err_msg=f"{kind} {file.name}")
