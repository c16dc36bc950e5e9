"""Names of models: folders, hub ids, and hub ids at a revision, out of a hub's local cache."""

import shutil

import pytest
from helpers.command_line import call
from helpers.pictures import write_pictures
from helpers.real_runs import train
from huggingface_hub import constants

from stml_semi import load
from stml_semi.models.backbone import open_backbone
from stml_semi.models.model_files import ModelName, commit_of, parse_name
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import BadInput
from stml_semi.search.index import Index
from stml_semi.search.query import open_model

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(make_backbone, tmp_path, monkeypatch):
    """me/birds of the hub as its cache holds it: a ViT at the tag v1, a ResNet on main."""
    repo = tmp_path / "hub" / "models--me--birds"
    for commit, kind, names in ((OLD, "vit", ("v1", "refs/pr/3")), (NEW, "resnet", ("main",))):
        shutil.copytree(make_backbone(kind), repo / "snapshots" / commit)
        for name in names:
            (repo / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
            (repo / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return repo


def test_parts_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_name("me/birds") == ModelName("me/birds")
    assert parse_name("me/birds@refs/pr/3") == ModelName("me/birds", "refs/pr/3")
    (tmp_path / "me" / "birds@v1").mkdir(parents=True)
    assert parse_name("me/birds@v1") == ModelName("me/birds@v1")
    with pytest.raises(BadInput, match="no revision follows the @"):
        parse_name("me/birds@")


@pytest.mark.parametrize("revision", ["v1", "refs/pr/3", OLD])
def test_models_and_backbones_at_a_revision(hub, revision):
    name = f"me/birds@{revision}"
    assert load(name).backbone.config.model_type == "vit"
    assert load(name).commit == OLD
    assert open_backbone(name).model.config.model_type == "vit"
    assert load("me/birds").backbone.config.model_type == "resnet"
    assert commit_of(parse_name("me/birds")) == NEW


def test_a_revision_that_is_not_there(hub):
    with pytest.raises(BadInput, match="--model me/birds@v9: no such run or folder, and the hub"):
        load("me/birds@v9")
    with pytest.raises(BadInput, match="--backbone me/birds@v9: "):
        open_backbone("me/birds@v9")
    with pytest.raises(BadInput, match="--model me/birds@: .*no revision follows"):
        load("me/birds@")


def test_a_folder_with_an_at_sign_is_that_folder(make_backbone, tmp_path):
    folder = shutil.copytree(make_backbone("resnet"), tmp_path / "birds@v1")
    assert load(folder).commit is None
    assert open_backbone(str(folder)).model.config.model_type == "resnet"


def test_an_index_knows_its_models_commit(hub, tmp_path, monkeypatch, capsys):
    write_pictures(tmp_path / "images", 3)
    flags = ["embed", "--model", "me/birds", "--data", tmp_path / "images", "--output", tmp_path / "index"]
    code, _, err = call(monkeypatch, capsys, *flags, "--num-workers", 0)
    assert code == 0, err
    index = Index.open(tmp_path / "index")
    assert index.info.commit == NEW
    (hub / "refs" / "main").write_text(OLD)  # The branch moves on; the index still opens what made it.
    assert open_model(index).backbone.config.model_type == "resnet"


def test_a_run_and_its_card_know_the_commit(hub, tmp_path):
    for name in "ab":
        write_pictures(tmp_path / "birds" / name, 4, seed=ord(name))
    flags = ["--labeled", str(tmp_path / "birds"), "--backbone", "me/birds@v1", "--max-steps", "1"]
    flags += ["--labeled-batch-size", "4", "--images-per-class", "2"]
    done = train(tmp_path / "run", *flags, command="sup")
    assert done.returncode == 0, done.stderr
    run = RunFolder.open(tmp_path / "run")
    assert run.config().backbone == "me/birds@v1"
    assert run.backbone_commit == OLD
    card = (run.model / "README.md").read_text()
    assert f"[me/birds](https://huggingface.co/me/birds) at commit {OLD}" in card
    assert "base_model: me/birds\n" in card
    assert "# birds-stml-sup" in card
