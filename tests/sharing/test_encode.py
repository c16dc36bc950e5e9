"""`encode` takes images as programs hold them, and answers as sentence-transformers does."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import write_pictures
from PIL import Image

from stml_semi.runtime.errors import BadInput
from stml_semi.sharing.load import Retriever, load


@pytest.fixture(scope="module")
def model() -> Retriever:
    return load("tiny-resnet")


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    return write_pictures(tmp_path, 5)


def test_every_kind_of_image_has_the_embedding_of_its_file(model, paths):
    path = paths[0]
    image = Image.open(path).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = model.encode(image)
    assert expected.shape == (208,)
    for other in (path, str(path), path.read_bytes(), array, tensor, tensor / 255):
        np.testing.assert_allclose(model.encode(other), expected, atol=1e-6, err_msg=type(other).__name__)
    gray = np.asarray(image.convert("L"))
    np.testing.assert_allclose(model.encode(gray), model.encode(torch.from_numpy(gray.copy())[None]), atol=1e-6)
    np.testing.assert_allclose(model.encode(np.dstack([array, np.full_like(gray, 255)])), expected, atol=1e-6)


def test_many_come_as_any_iterable_and_in_any_batches(model, paths):
    expected = model.encode(paths)
    assert expected.shape == (5, 208)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    stacked = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    for many in (tuple(map(str, paths)), (path for path in paths), stacked, np.array(list(map(str, paths)))):
        np.testing.assert_allclose(model.encode(many, batch_size=2), expected, atol=1e-6)
    assert model.encode([]).shape == (0, 208)


def test_a_tensor_a_bar_and_bare_lengths_on_request(model, paths, capsys):
    bare = model.encode(iter(paths), convert_to_tensor=True, normalize_embeddings=False, show_progress_bar=True)
    assert isinstance(bare, torch.Tensor)
    assert not np.allclose(bare.norm(dim=1), 1)
    assert "embed 5/5" in capsys.readouterr().err
    unit = model.encode(paths)
    torch.testing.assert_close(torch.nn.functional.normalize(bare, dim=1), torch.from_numpy(unit))
    cosines = model.similarity(unit, bare)
    torch.testing.assert_close(cosines, torch.from_numpy(unit @ unit.T))
    torch.testing.assert_close(model.similarity(unit[0], unit), cosines[:1])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("https://example.org/a.jpg", "an address, not a file; download it first"),
        ("nowhere.jpg", "nowhere.jpg: no such file"),
        (b"no image", "image 0: not an image"),
        (np.zeros((4, 4, 3)), "an array of float64; uint8 is wanted"),
        (np.zeros((3, 8, 8), np.uint8), r"an array of shape \(3, 8, 8\)"),
        (torch.zeros(8, 8, 3), r"a tensor of shape \(8, 8, 3\)"),
        (torch.full((3, 8, 8), -2.0), "numbers beyond 0..1"),
    ],
)
def test_what_cannot_be_read_says_why(model, image, message):
    with pytest.raises(BadInput, match=message):
        model.encode(image)


def test_what_is_no_image_is_a_type_error_that_says_what_is_taken(model, paths):
    for wrong in ([3], [None], [[paths[0]]], [io.BytesIO(b"")]):
        with pytest.raises(TypeError, match="is no image; give a path"):
            model.encode(wrong)
    with pytest.raises(BadInput, match=r"query\.png"):
        model.encode([b""], names=["query.png"])
