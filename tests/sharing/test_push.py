"""Uploads, with the real huggingface_hub client against a hub on the loopback."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.hub_server import TOKEN, Hub, running_hub
from huggingface_hub import constants

from stml_semi import load
from stml_semi.run_folder.recipe import build_config
from stml_semi.sharing import push
from stml_semi.sharing.card import CardFacts, Origin, card_files

ROOT = Path(__file__).parents[2]
# What the hub's own client does when it uploads large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def exported(make_backbone, tmp_path_factory):
    from helpers.exports import exported

    folder = tmp_path_factory.mktemp("push") / "model"
    exported(folder, make_backbone("vit"), "auto")
    config = build_config({"labeled": "kanji", "max_steps": 1})
    facts = CardFacts(config, [], "student", 1, (32, 32), "cls", "", Origin(None, (), None))
    for name, content in card_files(facts).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def model(exported, tmp_path):
    """A run folder with everything that must stay at home."""
    run = tmp_path / "run"
    shutil.copytree(exported, run / "model")
    (run / "config.yaml").write_text("labeled: kanji\n")
    (run / "metrics.jsonl").write_text("")
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    (run / "checkpoints" / "step-1" / "optimizer.safetensors").write_bytes(b"moments")
    (run / "model" / "training_args.bin").write_bytes(b"pickle")
    (run / "model" / "optimizer.pt").write_bytes(b"pickle")
    return run


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # The loopback has no content-addressed storage.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(push, "_PAUSES", (0.0, 0.0, 0.0))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def files(hub: Hub) -> dict[str, bytes]:
    return hub.repos["me/birds"]


def test_what_is_uploaded_and_what_is_not(hub, model, caplog):
    caplog.set_level(logging.DEBUG)
    notes = []
    done = push.push(str(model), "me/birds", private=True, license="mit", note=notes.append)
    assert done.url == f"{hub.url}/me/birds"
    assert hub.private["me/birds"]
    assert len(hub.commits) == 1
    names = set(files(hub)) - {".gitattributes"}
    local = {p.relative_to(model / "model").as_posix() for p in (model / "model").rglob("*") if p.is_file()}
    assert names == local - {"training_args.bin", "optimizer.pt"}
    assert {"config.json", "model.safetensors", "modules.json", "README.md", "training_config.yaml"} <= names
    card = files(hub)["README.md"].decode()
    assert "license: mit" in card
    assert 'SentenceTransformer("me/birds")' in card
    assert "path/to/this/folder" not in card
    assert "license" not in (model / "model" / "README.md").read_text().split("---")[1]
    sent = b"".join([*hub.bodies, *files(hub).values(), *hub.stored.values()])
    assert TOKEN.encode() not in sent
    assert TOKEN not in caplog.text + " ".join(notes)
    assert not any(data.startswith((b"\x80\x04", b"PK")) for data in files(hub).values())


def test_pushing_again_sends_what_changed_and_drops_what_is_gone(hub, model):
    push.push(str(model), "me/birds")
    commits = len(hub.commits)
    push.push(str(model), "me/birds")
    assert len(hub.commits) == commits  # Nothing changed, no commit.
    files(hub)["9_Old/config.json"] = b"{}"
    files(hub)["notes.md"] = b"somebody's"
    push.push(str(model / "model"), "me/birds")
    assert "9_Old/config.json" not in files(hub)
    assert "notes.md" in files(hub)


@pytest.mark.parametrize(
    "failures",
    [
        {"repos/create": [500]},
        {"repos/create": [503, "cut"]},
        {"validate-yaml": [500]},
        {"preupload": ["cut"]},
        {"PUT /storage": [500]},
        {"commit/": [500]},
        {"commit/": ["cut"]},
        {"commit/": [409]},
        {"tree/": [500]},
    ],
)
def test_a_passing_failure_is_tried_again(hub, model, failures, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.failures = {part: list(outcomes) for part, outcomes in failures.items()}
    push.push(str(model), "me/birds")
    assert not any(hub.failures.values())
    assert "model.safetensors" in files(hub)
    assert len(hub.commits) == 1


def test_where_xet_is_blocked_lfs_takes_over(hub, model, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    notes = []
    push.push(str(model), "me/birds", note=notes.append)
    assert any("xet-write-token" in request for request in hub.requests)
    assert any("/v1/xorb" in request for request in hub.requests)
    assert files(hub)["model.safetensors"] == (model / "model" / "model.safetensors").read_bytes()
    assert len(hub.commits) == 1
    assert sum("trying again by plain HTTP, without Xet" in note for note in notes) == 1
    assert constants.HF_HUB_DISABLE_XET is False


@pytest.mark.parametrize(
    ("failures", "problem", "attempts"),
    [
        ({"POST": [401] * 9}, "does not accept your token", 1),
        ({"POST": [403] * 9, "GET": [403] * 9}, "may not write to me/birds", 1),
        ({"commit/": [500] * 9}, "500", 4),
        ({"commit/": ["cut"] * 9}, "", 4),
    ],
)
def test_a_lasting_failure_keeps_everything_and_says_how_to_go_on(hub, model, failures, problem, attempts):
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    hub.failures = failures
    with pytest.raises(ValueError, match=f"{problem}.*try again with: stml-semi push .* me/birds --private") as error:
        push.push(str(model), "me/birds", private=True)
    assert TOKEN not in str(error.value)
    assert "\n" not in str(error.value)
    assert sum("repos/create" in request for request in hub.requests) == attempts
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    assert not hub.commits


def test_bad_input_never_reaches_the_hub(hub, model, tmp_path, monkeypatch):
    for repo in ("birds", "me/birds/x", "me/b rds"):
        with pytest.raises(ValueError, match="give user/name"):
            push.push(str(model), repo)
    with pytest.raises(ValueError, match="holds no exported model"):
        push.push(str(tmp_path), "me/birds")
    with pytest.raises(ValueError, match="--license Apache 2"):
        push.push(str(model), "me/birds", license="Apache 2")
    (model / "model" / "training_config.yaml").write_text(f"labeled: https://x:{TOKEN}@example.org\n")
    with pytest.raises(ValueError, match="training_config.yaml contains your access token"):
        push.push(str(model), "me/birds")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="hf auth login"):
        push.push(str(model), "me/birds")
    assert not hub.requests


def test_a_run_checks_its_place_and_login_before_it_starts(monkeypatch, tmp_path):
    from stml_semi.training.resolve import resolve
    from stml_semi.training.run import run

    with pytest.raises(ValueError, match="--hub-model-id user/name"):
        resolve("sup", {"labeled": "kanji", "push_to_hub": True})
    values = {"labeled": "kanji", "push_to_hub": True, "hub_model_id": "me/birds", "output_dir": str(tmp_path / "run")}
    with pytest.raises(ValueError, match="--push-to-hub: HF_HUB_OFFLINE is set"):
        run(resolve("sup", values))
    assert not (tmp_path / "run").exists()


def test_a_run_pushes_at_its_end_and_a_failed_upload_fails_no_run(hub, tmp_path):
    from stml_semi.training.resolve import resolve
    from stml_semi.training.run import run

    small = {"labeled_batch_size": 8, "images_per_class": 2, "num_workers": 0, "embedding_dim": 8, "max_steps": 1}
    place = {"push_to_hub": True, "hub_model_id": "me/birds", "hub_private": True}
    values = {"labeled": "kanji", "eval": "kanji:train", **small, **place, "output_dir": str(tmp_path / "run")}
    result = run(resolve("sup", values))
    assert result.problem is None
    assert 'load("me/birds")' in files(hub)["README.md"].decode()
    hub.failures = {"commit/": [500] * 9}
    result = run(resolve("sup", {**values, "hub_model_id": "me/others", "output_dir": str(tmp_path / "again")}))
    assert "try again with: stml-semi push" in str(result.problem)
    assert (tmp_path / "again" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_push_then_load_gives_the_same_embeddings(exported, tmp_path, pictures):
    """Two processes that share nothing but the hub: one pushes with the command, the other loads by id."""
    expected = load(exported).encode(pictures)
    np.save(tmp_path / "pictures.npy", np.stack([np.asarray(picture) for picture in pictures]))
    with running_hub() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        environment = {**os.environ, **settings, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, str(ROOT / "cli.py"), "push", str(exported), "me/birds", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["url"] == f"{hub.url}/me/birds"
        assert TOKEN not in done.stdout + done.stderr
        code = (
            "import numpy as np; from PIL import Image; from stml_semi import load\n"
            f"images = [Image.fromarray(p) for p in np.load({str(tmp_path / 'pictures.npy')!r})]\n"
            f"np.save({str(tmp_path / 'embeddings.npy')!r}, load('me/birds').encode(images))"
        )
        opened = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert opened.returncode == 0, opened.stderr
    np.testing.assert_allclose(np.load(tmp_path / "embeddings.npy"), expected, atol=1e-6)
