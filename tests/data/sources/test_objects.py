"""Sources from Python: the same images and classes as the same thing given by name."""

from pathlib import Path

import pandas
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from helpers.pictures import write_pictures

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import read_image
from stml_semi.data.sources.objects import as_spec
from stml_semi.data.sources.open_source import open_source
from stml_semi.runtime.errors import BadInput


@pytest.fixture
def rows(tmp_path, monkeypatch) -> list[tuple[Path, str]]:
    monkeypatch.chdir(tmp_path)
    return [
        (path.relative_to(tmp_path), name)
        for name in ("wren", "robin")
        for path in write_pictures(tmp_path / name, 3, seed=ord(name[0]))
    ]


def opened(source: object, labels: str = "required") -> ImageTable:
    spec = as_spec(source, "labeled")
    assert spec is not None
    return open_source(spec, flag="--labeled", labels=labels)  # pyright: ignore[reportArgumentType]


def test_pairs_frames_and_data_sets_are_the_same_table(rows):
    paths, names = [str(path) for path, _ in rows], [name for _, name in rows]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["robin", "wren"])})
    sources = (
        rows,
        pandas.DataFrame({"path": paths, "class": names, "weight": 1.0}),
        Dataset.from_dict({"image": paths, "label": [["robin", "wren"].index(n) for n in names]}, features=features),
    )
    for source in sources:
        table = opened(source)
        assert table.classes == ("robin", "wren")
        assert table.labels is not None
        assert [table.classes[label] for label in table.labels] == names
        assert read_image(table.source(4)).tobytes() == read_image({"bytes": None, "path": paths[4]}).tobytes()


def test_paths_alone_are_unlabeled_and_from_any_iterable(rows):
    table = opened((path for path, _ in rows), labels="ignored")
    assert len(table) == 6
    assert table.labels is None


def test_the_same_content_is_the_same_file(rows):
    assert as_spec(rows, "labeled") == as_spec(list(rows), "labeled") != as_spec(rows[:5], "labeled")
    assert as_spec(None, "eval") is None
    assert as_spec("kanji", "labeled") == "kanji"
    assert as_spec(Path("birds"), "labeled") == "birds"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "labeled: a int is no source: give a name or path"),
        ([3], "labeled: a list that holds int 3"),
        ([("a.png", "x", "y")], "labeled: a list that holds tuple"),
        ([], "labeled: holds no images"),
        (b"kanji", "labeled: a bytes is no source"),
        (DatasetDict({"train": Dataset.from_dict({"a": [1]})}), r"holds the splits train; give one of them"),
    ],
)
def test_what_is_no_source_says_what_is_taken(source, message):
    with pytest.raises(BadInput, match=message):
        as_spec(source, "labeled")


def test_a_data_set_without_images_names_its_columns(rows):
    table = Dataset.from_dict({"n": [1, 2]}, features=Features({"n": Value("int64")}))
    with pytest.raises(BadInput, match="n"):
        opened(table)


def test_a_frame_of_pairs_names_images_from_the_working_folder(rows):
    Path("1").mkdir()  # A folder that is called like an answer.
    left, right = ([str(rows[i][0]) for i in places] for places in ((0, 1, 3), (1, 2, 4)))
    spec = as_spec(pandas.DataFrame({"left": left, "right": right, "same": ["1", "1", "1"]}), "labeled")
    assert spec is not None
    table = open_source(spec, flag="--labeled", labels="required", image_column="left,right")
    assert table.labels is not None
    assert sorted(table.labels.tolist().count(label) for label in range(2)) == [2, 3]
