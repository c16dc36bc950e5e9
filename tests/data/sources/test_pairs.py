"""Tables whose rows are pairs of images."""

import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.pictures import write_pictures
from hypothesis import given
from hypothesis import strategies as st

import stml_semi
from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.sources.request import Labels
from stml_semi.runtime.errors import BadInput


def opened(
    file: Path, columns: str = "left,right", labels: Labels = "required", answer: str | None = None
) -> ImageTable:
    return open_source(str(file), flag="--labeled", labels=labels, image_column=columns, label_column=answer)


def classes_of(table: ImageTable) -> dict[str, set[str]]:
    assert table.labels is not None
    found: dict[str, set[str]] = {name: set() for name in table.classes}
    for row, label in enumerate(table.labels):
        found[table.classes[label]].add(Path(table.describe(row)).name)
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    """a.png to f.png."""
    for path, letter in zip(write_pictures(tmp_path / "made", 6, seed=0), "abcdef", strict=True):
        Path(path).rename(tmp_path / f"{letter}.png")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "pairs.csv").write_text(text)
    return folder / "pairs.csv"


def test_a_class_is_what_pairs_connect(folder):
    file = write(folder, "left,right\nb.png,a.png\n./b.png,c.png\nf.png,e.png\n")
    table = opened(file)
    assert classes_of(table) == {"a.png": {"a.png", "b.png", "c.png"}, "e.png": {"e.png", "f.png"}}
    assert table.skipped == ()
    loose = opened(file, labels="ignored")
    assert (len(loose), loose.labels) == (5, None)


def test_pairs_of_different_things_connect_nothing(folder):
    text = "left,right,Same\na.png,b.png,1\nb.png,c.png,0\nc.png,d.png,True\nd.png,e.png,no\n"
    table = opened(write(folder, text))
    assert classes_of(table) == {"a.png": {"a.png", "b.png"}, "c.png": {"c.png", "d.png"}}
    assert table.skipped == (f"{folder}/pairs.csv: 1 image is in no pair of the same thing and left out",)
    (folder / "pairs.csv").write_text(text.replace("Same", "verdict"))
    assert len(opened(folder / "pairs.csv", answer="verdict")) == 4
    with pytest.raises(BadInput, match="only one class, 'a.png'"):  # An unknown column says nothing.
        opened(folder / "pairs.csv")


def test_answers_that_contradict_each_other_are_named(folder):
    file = write(folder, "left,right,label\na.png,b.png,1\nb.png,c.png,1\nd.png,e.png,1\nc.png,a.png,0\n")
    with pytest.raises(
        BadInput, match=r"row 4 says that c\.png and a\.png are different things, and other rows connect"
    ):
        opened(file)


@pytest.mark.parametrize(
    ("columns", "text", "problem"),
    [
        ("left,right,same", "left,right,same\na.png,b.png,1\n", "a pair is two columns, such as left,right"),
        ("left,left", "left,right\na.png,b.png\n", "a pair is two columns"),
        (
            "left,rihgt",
            "left,right\na.png,b.png\n",
            "no column 'rihgt'; set --labeled-image-column to one of",
        ),
        ("left,right", "left,right\na.png,\n", "1 paths in columns 'left' and 'right' are missing; drop their rows"),
        ("left,right", "left,right\nx.png,y.png\n", "none of the first 2 files in column 'left' exists"),
        (
            "left,right",
            "left,right,label\na.png,b.png,wren\n",
            r"row 1 has 'wren' in column 'label', .*give 1 or 0, or",
        ),
    ],
)
def test_what_is_wrong_is_said(folder, columns, text, problem):
    with pytest.raises(BadInput, match=rf"^--labeled \S+: .*{problem}"):
        opened(write(folder, text), columns)


def test_images_in_the_table_are_refused_and_other_files_taken(folder):
    data = (folder / "a.png").read_bytes()
    pq.write_table(pa.table({"left": [data], "right": [data]}), folder / "bytes.parquet")
    with pytest.raises(BadInput, match="column 'left' holds no paths; images of pairs are known by their paths"):
        opened(folder / "bytes.parquet")
    pq.write_table(
        pa.table({"left": ["a.png", "c.png"], "right": ["b.png", "d.png"], "y": [1, 1]}), folder / "paths.parquet"
    )
    assert opened(folder / "paths.parquet").classes == ("a.png", "c.png")
    (folder / "one,two.csv").write_text("x,label\na.png,1\nb.png,2\n")
    assert len(opened(folder / "one,two.csv", "x")) == 2


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_any_order_of_rows_gives_the_classes(sizes, shuffle: random.Random):
    from stml_semi.data.sources.pairs import _connected

    groups, pairs, count = [], [], 0
    for size in sizes:
        members = list(range(count, count + size))
        groups.append(set(members))
        shuffle.shuffle(members)
        pairs += [tuple(shuffle.sample(pair, 2)) for pair in itertools.pairwise(members)]
        count += size
    shuffle.shuffle(pairs)
    found = _connected(np.array(pairs, np.int64).reshape(-1, 2).T, count)
    assert sorted(map(sorted, groups)) == sorted(
        sorted(np.flatnonzero(found == one).tolist()) for one in np.unique(found)
    )


def test_a_run_learns_from_pairs(folder):
    file = write(folder, "left,right\n" + "".join(f"{one}.png,{other}.png\n" for one, other in ("ab", "cd", "ef")))
    run = stml_semi.train(
        labeled=str(file),
        labeled_image_column="left,right",
        backbone="tiny-resnet",
        image_size=24,
        embedding_dim=8,
        auxiliary_dim=8,
        max_steps=2,
        num_workers=0,
        no_report=True,
        output_dir=str(folder / "run"),
    )
    assert (run.folder / "model" / "modules.json").is_file()
