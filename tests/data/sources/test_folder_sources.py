"""Folders of images, with and without classes, as what --labeled and --unlabeled take."""

import json
import unicodedata

import numpy as np
from helpers.source_helpers import level, open_labeled, open_unlabeled, refusal, save, write_csv

from stml_semi.data.sources.open_source import open_source


def test_class_folders(birds):
    table = open_labeled(birds)
    assert table.classes == ("robin", "tit", "wren")
    assert [level(table, row) for row in range(len(table))] == [30, 40, 50, 20, 10]
    assert table.labels is not None
    assert table.labels.dtype == np.int64
    assert table.labels.tolist() == [0, 0, 1, 2, 2]
    assert table.images.column_names == ["image"]
    assert table.describe(3) == str(birds / "wren/a.PNG")


def test_loose_images_at_any_depth_need_no_labels(birds):
    save(birds / "loose.png", 80)
    table = open_unlabeled(birds)
    assert table.labels is None
    assert table.classes == ()
    assert sorted(level(table, row) for row in range(len(table))) == [10, 20, 30, 40, 50, 80]
    again = open_unlabeled(birds)
    assert [again.describe(row) for row in range(6)] == [table.describe(row) for row in range(6)]


def test_links_are_followed_and_loops_end(birds, tmp_path):
    save(tmp_path / "elsewhere/e.png", 90)
    (birds / "linked").symlink_to(tmp_path / "elsewhere")
    (birds / "wren/loop").symlink_to(birds)
    (birds / "wren/self").symlink_to(birds / "wren")
    (birds / "gone").symlink_to(tmp_path / "nowhere")
    (birds / "itself").symlink_to(birds / "itself")
    everything = open_unlabeled(birds)
    assert sorted(level(everything, row) for row in range(len(everything))) == [10, 20, 30, 40, 50, 90]
    table = open_labeled(birds)
    assert table.classes == ("linked", "robin", "tit", "wren")
    assert table.labels is not None
    assert np.bincount(table.labels).tolist() == [1, 2, 1, 2]


def test_broken_links_with_a_picture_name_stay_in_the_table(birds):
    (birds / "tit/gone.png").symlink_to(birds / "nowhere.png")
    assert len(open_labeled(birds)) == 6


def test_optional_labels_are_taken_where_the_folder_has_them(birds):
    assert open_source(str(birds), flag="--data", labels="optional").classes == ("robin", "tit", "wren")
    save(birds / "loose.png", 80)
    mixed = open_source(str(birds), flag="--data", labels="optional")
    assert mixed.labels is None
    assert len(mixed) == 6


def test_a_folder_of_splits_is_no_folder_of_classes(birds):
    birds.rename(birds.with_name("train"))
    root = birds.parent
    assert refusal(open_labeled, root).endswith(f"holds splits, not classes; name one of train as in {root}:train")
    table = open_labeled(f"{root}:train")
    assert len(table) == 5
    assert "no sub-folder 'test'; there are train" in refusal(open_labeled, f"{root}:test")
    assert open_source(str(root), flag="--data", labels="optional").labels is None


def test_metadata_labels_are_used_when_labels_are_wanted(tmp_path):
    for i in range(3):
        save(tmp_path / f"pictures/{i}.png", i)
    write_csv(tmp_path / "pictures/metadata.csv", ("file_name", "species"), ("0.png", "b"), ("2.png", "a"))
    table = open_labeled(tmp_path / "pictures")
    assert [level(table, row) for row in range(2)] == [0, 2]
    assert table.classes == ("a", "b")
    assert table.labels is not None
    assert table.labels.tolist() == [1, 0]
    assert len(open_unlabeled(tmp_path / "pictures")) == 3
    (tmp_path / "pictures/metadata.csv").unlink()
    lines = [{"file_name": "0.png", "text": "no label"}]
    (tmp_path / "pictures/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "loose in the folder" in refusal(open_labeled, tmp_path / "pictures")


def test_loose_images_where_classes_are_needed(tmp_path):
    save(tmp_path / "pics/a.png")
    text = refusal(open_labeled, tmp_path / "pics")
    assert "1 images lie loose in the folder, such as a.png; one sub-folder per class is needed, as in" in text
    assert f"{tmp_path}/pics/robin/1.jpg" in text
    save(tmp_path / "pics/wren/b.png")
    assert "1 images lie beside the class folders, such as a.png" in refusal(open_labeled, tmp_path / "pics")


def test_empty_folders_say_what_was_looked_for(tmp_path):
    (tmp_path / "a.txt").touch()
    for open_it in (open_labeled, open_unlabeled):
        text = refusal(open_it, tmp_path)
        assert "no images at any depth; check the path" in text
        assert ".jpg" in text
        assert ".webp" in text
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data/list.csv", ("path",))
    assert "the folder holds data/list.csv: name that file or its folder" in refusal(open_unlabeled, tmp_path)


def test_one_class_is_not_enough(tmp_path):
    save(tmp_path / "birds/wren/b.png", 10)
    assert "only one class, 'wren'; a metric compares classes: give at least two" in refusal(
        open_labeled, tmp_path / "birds"
    )


def test_names_of_folders_are_compared_in_one_form(tmp_path):
    for i, name in enumerate([unicodedata.normalize("NFD", "Möwe"), unicodedata.normalize("NFC", "Möwe"), "1.0", "1 "]):
        save(tmp_path / "pics" / name / "x.png", i)
    table = open_labeled(tmp_path / "pics")
    assert table.classes == ("1", unicodedata.normalize("NFC", "Möwe"))
    assert table.labels is not None
    assert {level(table, row): label for row, label in enumerate(table.labels)} == {0: 1, 1: 1, 2: 0, 3: 0}
