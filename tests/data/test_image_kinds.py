"""Files whose kind is not read are counted by extension, and what would read them is named."""

import json
import sys
import types
from pathlib import Path

import pytest
from helpers import miniature
from helpers.command_line import call

from stml_semi.config import TrainConfig
from stml_semi.data import image_kinds
from stml_semi.data.claims import skipped_files
from stml_semi.data.image_kinds import describe_skipped
from stml_semi.data.run_tables import open_tables
from stml_semi.data.sources.open_source import open_source
from stml_semi.search.embed import embed_source
from stml_semi.sharing.evaluate import evaluate_model
from stml_semi.training.preflight.doctor import examine

LEFT = (
    "22 of 30 files are skipped because of their kind: 14 .heic, 4 .dng, 4 without an extension; install pillow-heif "
    "to read .heic; convert .dng to jpg, with rawpy for example; give images their extension"
)


@pytest.fixture(scope="module")
def phone(tmp_path_factory) -> Path:
    """What a phone leaves behind: three quarters of the images are HEIC, DNG or have no extension."""
    folder = tmp_path_factory.mktemp("phone") / "birds"
    for label in range(4):
        of_class = folder / f"c{label}"
        of_class.mkdir(parents=True)
        for i in range(2):
            (of_class / f"{i}.JPG").write_bytes(miniature.jpeg(label, i))
            (of_class / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        (of_class / "IMG_4.dng").write_bytes(b"II*\0")
        (of_class / "noext").write_bytes(miniature.jpeg(label, 9))
        (of_class / ".hidden").touch()
    (folder / "c4").mkdir()
    for i in range(6):
        (folder / "c4" / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    return folder


def test_every_command_says_what_it_skips(phone, tmp_path, monkeypatch, capsys):
    path = str(phone)
    said = [f"{path}: {LEFT}", f"{path}: 1 class folder holds no readable image: c4"]
    line = evaluate_model("tiny-resnet", path, num_workers=0)
    assert line["skipped"] == said
    assert embed_source("tiny-resnet", path, str(tmp_path / "index"), num_workers=0).skipped == (said[0],)
    _, printed, _ = call(monkeypatch, capsys, "data", "info", path)
    assert all(part in " ".join(printed.split()) for part in (LEFT, said[1]))
    findings = [finding.text for finding in examine({"labeled": path}) if finding.level == "advice"]
    assert set(said) <= set(findings)
    tables = open_tables(TrainConfig(labeled=path, eval=path, unlabeled=path, backbone="tiny-resnet"))
    assert skipped_files(tables) == said


def test_embed_prints_it_once(phone, tmp_path, monkeypatch, capsys):
    arguments = ("embed", "--model", "tiny-resnet", "--data", str(phone), "--output", str(tmp_path / "index"))
    _, printed, errors = call(monkeypatch, capsys, *arguments, "--num-workers", "0", "--json")
    assert json.loads(printed)["skipped"] == [f"{phone}: {LEFT}"]
    assert errors.count(LEFT) == 1


def test_joined_sources_each_say_theirs(phone, tmp_path):
    other = tmp_path / "more"
    other.mkdir()
    (other / "a.jpg").write_bytes(miniature.jpeg(0, 0))
    (other / "film.mp4").touch()
    table = open_source(f"{phone},{other}", flag="--unlabeled", labels="ignored")
    expected = f"{other}: 1 of 2 files is skipped because of its kind: 1 .mp4"
    assert table.skipped == (f"{phone}: {LEFT}", expected)


def test_a_folder_without_a_readable_image_says_what_is_there(phone):
    with pytest.raises(ValueError, match=r"at any depth; check the path; 6 of 6 files .* 6 \.heic; install"):
        open_source(str(phone / "c4"), flag="--unlabeled", labels="ignored")


def test_a_clean_folder_says_nothing(tmp_path):
    (tmp_path / "a.jpg").write_bytes(miniature.jpeg(0, 0))
    assert open_source(str(tmp_path), flag="--unlabeled", labels="ignored").skipped == ()


def test_many_kinds_are_not_all_named():
    text = describe_skipped({f".x{i:02}": 1 for i in range(12)}, 0)
    assert text.endswith("1 .x09, 2 more kinds")


def test_installed_packages_are_used(monkeypatch):
    """pillow-heif must be told to register its format; the others do so when they are imported."""
    calls: list[str] = []
    plugin = types.ModuleType("pillow_heif")
    vars(plugin)["register_heif_opener"] = lambda: calls.append("heif")
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    image_kinds.register_plugins()
    assert calls == ["heif"]
