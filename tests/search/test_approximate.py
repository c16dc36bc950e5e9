"""Approximate search: nearly what exact search finds, also after an update, and an error where it was not prepared."""

import shutil

import pytest
import torch
from helpers.command_line import call
from helpers.indexes import made_up
from helpers.pictures import write_pictures

from stml_semi.runtime.errors import BadInput
from stml_semi.search.approximate import build, recall
from stml_semi.search.embed import embed_source
from stml_semi.search.index import Index
from stml_semi.search.query import search


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(200, 16, generator=generator).repeat_interleave(15, 0)
    embeddings = things + 0.5 * torch.randn(3000, 16, generator=generator)
    folder = made_up(tmp_path_factory.mktemp("approximate") / "index", embeddings, [str(i % 4) for i in range(3000)])
    build(Index.open(folder))
    return folder


def test_it_finds_nearly_what_exact_search_finds(prepared):
    assert recall(Index.open(prepared)) > 0.97
    rows = range(0, 3000, 40)
    exact = search(prepared, rows=rows, k=15)
    found = search(prepared, rows=rows, k=15, backend="approximate")
    same = [
        len({hit.row for hit in a.hits} & {hit.row for hit in b.hits}) / 15 for a, b in zip(exact, found, strict=True)
    ]
    assert sum(same) / len(same) > 0.97
    for one, row in zip(found, rows, strict=True):
        assert len(one.hits) == 15
        assert row not in {hit.row for hit in one.hits}
        expected = {hit.row: hit.similarity for hit in search(prepared, rows=[row], k=2999)[0].hits}
        for hit in one.hits:
            assert hit.similarity == pytest.approx(expected[hit.row], abs=1e-5)


def test_conditions_and_many_answers(prepared):
    exact = search(prepared, rows=[7], k=5, where="label = '2' AND row < 400")
    found = search(prepared, rows=[7], k=5, where="label = '2' AND row < 400", backend="approximate")
    assert found == [exact[0]._replace(hits=found[0].hits)]
    assert [hit.row for hit in found[0].hits] == [hit.row for hit in exact[0].hits]
    with pytest.raises(BadInput, match="^--where labl = 2: is no condition"):
        search(prepared, rows=[7], where="labl = 2", backend="approximate")
    assert len(search(prepared, rows=[7], k=500, backend="approximate")[0].hits) == 500


def test_it_has_to_be_prepared(tmp_path):
    folder = made_up(tmp_path / "index", torch.eye(4))
    with pytest.raises(BadInput, match="run the same `embed` command with --approximate"):
        search(folder, rows=[0], backend="approximate")


def test_the_command_prepares_it_once_and_updates_keep_it(monkeypatch, capsys, tmp_path):
    write_pictures(tmp_path / "photos", 9)
    shutil.copy(tmp_path / "photos" / "3.png", tmp_path / "photos" / "copy.png")
    flags = ["embed", "--model", "tiny-resnet", "--data", tmp_path / "photos", "--output", tmp_path / "index"]
    code, out, err = call(monkeypatch, capsys, *flags, "--num-workers", 0, "--approximate")
    assert code == 0, err
    assert out.endswith("10 images; approximate search finds 100.0% of the ten nearest\n")
    version = Index.open(tmp_path / "index").info.version
    assert call(monkeypatch, capsys, *flags, "--num-workers", 0, "--approximate")[0] == 0
    assert Index.open(tmp_path / "index").info.version == version
    (tmp_path / "photos" / "copy.png").rename(tmp_path / "photos" / "a copy.png")
    made = embed_source("tiny-resnet", str(tmp_path / "photos"), str(tmp_path / "index"), num_workers=0)
    assert (made.num_embedded, made.recall) == (1, None)
    query = str(tmp_path / "photos" / "3.png")
    hits = search(str(tmp_path / "index"), [query], k=2, backend="approximate")[0].hits
    assert {hit.image for hit in hits} == {query, str(tmp_path / "photos" / "a copy.png")}
