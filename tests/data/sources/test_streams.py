"""Streams: what is read, in which order, and how reading goes on."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pytest
from helpers import miniature
from pyarrow import parquet

from stml_semi.data.batches.live_images import LiveStream, describe_images, live_images
from stml_semi.data.sources.open_unlabeled import open_unlabeled
from stml_semi.data.sources.streams import ImageStream, Position, StreamSource
from stml_semi.runtime.errors import RunFailed

PER_SHARD = (7, 8, 9)


@pytest.fixture(autouse=True)
def short_naps(monkeypatch):
    """datasets sleeps for five seconds after reading parquet, lest Arrow's threads outlive the program."""
    from datasets import config

    monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


@pytest.fixture(params=["tar", "parquet", "jsonl"])
def folder(request, tmp_path) -> Path:
    return write_stream(tmp_path, request.param)


def write_stream(place: Path, kind: str) -> Path:
    folder = place / kind
    folder.mkdir()
    for shard, size in enumerate(PER_SHARD):
        pictures = [miniature.jpeg(shard, i) for i in range(size)]
        file = folder / f"train-{shard:05d}.{kind}"
        if kind == "tar":
            miniature.write_shard(file, [(shard, i) for i in range(size)])
        elif kind == "parquet":
            rows = [{"label": shard, "image": {"bytes": picture, "path": None}} for picture in pictures]
            parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=3)
        else:
            (folder / f".images-{shard}").mkdir()
            for i, picture in enumerate(pictures):
                (folder / f".images-{shard}" / f"{i}.jpg").write_bytes(picture)
            lines = [{"words": ["a", "b"], "file_name": f".images-{shard}/{i}.jpg"} for i in range(size)]
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def opened(spec: Path | str, seed: int = 0) -> ImageStream:
    stream = open_unlabeled(str(spec), stream=True, image_column=None, data_root=None, seed=seed)
    assert isinstance(stream, ImageStream)
    return stream


def live(spec: Path | str, place: Path, pool_size: int, seed: int = 0) -> LiveStream:
    found = live_images(opened(spec, seed), seed=seed, pool_size=pool_size, folder=place / "pool")
    assert isinstance(found, LiveStream)
    return found


def contents(drawn) -> list[bytes]:
    sources = [drawn.table.source(row) for row in drawn.rows]
    return [source["bytes"] or Path(source["path"]).read_bytes() for source in sources]


ALL = {miniature.jpeg(shard, i) for shard, size in enumerate(PER_SHARD) for i in range(size)}


def test_pools_go_through_the_stream_and_start_again(folder, tmp_path):
    source = live(folder, tmp_path, pool_size=10)
    record, pools, known = None, [], []
    for refresh in range(12):
        drawn = source.draw(refresh, record)
        record = json.loads(json.dumps(drawn.record))
        pools.append(contents(drawn))
        known.append(source.num_known(record))
        assert len(list((tmp_path / "pool").rglob("*.arrow"))) == 1  # Never more than one pool is kept.
    assert len(ALL) == 24
    assert all(len(set(pool)) == 10 for pool in pools)
    read = [picture for pool in pools for picture in pool]
    assert set(read[:24]) == ALL
    assert read[24:120] == read[:24] * 4  # Five times through, in the same order.
    assert known == [10, 20, *[24] * 10]
    source.close()
    assert not (tmp_path / "pool").exists()


# The end comes within the fourth pool; between the third and the fourth one.
@pytest.mark.parametrize(("pool_size", "stops"), [(7, (1, 3)), (8, (2,))])
def test_reading_goes_on_as_if_it_had_not_stopped(folder, tmp_path, pool_size, stops):
    whole = live(folder, tmp_path / "a", pool_size=pool_size)
    records, pools = [], []
    for refresh in range(5):
        drawn = whole.draw(refresh, records[-1] if records else None)
        records.append(json.loads(json.dumps(drawn.record)))
        pools.append(contents(drawn))
    for stop in stops:
        resumed = live(folder, tmp_path / "b", pool_size=pool_size)
        assert contents(resumed.again(stop, records[stop])) == pools[stop]
        assert contents(resumed.draw(stop + 1, records[stop])) == pools[stop + 1]
        fresh = live(folder, tmp_path / "c", pool_size=pool_size)
        assert contents(fresh.draw(stop + 1, records[stop])) == pools[stop + 1]


def test_a_stream_smaller_than_the_pool_is_all_of_it(folder, tmp_path):
    source, record = live(folder, tmp_path, pool_size=100), None
    for refresh in range(3):
        drawn = source.draw(refresh, record)
        record = drawn.record
        assert len(drawn.rows) == 24
        assert set(contents(drawn)) == ALL
        assert source.num_known(record) == 24


def test_the_seed_shuffles_shards(tmp_path):
    folder = write_stream(tmp_path, "parquet")
    orders = {tuple(contents(live(folder, tmp_path, 24, seed).draw(0, None))) for seed in range(5)}
    assert len(orders) > 1


