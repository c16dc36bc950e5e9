"""What is trained is what is served: exports open with the field's own libraries and give the trainer's embeddings."""

import numpy as np
import pytest
import torch
from helpers.exports import exported
from PIL import Image

from stml_semi import load
from stml_semi.data.views import eval_views

KINDS = [("resnet", "auto"), ("vit", "auto"), ("vit", "mean"), ("dinov2", "mean"), ("swin", "auto"), ("clip", "auto")]


@pytest.mark.parametrize(("kind", "pooling"), KINDS)
def test_export_gives_the_trainers_embeddings(make_backbone, tmp_path, pictures, kind, pooling):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    embedder, processor = exported(tmp_path / "model", make_backbone(kind), pooling)
    with torch.inference_mode():
        pixels = eval_views(pictures, processor)
        trained = torch.nn.functional.normalize(embedder(pixels).f, dim=1).numpy()
        backbone = AutoModel.from_pretrained(tmp_path / "model").eval()
        features = [m(pixel_values=pixels).last_hidden_state for m in (embedder.backbone, backbone)]
    ours = load(tmp_path / "model").encode(pictures)
    served = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(pictures)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(ours, trained, atol=1e-5)
    np.testing.assert_allclose(served, trained, atol=1e-5)
    torch.testing.assert_close(features[0], features[1], rtol=1e-5, atol=1e-5)


def test_encode_takes_pictures_of_any_kind(make_backbone, tmp_path, pictures):
    exported(tmp_path / "model", make_backbone("vit"), "auto")
    retriever = load(tmp_path / "model")
    odd = [pictures[0], pictures[0].convert("L"), pictures[0].convert("RGBA"), Image.new("P", (9, 1))]
    embeddings = retriever.encode(odd, batch_size=3)
    assert embeddings.shape == (4, 7)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embeddings[2], embeddings[0], atol=1e-5)
    assert not np.allclose(np.linalg.norm(retriever.encode(odd, normalize_embeddings=False), axis=1), 1)
    assert retriever.encode([]).shape == (0, 7)


def test_a_bare_backbone_serves_its_frozen_features(make_backbone, pictures):
    assert load(make_backbone("resnet")).encode(pictures).shape == (8, 16)


def test_an_export_replaces_an_older_one_whole(make_backbone, tmp_path, pictures):
    exported(tmp_path / "model", make_backbone("vit"), "auto")
    (tmp_path / "model" / "left-over.bin").write_bytes(b"x")
    exported(tmp_path / "model", make_backbone("resnet"), "auto")
    assert not (tmp_path / "model" / "left-over.bin").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert load(tmp_path / "model").encode(pictures).shape == (8, 7)


def test_an_unfinished_run_says_so(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has not finished.*--resume"):
        load(tmp_path)


def test_nothing_there_is_an_error_with_the_fix():
    with pytest.raises(ValueError, match="--model no/such-model: no such run or folder"):
        load("no/such-model")
