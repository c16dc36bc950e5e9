"""Names of images and class folders that are not UTF-8, as an old zip archive leaves them, go through everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import miniature
from helpers.command_line import call

from stml_semi.data.image_table import paths_dataset
from stml_semi.data.sources.open_source import open_source
from stml_semi.runtime.files import write_text
from stml_semi.runtime.names import from_utf8, to_utf8
from stml_semi.search.copies import FORMATS
from stml_semi.search.embed import embed_source
from stml_semi.training.resolve import resolve
from stml_semi.training.run import run

ODD = os.fsdecode(b"owl\xe9")


@pytest.fixture(params=["file", "class"])
def birds(request, tmp_path) -> Path:
    """Four classes of four images; of the third, the names or that of the class are Latin-1, and one is damaged."""
    odd_file, odd_class = (f"{ODD}_", "c") if request.param == "file" else ("", ODD)
    for label, name in enumerate(("a", "b", odd_class, "d")):
        folder = tmp_path / "birds" / name
        folder.mkdir(parents=True)
        for i in range(4):
            (folder / f"{odd_file if label == 2 else ''}{i}.jpg").write_bytes(miniature.jpeg(label, i))
    damaged(tmp_path).write_bytes(b"no image")
    return tmp_path / "birds"


def damaged(folder: Path) -> Path:
    return next(path for path in (folder / "birds").rglob("*3.jpg") if not path.as_posix().isascii())


@pytest.mark.parametrize("name", ["a", "é", ODD, f"{ODD}/{ODD}", "\udcff\0", "日本"])
def test_names_come_back(name):
    kept = to_utf8(name)
    kept.encode()
    assert from_utf8(kept) == name


def test_a_table_knows_the_real_names(birds):
    table = open_source(str(birds), flag="--labeled", labels="required")
    files = {str(path) for path in birds.rglob("*.jpg")}
    described = {table.describe(row) for row in range(16)}
    assert described == set(table.paths()) == {table.source(row)["path"] for row in range(16)} == files
    assert set(table.classes) == {folder.name for folder in birds.iterdir()}


@pytest.mark.parametrize("format", FORMATS)
def test_an_index_is_made_searched_and_kept(birds, tmp_path, format, monkeypatch, capsys):
    made = embed_source("tiny-resnet", str(birds), str(tmp_path / "index"), format=format, num_workers=0)
    assert (made.num_rows, made.num_bad) == (16, 1)
    again = embed_source("tiny-resnet", str(birds), str(tmp_path / "index"), format=format, num_workers=0)
    assert (again.num_embedded, again.num_new, again.num_gone) == (0, 0, 0)
    image = str(damaged(tmp_path)).replace("3.jpg", "0.jpg")
    arguments = ("search", "--index", tmp_path / "index", "--k", 1, image)
    _, printed, _ = call(monkeypatch, capsys, *arguments, "--json")
    assert json.loads(printed)[0]["hits"][0]["image"] == image
    code, printed, _ = call(monkeypatch, capsys, *arguments, "--html", tmp_path / "page.html")
    assert code == 0
    assert "owl\\udce9" in printed
    assert "owl\\udce9" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_terminal_shows_escapes(birds, tmp_path):
    """A strict terminal, as every one is with a UTF-8 locale."""
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", "stml_semi", "data", "info", str(birds)]
    done = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "owl\\udce9" in done.stdout


def test_a_run_evaluates_reports_and_lists_it(birds, tmp_path):
    settings = {
        **{"labeled": str(birds), "eval": str(birds), "backbone": "tiny-resnet", "image_size": 32, "num_workers": 0},
        **{"labeled_batch_size": 8, "images_per_class": 2, "max_steps": 1, "max_bad_fraction": 0.1},
        **{"cache_images": "raw", "output_dir": str(tmp_path / "run")},
    }
    run(resolve("sup", settings))
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_images.jsonl").read_bytes().splitlines()]
    assert [line["image"] for line in listed] == [str(damaged(tmp_path))]
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


def test_json_written_as_text_keeps_names(tmp_path):
    write_text(tmp_path / "a.json", json.dumps([ODD, "é"], ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [ODD, "é"]


def test_a_zero_byte_in_a_path_stays_one():
    """Which no file has: it is a bad image, as before."""
    assert paths_dataset(["a\0b.jpg"])[0]["image"]["path"] == "a\0b.jpg"
