"""What a run is scored on is never in its pool: the same file, the same row, the same bytes."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from helpers.miniature import write_shard
from helpers.pictures import write_pictures
from helpers.source_helpers import open_labeled, open_unlabeled

from stml_semi.config import TrainConfig
from stml_semi.data.evaluated import EvaluatedImages
from stml_semi.data.run_tables import open_tables, share_of_labeled
from stml_semi.training.resolve import resolve
from stml_semi.training.run import run

SMALL = {"backbone": "tiny-resnet", "max_steps": 2, "num_workers": 0, "log_every": 1, "no_report": True}
SMALL |= {"labeled_batch_size": 4, "images_per_class": 2, "unlabeled_batch_size": 10, "label_warmup_steps": 0}


def test_files_are_known_by_any_name_and_by_their_bytes(tmp_path):
    for name in ("robin", "wren"):
        write_pictures(tmp_path / "test" / name, 3, seed=ord(name[0]))
    pool = tmp_path / "pool"
    write_pictures(pool, 3, seed=1)
    shutil.copy(tmp_path / "test/robin/0.png", pool / "copy under another name.png")
    os.link(tmp_path / "test/robin/1.png", pool / "linked.png")
    (pool / "symbolic.png").symlink_to(tmp_path / "test/wren/2.png")
    # As many bytes as an evaluated image, but others; and files that cannot be read, on both sides.
    data = bytearray((tmp_path / "test/wren/0.png").read_bytes())
    data[-20] ^= 1
    (pool / "of the same size.png").write_bytes(data)
    for folder in (pool, tmp_path / "test/wren"):
        (folder / "empty.png").touch()
        (folder / "dangling.png").symlink_to(tmp_path / "nowhere")
    table = open_unlabeled(pool)
    found = EvaluatedImages([open_labeled(tmp_path / "test")]).find(table)
    assert [os.path.basename(one.image) for one in found] == [
        "copy under another name.png",
        "linked.png",
        "symbolic.png",
    ]
    assert [one.row for one in found] == sorted(one.row for one in found)
    assert f"({tmp_path}/test/robin/0.png)" in found[0].reason


def test_rows_of_tables_are_known_by_their_bytes(tmp_path):
    paths = write_pictures(tmp_path / "loose", 6)
    features = Features({"image": Image(decode=False), "label": Value("string")})
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "label": ["a", "a", "a", "b", "b", "b"],
    }
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "all.parquet")
    table = open_unlabeled(tmp_path / "all.parquet")
    kept = open_labeled(tmp_path / "all.parquet")
    assert kept.labels is not None
    scored = replace(kept, images=kept.images.select([4, 1]), labels=kept.labels[[4, 1]], rows=np.array([4, 1]))
    assert [one.row for one in EvaluatedImages([scored]).find(table)] == [1, 4]
    assert [one.row for one in EvaluatedImages([scored]).find(open_unlabeled(tmp_path / "loose"))] == [1, 4]
    assert EvaluatedImages([]).find(table) == []


@pytest.mark.slow
def test_one_folder_for_labels_and_pool(tmp_path, monkeypatch, capsys):
    """--labeled X --unlabeled X --test-classes --validation-classes: nothing that is scored is trained on."""
    monkeypatch.chdir(tmp_path)
    for name in "abcdefgh":
        write_pictures(tmp_path / "birds" / name, 4, seed=ord(name))
    (tmp_path / "birds/c/0.png").rename(tmp_path / "birds/c/a title\u2028 and a subtitle.png")
    values = SMALL | {"labeled": "birds", "unlabeled": "birds", "test_classes": 0.25, "validation_classes": 0.34}
    result = run(resolve("semi", values | {"eval_every": 1, "output_dir": "run"}))
    scored = [
        name
        for kind in ("test", "validation")
        for name in json.loads((tmp_path / f"run/{kind}_classes.json").read_text())
    ]
    assert len(scored) == 4

    def listed() -> list[str]:
        return [json.loads(line)["image"] for line in (tmp_path / "run/overlap.jsonl").read_text().split("\n")[:-1]]

    expected = sorted(f"birds/{name}/{file}" for name in scored for file in os.listdir(f"birds/{name}"))
    assert sorted(listed()) == expected
    assert "16 of 32 unlabeled images are left out: 16 that are evaluated on" in capsys.readouterr().err
    assert result.claim.endswith("; 16 unlabeled images that are evaluated on were left out")
    run(resolve("semi", values | {"eval_every": 1, "output_dir": "run", "resume": True, "max_steps": 3}))
    assert sorted(listed()) == expected
    again = capsys.readouterr().err
    assert "16 of 32 unlabeled images are left out" in again


def test_a_pool_of_nothing_but_evaluated_images_is_refused(tmp_path):
    for name in "abcd":
        write_pictures(tmp_path / "birds" / name, 4, seed=ord(name))
    values = SMALL | {"unlabeled": str(tmp_path / "birds"), "eval": str(tmp_path / "birds")}
    with pytest.raises(ValueError, match="--unlabeled .*birds: the run is evaluated on all of its 16 images"):
        run(resolve("unsup", values | {"output_dir": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_stream_does_not_bring_them_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards/0.tar", [(group, i) for group in range(6) for i in range(4)])
    write_shard(tmp_path / "test.tar", [(group, i) for group in (1, 4) for i in range(3)])
    values = SMALL | {"unlabeled": "shards", "unlabeled_stream": True, "eval": "test.tar", "pool_size": 24}
    run(resolve("unsup", values | {"output_dir": "run", "num_neighbors": 2}))
    lines = [json.loads(line) for line in (tmp_path / "run/overlap.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all("has the bytes of an evaluated image (test.tar[" in line["reason"] for line in lines)
    assert "6 images of the stream are evaluated on and left out of the pool" in capsys.readouterr().err
    run(resolve("unsup", values | {"output_dir": "run", "num_neighbors": 2, "resume": True, "max_steps": 4}))
    assert len((tmp_path / "run/overlap.jsonl").read_text().splitlines()) == 6


def test_unlabeled_images_that_are_labeled_ones_are_noticed(tmp_path):
    for seed, name in enumerate("ab"):
        write_pictures(tmp_path / "labeled" / name, 4, seed=seed)
        write_pictures(tmp_path / "other" / name, 4, seed=10 + seed)
    shutil.copytree(tmp_path / "labeled", tmp_path / "copies")

    def share(unlabeled: str) -> float:
        spec = ",".join(str(tmp_path / name) for name in unlabeled.split(","))
        labeled = str(tmp_path / "labeled")
        return share_of_labeled(open_tables(TrainConfig(labeled=labeled, unlabeled=spec, eval_every=0)))

    assert [share(names) for names in ("copies", "labeled", "other", "copies,other")] == [1, 1, 0, 0.5]
