"""A run over images of which one in twenty cannot be read."""

import io
import json
from pathlib import Path

import pytest
from helpers.pictures import write_pictures
from helpers.real_runs import TERMS
from PIL import Image
from safetensors.torch import load_file

from stml_semi.runtime.errors import RunFailed
from stml_semi.training.resolve import resolve
from stml_semi.training.run import run


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """40 labeled and 60 unlabeled images, five of which are bad, each in its own way."""
    for seed, name in enumerate("abcd"):
        write_pictures(tmp_path / "labeled" / name, 10, seed=seed)
        write_pictures(tmp_path / "test" / name.upper(), 2, seed=seed + 10)
    write_pictures(tmp_path / "pool", 60, seed=9)
    half = (tmp_path / "pool" / "1.png").read_bytes()[:100]
    bomb = io.BytesIO()
    Image.new("1", (9000, 3)).save(bomb, "PNG")
    (tmp_path / "labeled" / "a" / "3.png").write_bytes(b"")
    (tmp_path / "labeled" / "c" / "0.png").write_bytes(b"<html>404</html>")
    (tmp_path / "pool" / "7.png").write_bytes(half)
    (tmp_path / "pool" / "20.png").write_bytes(bomb.getvalue())
    (tmp_path / "pool" / "33.png").unlink()
    (tmp_path / "pool" / "33.png").symlink_to(tmp_path / "gone.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SETTINGS = {
    **{"labeled": "labeled", "unlabeled": "pool", "eval": "test", "backbone": "tiny-resnet", "num_workers": 0},
    **{"labeled_batch_size": 16, "images_per_class": 4, "unlabeled_batch_size": 10, "label_warmup_steps": 0},
    **{"max_steps": 6, "refresh_every": 3, "log_every": 1, "eval_every": 0, "save_every": 0},
}
BAD = {
    "labeled/a/3.png": "empty file",
    "labeled/c/0.png": "not an image",
    "pool/7.png": "truncated",
    "pool/20.png": "too narrow (9000 x 3 pixels)",
    "pool/33.png": "no such file",
}


def listed(path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["image"] for line in lines}) == len(lines)
    return {line["image"]: line["reason"] for line in lines}


def test_five_percent_are_refused_by_default(folder):
    with pytest.raises(RunFailed, match=r"\d of 108 images cannot be read, more than --max-bad-fraction 0.01 allows"):
        run(resolve("semi", SETTINGS | {"output_dir": "run"}))
    assert listed(folder / "run" / "bad_images.jsonl").items() <= BAD.items()
    assert not (folder / "run" / "model").exists()


@pytest.mark.slow
def test_five_percent_are_listed_and_replaced_alike_when_allowed(folder):
    results = [
        run(resolve("semi", SETTINGS | {"output_dir": name, "max_bad_fraction": 0.1})) for name in ("one", "two")
    ]
    for result in results:
        assert listed(result.folder.log.bad_images) == BAD
        assert result.folder.log.lines()[-1]["step"] == 6
    one, two = ([line for line in result.folder.log.lines() if "loss" in line] for result in results)
    assert [line["bad_images"] for line in one][-1] == 5
    assert [[line[term] for term in TERMS] for line in one] == [[line[term] for term in TERMS] for line in two]
    weights = [load_file(next(result.folder.model.glob("*.safetensors"))) for result in results]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