def test_pictures_are_named_by_their_place_in_the_stream(tmp_path):
    folder = write_stream(tmp_path, "tar")
    source = live(folder, tmp_path, pool_size=10)
    first = source.draw(0, None)
    second = source.draw(1, first.record)
    third = source.draw(2, second.record)
    assert [first.table.describe(row) for row in (0, 9)] == [f"{folder}[0]", f"{folder}[9]"]
    assert [third.table.describe(row) for row in (3, 4, 9)] == [f"{folder}[23]", f"{folder}[0]", f"{folder}[5]"]


def test_a_stream_beside_a_folder_gives_its_share(tmp_path):
    folder = write_stream(tmp_path, "tar")
    loose = tmp_path / "loose"
    miniature.write(loose, {f"{i}.jpg": miniature.jpeg(7, i) for i in range(5)})
    source = live(f"{folder}=3,{loose}=1", tmp_path, pool_size=8)
    record, own = None, set()
    for refresh in range(5):
        drawn = source.draw(refresh, record)
        record = drawn.record
        names = [drawn.table.describe(row) for row in drawn.rows]
        assert [name.startswith(str(loose)) for name in names] == [False] * 6 + [True] * 2
        own |= set(names[6:])
    assert len(own) == 5
    assert source.num_known(record) == 24 + 5
    text = describe_images(source.stream, 8)
    assert text == (
        f"{folder}: a stream, weight 0.75, 6 of the live ones; {loose}: 5 images, weight 0.25, 2 of the live ones"
    )


def test_another_stream_than_the_one_of_the_checkpoint_is_refused(tmp_path):
    folder = write_stream(tmp_path, "tar")
    record = live(folder, tmp_path, pool_size=10).draw(0, None).record
    for shard in folder.iterdir():
        miniature.write_shard(shard, [(9, i) for i in range(9)])
    with pytest.raises(RunFailed, match="holds other images than when the checkpoint was written"):
        live(folder, tmp_path, pool_size=10).again(0, record)


def test_a_torn_shard_says_where_it_is(tmp_path):
    folder = write_stream(tmp_path, "tar")
    source = live(folder, tmp_path, pool_size=20)
    for shard in folder.iterdir():
        shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(RunFailed, match=r"--unlabeled .*tar: the stream cannot be read beyond row 0 \(") as caught:
        source.draw(0, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("kanji-more", "nothing of it can be read as a stream"),
        ("{loose}", "nothing of it can be read as a stream"),
        ("{tar},{loose}", "nobody knows how long a stream is.*as in .*tar=0.5,.*loose=0.5"),
        ("{tar}/train-9*.parquet", "the pattern matches nothing"),
        ("{empty}", "(holds no rows|cannot be read)"),
        ("{words}", "no image column among words; name it with --unlabeled-image-column"),
    ],
)
def test_what_is_no_stream_is_told(tmp_path, spec, problem):
    places = {name: tmp_path / name for name in ("tar", "loose")}
    write_stream(tmp_path, "tar")
    miniature.write(places["loose"], {"1.jpg": miniature.jpeg(0, 0)})
    for name, table in (("empty", {"image": pyarrow.array([], pyarrow.binary())}), ("words", {"words": ["a"]})):
        places[name] = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table(table), places[name])
    with pytest.raises(ValueError, match=f"--unlabeled .*{problem}"):
        opened(spec.format(**places))


def test_classes_of_a_stream_are_not_looked_for(folder):
    with pytest.raises(ValueError, match="--unlabeled-label-column is for tables"):
        open_unlabeled(str(folder), stream=True, image_column=None, data_root=None, seed=0, label_column="label")


def test_a_hub_id_is_streamed_from_its_revision(tmp_path, monkeypatch):
    import datasets

    asked = []
    file = write_stream(tmp_path, "parquet") / "train-00000.parquet"
    load = datasets.load_dataset

    def load_dataset(name: str, **options: object) -> object:
        asked.append((name, options))
        return load("parquet", data_files={"train": str(file)}, split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    stream = opened("user/name@v1.0:validation")
    assert asked == [("user/name", {"split": "validation", "revision": "v1.0", "streaming": True})]
    (source,) = stream.sources
    assert isinstance(source, StreamSource)
    stretch = source.read(Position(), 5, tmp_path / "some.arrow")
    np.testing.assert_array_equal(stretch.numbers(), np.arange(5))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_memory_stays_while_a_stream_ten_times_the_pool_goes_by(tmp_path, kind):
    folder, size, pool = tmp_path / "stream", 65_536, 100
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(5):
        made = [rng.bytes(size) for _ in range(2 * pool)]
        file = folder / f"{shard}.{kind}"
        if kind == "parquet":
            parquet.write_table(pyarrow.table({"image": made}), file, row_group_size=20)
            continue
        with tarfile.open(file, "w") as archive:
            for i, content in enumerate(made):
                member = tarfile.TarInfo(f"{shard}-{i:04d}.jpg")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    source = live(folder, tmp_path, pool_size=pool)
    record, memory = None, []
    for refresh in range(10):
        drawn = source.draw(refresh, record)
        record = drawn.record
        assert sum(map(len, contents(drawn))) == pool * size
        memory.append(psutil.Process().memory_info().rss - psutil.Process().memory_info().shared)
    # Eight more pools went by; what earlier tests left to the allocators may come and go.
    assert memory[-1] - memory[1] < 4 * pool * size
