"""Reranking: better lists where neighborhoods say more than cosines, nothing lost, nothing twice."""

import pytest
import torch
import torch.nn.functional as F
from helpers.command_line import call
from helpers.indexes import made_up, whole

from stml_semi.search.index import Index
from stml_semi.search.query import search
from stml_semi.search.rerank import order


@pytest.fixture(scope="module")
def chains():
    """Each thing is a chain of images, of which only neighbors are alike; other things lie in between."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(2, 30, 24, generator=generator)
    steps = torch.linspace(0, 1, 10)[:, None, None]
    x = (ends[0] * (1 - steps) + ends[1] * steps).transpose(0, 1).reshape(300, 24)
    return F.normalize(x + 0.25 * torch.randn(300, 24, generator=generator), dim=1), torch.arange(300) // 10


def test_lists_become_better(chains):
    unit, labels = chains
    near = (unit @ unit.T).fill_diagonal_(-1).topk(100).indices
    reordered = torch.stack([rows[order(query, unit[rows])] for query, rows in zip(unit, near, strict=True)])
    assert (reordered.sort(1).values == near.sort(1).values).all()

    def precision(found):
        return float((labels[found[:, :9]] == labels[:, None]).float().mean())

    assert precision(reordered) > precision(near) + 0.05


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_candidates_and_exact_copies(count):
    assert sorted(order(torch.eye(8)[0], torch.eye(8)[1 : count + 1])) == list(range(count))
    copies = torch.eye(8)[[0] * count]
    assert sorted(order(torch.eye(8)[0], copies)) == list(range(count))


def test_search_reranks_the_first_hundred(monkeypatch, capsys, tmp_path, chains):
    unit, _ = chains
    folder = made_up(tmp_path / "index", unit)
    plain, better = search(folder, rows=[7], k=150)[0].hits, search(folder, rows=[7], k=150, rerank=True)[0].hits
    assert [hit.row for hit in plain] != [hit.row for hit in better]
    assert sorted(plain[:100]) == sorted(better[:100])
    assert plain[100:] == better[100:]
    assert search(folder, rows=[7], k=5, rerank=True)[0].hits == better[:5]
    (found,) = Index.open(folder).search(whole(Index.open(folder)).embeddings[7], k=5, rerank=True)
    assert found[0].row == 7  # An embedding finds its own row.
    assert search(folder, rows=[7], k=5, where="row = 9", rerank=True)[0].hits == [hit for hit in plain if hit.row == 9]
    assert search(folder, rows=[7], where="row = -1", rerank=True)[0].hits == []
    code, out, err = call(monkeypatch, capsys, "search", "--index", folder, "--row", 7, "--k", 1, "--rerank", "--json")
    assert code == 0, err
    assert f'"row": {better[0].row},' in out
