"""embed, search, dedup: exact over all parts, resumable, and honest about what they cannot read."""

import csv
import json
import shutil
import signal
import time
import weakref
from importlib.util import find_spec
from pathlib import Path

import lance
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.command_line import call
from helpers.indexes import made_up, whole
from helpers.pictures import write_pictures
from helpers.real_runs import cli
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from stml_semi import load
from stml_semi.neighbors import nearest_neighbors
from stml_semi.runtime.errors import BadInput
from stml_semi.search.duplicates import _around_kept, as_csv, find_duplicates
from stml_semi.search.embed import embed_source
from stml_semi.search.index import Index
from stml_semi.search.query import search
from stml_semi.search.update import Update
from stml_semi.sharing.evaluate import evaluate_model


@pytest.fixture
def photos(tmp_path):
    for seed in range(4):
        write_pictures(tmp_path / "photos" / str(seed), 5, seed=seed)
    (tmp_path / "photos" / "1" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


def test_embed_writes_a_table_that_others_read(photos, tmp_path):
    made = embed_source("tiny-resnet", str(photos), str(tmp_path / "index"), num_workers=0, part_size=6)
    assert (made.num_rows, made.num_embedded, made.num_bad) == (21, 20, 1)
    index = Index.open(tmp_path / "index")
    found = whole(index)
    assert found.embeddings.shape == (20, index.info.num_features)
    assert found.embeddings.dtype == torch.float32
    assert found.rows == [row for row in range(21) if row != 10]
    expected = load("tiny-resnet").encode([Image.open(path) for path in found.images])
    np.testing.assert_allclose(found.embeddings, expected, atol=1e-5)
    listed = (tmp_path / "index" / "bad_images.jsonl").read_text().splitlines()
    line = {"row": 10, "image": str(photos / "1" / "broken.png"), "reason": "not an image"}
    assert list(map(json.loads, listed)) == [line]
    table = lance.dataset(str(tmp_path / "index" / "images.lance")).to_table()
    assert table["label"].to_pylist() == [name for name in "0123" for _ in range(5 + (name == "1"))]
    assert table["reason"].to_pylist() == [None] * 10 + ["not an image"] + [None] * 10
    assert table["embedding"].null_count == 1


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_a_copy_holds_what_the_table_holds(photos, tmp_path, format):
    folder = tmp_path / "index"
    for _ in range(2):  # Again over what is there.
        embed_source("tiny-resnet", str(photos), str(folder), format=format, num_workers=0, part_size=6)
    expected = whole(Index.open(folder))
    if format == "parquet":
        table = parquet.read_table(folder / "embeddings.parquet")
        rows, images, labels, embeddings = (table[name].to_pylist() for name in ("row", "image", "label", "embedding"))
    else:
        lines = list(csv.DictReader((folder / "images.csv").read_text().splitlines()))
        rows, images, labels = ([line[name] for line in lines] for name in ("row", "image", "label"))
        embeddings = np.load(folder / "embeddings.npy")
    assert list(map(int, rows)) == expected.rows
    assert images == expected.images
    assert labels == [Path(image).parent.name for image in images]
    np.testing.assert_array_equal(np.array(embeddings, np.float32), expected.embeddings)


def test_lancedb_opens_an_index(photos, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    embed_source("tiny-resnet", str(photos), str(tmp_path / "index"), num_workers=0)
    table = lancedb.connect(str(tmp_path / "index")).open_table("images")
    query = whole(Index.open(tmp_path / "index")).embeddings[3].numpy()
    (hit,) = table.search(query).where("label = '0'").limit(1).to_list()
    assert hit["image"] == str(photos / "0" / "3.png")


def test_only_rows_for_which_a_condition_holds(photos, tmp_path):
    folder = str(tmp_path / "index")
    embed_source("tiny-resnet", str(photos), folder, num_workers=0)
    query = photos / "2" / "3.png"
    everything = search(folder, [str(query)], k=20)[0].hits
    expected = [hit for hit in everything if Path(hit.image).parent.name == "1"]
    assert search(folder, [str(query)], k=20, where="label = '1'")[0].hits == expected
    (found,) = Index.open(folder).search(query, k=2, where="label IN ('1', 'x') AND row < 8")
    assert found == [hit for hit in expected if hit.row < 8][:2]
    assert search(folder, [str(query)], where="label = 'x'")[0].hits == []
    assert search(folder, [str(query)], where="label = ';'")[0].hits == []
    for wrong in ("labl = '1'", "label =", "row", "", "row < 5; row < 7"):
        with pytest.raises(BadInput, match="^--where .*: is no condition in SQL over row, image, label, reason"):
            search(folder, [str(query)], where=wrong)


def test_a_program_searches_by_images_and_by_embeddings(photos, tmp_path):
    embed_source("tiny-resnet", str(photos), str(tmp_path / "index"), num_workers=0, part_size=6)
    index = Index.open(tmp_path / "index")
    expected = search(str(tmp_path / "index"), [str(photos / "2" / "3.png")], k=4)[0].hits
    near = [hit.row for hit in expected]
    (found,) = index.search(photos / "2" / "3.png", k=4)
    assert found == expected
    two = [Image.open(photos / "2" / "3.png"), (photos / "0" / "1.png").read_bytes()]
    first, second = index.search(two, k=4)
    assert ([hit.row for hit in first], second[0].row) == (near, 1)
    grey = np.zeros((9, 9), np.uint8)  # An image; of floating point it would be embeddings.
    assert len(index.search(grey)[0]) == 10

    embedding = 7 * load("tiny-resnet").encode(photos / "2" / "3.png")  # Any length.
    for query in (embedding, embedding.astype(np.float64), torch.from_numpy(embedding), embedding[None]):
        (found,) = index.search(query, k=4)
        assert [hit.row for hit in found] == near
        assert found[0].similarity == pytest.approx(1, abs=1e-5)
    assert index.search(np.zeros((0, index.info.num_features), np.float32)) == []
    with pytest.raises(BadInput, match=r"embeddings of 3 numbers; the index has \d+"):
        index.search(np.ones(3))
    with pytest.raises(BadInput, match="search: 1 of 1 embeddings are NaN"):
        index.search(np.full(index.info.num_features, np.nan))
    with pytest.raises(TypeError, match="a int is no image"):
        index.search([3])  # pyright: ignore[reportArgumentType]


def test_an_interrupted_embed_goes_on(photos, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    write, left = Update.write, [2]

    def killed(self, *given):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Update, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            embed_source("tiny-resnet", str(photos), str(folder), num_workers=0, part_size=6)
    with pytest.raises(ValueError, match="is not finished"):
        Index.open(folder)
    made = embed_source("tiny-resnet", str(photos), str(folder), num_workers=0, part_size=6)
    assert made.num_embedded == 9
    assert made.num_bad == 1
    embed_source("tiny-resnet", str(photos), str(tmp_path / "other"), num_workers=0, part_size=6)
    assert_same(folder, tmp_path / "other")
    assert embed_source("tiny-resnet", str(photos), str(folder), num_workers=0, part_size=6).num_embedded == 0


def assert_same(folder: Path, other: Path) -> None:
    found, expected = whole(Index.open(folder)), whole(Index.open(other))
    assert torch.equal(found.embeddings, expected.embeddings)
    assert found[1:] == expected[1:]


def test_a_killed_embed_goes_on(tmp_path):
    flags = ["--model", "tiny-resnet", "--data", "kanji:train", "--batch-size", "4", "--part-size", "40"]
    killed, other = tmp_path / "killed", tmp_path / "whole"
    running = cli("embed", *flags, "--num-workers", "0", "--output", str(killed))
    deadline = time.monotonic() + 120
    while len(list(killed.glob("images.lance/data/*.lance"))) < 2:
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    with pytest.raises(ValueError, match="is not finished"):
        Index.open(killed)
    made = embed_source("tiny-resnet", "kanji:train", str(killed), batch_size=4, num_workers=0, part_size=40)
    assert 0 < made.num_embedded <= made.num_rows - 40
    embed_source("tiny-resnet", "kanji:train", str(other), batch_size=4, num_workers=0, part_size=40)
    assert_same(killed, other)


@pytest.mark.slow
def test_two_processes_embed_and_evaluate_as_one_does(photos, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    flags = ["--model", "tiny-resnet", "--data", str(photos), "--num-workers", "0"]
    running = [
        cli("embed", *flags, "--part-size", "6", "--output", str(two), processes=2),
        cli("evaluate", *flags, "--confidence", "90", "--json", processes=2),
    ]
    ended = [(process.communicate(timeout=400), process.returncode) for process in running]
    assert [code for _, code in ended] == [0, 0], ended
    embed_source("tiny-resnet", str(photos), str(one), num_workers=0, part_size=6)
    found, expected = whole(Index.open(two)), whole(Index.open(one))
    torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=0, atol=1e-5)
    assert found[1:] == expected[1:]
    assert (two / "bad_images.jsonl").read_text() == (one / "bad_images.jsonl").read_text()
    line = json.loads(ended[1][0][0])
    alone = evaluate_model("tiny-resnet", str(photos), num_workers=0, confidence=90)
    assert line.keys() == alone.keys()
    assert line["map@r"] == pytest.approx(alone["map@r"], abs=1e-6)
    assert line["num_queries"] == alone["num_queries"] == 20


def test_few_parts_are_in_memory_at_a_time(photos, tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), [0]
    read = Index.part

    def watch(self, number):
        part = read(self, number)
        alive.add(part.embeddings)
        most[0] = max(most[0], len(alive))
        return part

    embed_source("tiny-resnet", str(photos), str(tmp_path / "index"), num_workers=0)
    monkeypatch.setattr(Index, "part", watch)
    monkeypatch.setattr("stml_semi.search.index.PART_SIZE", 2)
    assert Index.open(tmp_path / "index").num_parts == 11
    search(str(tmp_path / "index"), rows=[0, 20])
    assert most[0] in (1, 2)  # The last one, and the one that takes its place.
    find_duplicates(str(tmp_path / "index"))
    assert most[0] <= 3


def test_parts_of_different_models_or_data_never_mix(photos, tmp_path, make_backbone):
    folder = str(tmp_path / "index")
    embed_source("tiny-resnet", str(photos), folder, num_workers=0)
    with pytest.raises(ValueError, match="index of another model"):
        embed_source(str(make_backbone("resnet")), str(photos), folder, num_workers=0)
    with pytest.raises(ValueError, match="index of other data"):
        embed_source("tiny-resnet", str(photos / "0"), folder, num_workers=0)
    with pytest.raises(ValueError, match="holds files that are no index"):
        embed_source("tiny-resnet", str(photos), str(photos), num_workers=0)
    with pytest.raises(ValueError, match="made with other weights"):
        search(folder, [str(photos / "0" / "0.png")], model=str(make_backbone("resnet")))


@pytest.mark.parametrize("part_size", [1, 7, 64, 1000])
def test_search_over_parts_is_the_search_over_all(monkeypatch, tmp_path, part_size):
    monkeypatch.setattr("stml_semi.search.index.PART_SIZE", part_size)
    torch.manual_seed(0)
    embeddings = torch.randn(150, 8)
    embeddings[90:100] = embeddings[20:30]  # Ties: the smaller row comes first.
    folder = made_up(tmp_path / "index", embeddings)
    expected = nearest_neighbors(embeddings, 12)
    answers = search(folder, rows=range(150), k=12)
    assert [[hit.row for hit in answer.hits] for answer in answers] == expected.indices.tolist()
    found = torch.tensor([[hit.similarity for hit in answer.hits] for answer in answers])
    torch.testing.assert_close(found, expected.similarities, rtol=0, atol=1e-6)
    assert len(search(folder, rows=[3], k=1000)[0].hits) == 149


@pytest.mark.skipif(find_spec("faiss") is None, reason="the extra `faiss` is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_faiss_finds_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr("stml_semi.search.index.PART_SIZE", 64)
    torch.manual_seed(0)
    folder = made_up(tmp_path / "index", torch.randn(150, 8))
    expected = search(folder, rows=range(150), k=12)
    found = search(folder, rows=range(150), k=12, backend="faiss")
    assert [[hit.row for hit in answer.hits] for answer in found] == [
        [hit.row for hit in answer.hits] for answer in expected
    ]
    assert found[3].hits[0].similarity == pytest.approx(expected[3].hits[0].similarity, abs=1e-6)


def test_missing_faiss_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("stml_semi.search.query.find_spec", lambda name: None)
    folder = made_up(tmp_path / "index", torch.eye(4))
    with pytest.raises(ValueError, match=r"--backend faiss: it is not installed; pip install 'stml-semi\[faiss\]'"):
        search(folder, rows=[0], backend="faiss")


@pytest.mark.parametrize("part_size", [1, 7, 1000])
def test_dedup_keeps_one_image_near_to_all_that_may_go(monkeypatch, tmp_path, part_size):
    monkeypatch.setattr("stml_semi.search.index.PART_SIZE", part_size)
    embeddings = torch.eye(60)
    embeddings[[5, 17, 40]] = embeddings[2].clone()
    # 9 - 30 - 41 is a chain whose ends are not alike.
    embeddings[30] = embeddings[9] + 0.2 * embeddings[50]
    embeddings[41] = embeddings[9] + 0.4 * embeddings[50]
    groups = find_duplicates(made_up(tmp_path / "index", embeddings), threshold=0.975)
    assert [group.rows for group in groups] == [[2, 5, 17, 40], [9, 30]]
    assert groups[1].images == ["9.png", "30.png"]
    assert groups[0].cosines == pytest.approx([1, 1, 1, 1])
    assert groups[1].cosines == pytest.approx([1, 1 / 1.04**0.5])
    assert as_csv(groups).splitlines()[-1] == "remove,30.png,30,2,9.png,0.980581"
    assert as_csv(groups).splitlines()[5] == "keep,9.png,9,2,9.png,1.000000"
    for wrong in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="--threshold"):
            find_duplicates(str(tmp_path / "index"), threshold=wrong)


def test_many_copies_are_one_group(monkeypatch, tmp_path):
    monkeypatch.setattr("stml_semi.search.index.PART_SIZE", 700)
    embeddings = torch.ones(3000, 4)
    groups = find_duplicates(made_up(tmp_path / "index", embeddings))
    assert [len(group.rows) for group in groups] == [3000]


def test_the_commands_together(monkeypatch, capsys, photos, tmp_path):
    monkeypatch.chdir(tmp_path)
    (photos / "3" / "again.png").write_bytes((photos / "2" / "0.png").read_bytes())
    source = ["--model", "tiny-resnet", "--data", "photos", "--num-workers", 0]
    code, out, err = call(monkeypatch, capsys, "embed", *source, "--output", "index")
    assert code == 0, err
    assert out == "index: 22 images, 1 unreadable (bad_images.jsonl)\n"
    assert "embed 22/22 ETA 0:00" in err
    query = Path("photos", "2", "0.png")
    flags = ["search", "--index", "index", query, "--row", "0", "--k", 3]
    code, out, err = call(monkeypatch, capsys, *flags, "--html", "page.html")
    assert code == 0, err
    assert "1.0000" in out
    code, out, _ = call(monkeypatch, capsys, *flags, "--json")
    answers = json.loads(out)
    assert [hit["image"] for hit in answers[0]["hits"][:2]] == [str(query), "photos/3/again.png"]
    assert answers[1]["query"] == "photos/0/0.png (row 0)"
    assert all(hit["row"] != 0 for hit in answers[1]["hits"])
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/webp;base64,") == 8
    assert "http" not in page
    code, out, _ = call(monkeypatch, capsys, "dedup", "--index", "index", "--threshold", "0.99999", "--json")
    (group,) = json.loads(out)
    assert group["images"] == [str(query), "photos/3/again.png"]
    kept, copy = group["rows"]
    code, out, _ = call(monkeypatch, capsys, "dedup", "--index", "index", "--threshold", "0.99999")
    assert out.splitlines() == [
        "group 1: 2 images",
        f"  keep   {query} (row {kept})",
        f"  1.0000 photos/3/again.png (row {copy})",
        "1 group, 1 redundant image",
    ]
    flags = ["--threshold", "0.99999", "--html", "twice.html", "--csv", "twice.csv"]
    code, out, _ = call(monkeypatch, capsys, "dedup", "--index", "index", *flags)
    assert out.splitlines()[-2:] == ["twice.html", "twice.csv"]
    page = (tmp_path / "twice.html").read_text()
    assert page.count("data:image/webp;base64,") == 2
    assert f"Keep: photos/2/0.png (row {kept})" in page
    assert [line.split(",")[:2] for line in (tmp_path / "twice.csv").read_text().splitlines()[1:]] == [
        ["keep", str(query)],
        ["remove", "photos/3/again.png"],
    ]


@given(st.integers(2, 24), st.floats(0.3, 0.99), st.integers(0, 99))
@settings(max_examples=50)
def test_what_may_go_is_near_to_what_stays_and_what_stays_is_apart(rows, threshold, seed):
    embeddings = F.normalize(torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed)), dim=1)
    groups = [near.tolist() for near, _ in _around_kept(embeddings, threshold)]
    cosines = embeddings @ embeddings.T
    gone = {row for group in groups for row in group[1:]}
    kept = sorted(set(range(rows)) - gone)
    assert len(gone) == sum(len(group) - 1 for group in groups)
    assert all(cosines[group[0], row] >= threshold - 1e-5 for group in groups for row in group)
    assert all(cosines[a, b] < threshold + 1e-5 for a in kept for b in kept if a < b)


def test_a_page_without_its_pictures_still_names_them(photos, tmp_path):
    from stml_semi.search.answers_page import write_page

    embed_source("tiny-resnet", str(photos), str(tmp_path / "index"), num_workers=0)
    answers = search(str(tmp_path / "index"), rows=[0], k=2)
    photos.rename(tmp_path / "<b>moved")
    write_page(str(tmp_path / "page.html"), str(tmp_path / "index"), answers)
    page = (tmp_path / "page.html").read_text()
    assert page.count("no image") == 3
    with pytest.raises(ValueError, match="--html"):
        write_page(str(tmp_path / "no" / "page.html"), str(tmp_path / "index"), answers)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search", "--index", "nothing", "a.png"], "--index nothing: holds no index; make one with `embed"),
        (["search", "--index", "{}"], "search: nothing to search for"),
        (["search", "--index", "{}", "--row", "99"], "--row 99: the index has no such row"),
        (["search", "--index", "{}", "missing.png"], "search missing.png: no such file"),
        (["search", "--index", "{}", "--row", "0", "--backend", "x"], "--backend x: choose one of exact, faiss"),
        (["dedup", "--index", "{}", "--threshold", "2"], "--threshold 2.0"),
        (["embed", "--model", "m", "--data", "d", "--output", "o", "--format", "csv"], "--format csv: choose one of"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, arguments, expected):
    folder = made_up(tmp_path / "index", torch.eye(4))
    code, out, err = call(monkeypatch, capsys, *(a.format(folder) for a in arguments))
    assert code == 2
    assert out == ""
    assert err.startswith(f"error: {expected}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("damage", ["cut", "gone", "no table"])
def test_a_damaged_table_is_named(tmp_path, damage):
    folder = made_up(tmp_path / "index", torch.eye(4))
    (data,) = (tmp_path / "index" / "images.lance" / "data").iterdir()
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:-9])
    elif damage == "gone":
        data.unlink()
    else:
        shutil.rmtree(tmp_path / "index" / "images.lance")
    with pytest.raises(BadInput, match=r"images.lance cannot be read \(.*\): embed again into another folder"):
        search(folder, rows=[0])


def test_an_index_of_an_earlier_version_is_named(photos, tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").write_text('{"model": "m", "part_size": 16384, "complete": true}')
    for use in (
        lambda: Index.open(tmp_path / "index"),
        lambda: embed_source("tiny-resnet", str(photos), str(tmp_path / "index"), num_workers=0),
    ):
        with pytest.raises(BadInput, match=r"was made by an earlier version; embed again into another folder"):
            use()


def test_a_bare_backbone_is_opened_for_another_size_by_all(photos, tmp_path, monkeypatch, capsys):
    folder = str(tmp_path / "index")
    flags = ("embed", "--model", "tiny-resnet", "--data", photos, "--output", folder, "--num-workers", 0)
    code, _, err = call(monkeypatch, capsys, *flags, "--image-size", 48)
    assert code == 0, err
    picture = str(photos / "2" / "3.png")
    expected = load("tiny-resnet", image_size=48).encode([Image.open(picture)])
    found = whole(Index.open(folder))
    np.testing.assert_allclose(found.embeddings[found.images.index(picture)], expected[0], atol=1e-5)
    assert search(folder, [picture], k=1)[0].hits[0].similarity == pytest.approx(1, abs=1e-5)
    code, _, err = call(monkeypatch, capsys, *flags)
    assert (code, "holds an index of another image size" in err) == (2, True), err
    with pytest.raises(BadInput, match=r"^--image-size 48: .*model has the size that it was trained at"):
        evaluate_model(str(exported(tmp_path)), str(photos), image_size=48)


def exported(folder: Path) -> Path:
    made = folder / "model"
    made.mkdir()
    (made / "modules.json").write_text("[]")
    return made
