"""`cli.py data`: archives become tables, and all of it is shown."""

import functools
import shutil
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers import miniature
from helpers.command_line import call
from pyarrow import parquet

from stml_semi.data.benchmarks import prepare as module
from stml_semi.data.benchmarks.facts import BENCHMARKS
from stml_semi.data.benchmarks.prepare import prepare
from stml_semi.data.sources.open_source import open_source


@pytest.fixture(autouse=True)
def _miniature_counts(monkeypatch):
    monkeypatch.delenv("STML_DATA", raising=False)
    for name, known in list(BENCHMARKS.items()):
        monkeypatch.setitem(BENCHMARKS, name, known)
    miniature.replace_counts(BENCHMARKS)


def ignore(what: str, done: int, total: int) -> None:
    assert 0 < done <= total, what


def data(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    return call(monkeypatch, capsys, "data", *arguments)


def tgz(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname="")
    return path


@pytest.mark.parametrize("name", miniature.COUNTS)
def test_tables_hold_what_the_archive_holds(name, tmp_path):
    archive = miniature.build(name, tmp_path / "here" / name)
    prepared = prepare(name, [str(archive)], str(tmp_path / "root"), ignore)
    assert [table.path.stem for table in prepared] == list(miniature.COUNTS[name])
    assert sorted(p.name for p in (tmp_path / "root" / name).iterdir()) == sorted(t.path.name for t in prepared)
    for split in miniature.COUNTS[name]:
        old, new = (
            open_source(f"{name}:{split}", flag="--data", labels="optional", data_root=str(tmp_path / root))
            for root in ("here", "root")
        )
        assert new.classes == old.classes
        for mine, other in ((new.labels, old.labels), (new.queries, old.queries)):
            assert (mine is None and other is None) or np.array_equal(np.asarray(mine), np.asarray(other))
        for row in range(len(new)):
            path = old.source(row)["path"]
            assert path
            assert new.source(row)["bytes"] == Path(path).read_bytes()
        assert new.describe(3) == f"{name}:{split}[3]"


def test_a_table_is_readable_without_us(tmp_path):
    miniature.build("cub", tmp_path / "cub")
    prepare("cub", [str(tmp_path / "cub")], str(tmp_path), ignore)
    table = datasets.Dataset.from_parquet(str(tmp_path / "cub/train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert isinstance(table, datasets.Dataset)
    assert table[0]["image"].size == (24, 24)
    assert table[0]["label"] == "001.Bird_1"


def test_archives_are_unpacked_together_and_forgotten(tmp_path):
    cars = miniature.build("cars", tmp_path / "cars")
    packed = tgz(cars / "car_ims", tmp_path / "car_ims.tgz")
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(cars / "car_ims", arcname="car_ims")
    done = prepare("cars", [str(packed), str(cars / "cars_annos.mat")], str(tmp_path / "root"), ignore)
    assert [table.images for table in done] == [24, 24]
    assert sorted(p.name for p in (tmp_path / "root/cars").iterdir() if p.is_dir()) == []
    sop = miniature.build("sop", tmp_path / "sop")
    with zipfile.ZipFile(tmp_path / "sop.zip", "w") as archive:
        for path in sorted(sop.rglob("*")):
            archive.write(path, path.relative_to(sop))
    assert len(prepare("sop", [str(tmp_path / "sop.zip")], str(tmp_path / "root"), ignore)) == 2


def test_a_killed_preparation_goes_on_where_it_was(tmp_path, monkeypatch):
    """Stopped at every report in turn; parts that are there are not made again, and the result is the same."""
    packed = tgz(miniature.build("cub", tmp_path / "cub"), tmp_path / "cub.tgz")
    monkeypatch.setattr(module, "PART_ROWS", 7)
    prepare("cub", [str(packed)], str(tmp_path / "whole"), ignore)
    written: list[str] = []
    original = module._atomically

    def recorded(path, *arguments):
        original(path, *arguments)
        written.append(f"{path.parent.name}/{path.name}")

    monkeypatch.setattr(module, "_atomically", recorded)

    def stop_at(place: str, count: int) -> bool:
        """Whether a preparation that is killed at the count-th report of a place was killed."""
        reports = iter(range(count))

        def stop(what: str, done: int, total: int) -> None:
            if what.startswith(place) and next(reports, None) is None:
                raise KeyboardInterrupt

        try:
            prepare("cub", [str(packed)], str(tmp_path / "root"), stop)
        except KeyboardInterrupt:
            (tmp_path / "root/cub/train.partial").write_bytes(b"torn")
            return True
        return False

    kills = [stop_at("unpacking", 20), stop_at("unpacking", 40)]
    kills += [stop_at("cub:train", n) for n in range(4)]
    kills += [stop_at("cub:test", n) for n in range(4)]
    assert all(kills)
    assert not stop_at("nowhere", 0)
    assert len(written) == len(set(written)) == 2 * (4 + 1)
    for split in ("train", "test"):
        tables = [parquet.read_table(tmp_path / root / f"cub/{split}.parquet") for root in ("whole", "root")]
        assert tables[0].equals(tables[1])
    again = prepare("cub", [str(packed)], str(tmp_path / "root"), ignore)
    assert [table.new for table in again] == [False, False]


@pytest.mark.parametrize("kill_at", range(4))
def test_a_preparation_killed_while_it_cleans_up_goes_on(tmp_path, monkeypatch, kill_at):
    """Deletions stop half-way, one after the other: of the parts of each table, and of the unpacked archive."""
    packed = tgz(miniature.build("cub", tmp_path / "cub"), tmp_path / "cub.tgz")
    deletions, delete = iter(range(100)), shutil.rmtree

    def killed(folder: Path, **keywords) -> None:
        if Path(folder).is_dir() and next(deletions) == kill_at:
            for number, path in enumerate(sorted(Path(folder).rglob("*"))):
                if path.is_file() and number % 2:
                    path.unlink()
            raise KeyboardInterrupt
        delete(folder, **keywords)

    monkeypatch.setattr(module.shutil, "rmtree", killed)
    unpackings: list[str] = []
    prepare_it = functools.partial(prepare, "cub", [str(packed)], str(tmp_path / "root"))
    if kill_at < 3:
        with pytest.raises(KeyboardInterrupt):
            prepare_it(ignore)
    else:
        prepare_it(ignore)
    monkeypatch.setattr(module.shutil, "rmtree", delete)
    done = prepare_it(lambda what, done, total: unpackings.append(what) if what.startswith("unpacking") else None)
    assert [(table.images, table.classes) for table in done] == [(24, 4), (24, 4)]
    left = {path.name for path in (tmp_path / "root/cub").iterdir()}
    assert left == {"train.parquet", "test.parquet", ".prepared-from"}
    assert not unpackings, "an archive that is unpacked, or was prepared, is not unpacked again"


def test_an_archive_that_is_not_the_official_one_leaves_nothing_behind(tmp_path):
    cub = miniature.build("cub", tmp_path / "cub")
    next(cub.rglob("images.txt")).unlink()
    assert "lacks" in refusal("cub", [tgz(cub, tmp_path / "cub.tgz")], str(tmp_path / "root"))
    (tmp_path / "torn.tgz").write_bytes((tmp_path / "cub.tgz").read_bytes()[:500])
    assert "damaged" in refusal("cub", [tmp_path / "torn.tgz"], str(tmp_path / "root"))
    assert not list((tmp_path / "root/cub").iterdir())


def test_parts_of_other_lists_are_not_used(tmp_path, monkeypatch):
    archive = miniature.build("cub", tmp_path / "cub")
    parts = tmp_path / "root/cub/train.parts"
    parts.mkdir(parents=True)
    (parts / "another").touch()
    (parts / "000000000.parquet").write_bytes(b"of another archive")
    prepare("cub", [str(archive)], str(tmp_path / "root"), ignore)
    assert open_source("cub", flag="--data", labels="required", data_root=str(tmp_path / "root")).source(0)["bytes"]


def refusal(name: str, sources: list[Path | str], root: str | None) -> str:
    with pytest.raises(ValueError) as caught:
        prepare(name, [str(source) for source in sources], root, ignore)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_wrong_with_an_archive_is_said(tmp_path):
    root, folder = str(tmp_path / "root"), tmp_path / "cub"
    miniature.build("cub", folder)
    assert "name one of cub, cars" in refusal("kanji", [folder], root)
    assert "--data-root or $STML_DATA" in refusal("cub", [folder], None)
    assert "--source" in refusal("cub", [], root)
    assert "no such file or folder" in refusal("cub", [tmp_path / "cbu"], root)
    assert "lacks Stanford_Online_Products/Ebay_train.txt" in refusal("sop", [folder], root)
    (folder / "CUB_200_2011/images/102.Bird_102/Bird_102_0000.jpg").unlink()
    text = refusal("cub", [folder], root)
    assert text.startswith(f"--source {folder}: 1 of the 24 listed images are missing in")
    (tmp_path / "torn.tgz").write_bytes(tgz(folder, tmp_path / "whole.tgz").read_bytes()[:2000])
    text = refusal("cub", [tmp_path / "torn.tgz"], root)
    assert text.startswith(f"--source {tmp_path}/torn.tgz: damaged")
    assert "download it again" in text
    (tmp_path / "a.zip").write_bytes(b"no zip")
    assert "damaged" in refusal("cub", [tmp_path / "a.zip"], root)
    (tmp_path / "file").touch()
    assert "nothing is lost, try again" in refusal("cub", [folder], str(tmp_path / "file"))


def test_a_table_of_other_counts_is_refused(tmp_path, monkeypatch):
    prepare("cub", [str(miniature.build("cub", tmp_path / "cub"))], str(tmp_path), ignore)
    table = parquet.read_table(tmp_path / "cub/train.parquet")
    parquet.write_table(table.slice(0, 20), tmp_path / "cub/train.parquet")
    with pytest.raises(ValueError, match=r"--labeled cub: cub:train has 20 images instead of 24 \(4 missing\)"):
        open_source("cub", flag="--labeled", labels="required", data_root=str(tmp_path))


def test_commands_list_prepare_and_info(monkeypatch, capsys, tmp_path):
    root = tmp_path / "root"
    archive = miniature.build("cub", tmp_path / "cub")
    code, output, _ = data(monkeypatch, capsys, "list")
    assert code == 0
    assert "No data root: set --data-root or $STML_DATA" in output
    for name in BENCHMARKS:
        assert f" {name} " in output
    code, output, errors = data(monkeypatch, capsys, "prepare", "cub", "--source", archive, "--data-root", root)
    assert code == 0, errors
    assert f"{root}/cub/train.parquet: 24 images of 4 classes" in output
    miniature.build("inat21", root / "inat21")
    (root / "inat21/val").rename(tmp_path / "elsewhere")
    _, output, _ = data(monkeypatch, capsys, "list", "--data-root", root)
    rows = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert "prepared" in rows["cub"]
    assert "archive (in part)" in rows["inat21"]
    assert "non-commercial" in rows["inat21"]
    assert "embedded" in rows["kanji"]
    code, output, _ = data(monkeypatch, capsys, "info", "cub:test", "--data-root", root)
    assert code == 0
    for text in ("24 (cub:test)", "4, of 6 to 6 images", "24 to 24 px wide", "24 x 24 (100%)", "0 of 24"):
        assert text in output
    code, _, errors = data(monkeypatch, capsys, "info", "cars", "--data-root", root)
    assert code == 2
    assert errors.startswith("error: data info cars: neither")


def test_info_lists_bad_files(monkeypatch, capsys, tmp_path):
    miniature.write(tmp_path, {f"{n}.jpg": miniature.jpeg(n, 0) for n in range(6)})
    (tmp_path / "3.jpg").write_bytes(b"")
    code, output, _ = data(monkeypatch, capsys, "info", tmp_path, "--sample", "0")
    assert code == 0
    assert "1 of 6" in output
    assert f"{tmp_path}/3.jpg: empty file" in output
    code, output, _ = data(monkeypatch, capsys, "info", tmp_path, "--sample", "2")
    assert "0 of 2 evenly spaced ones" in output


def hub_copy(numbers: list[int], names: list[str] | None) -> datasets.DatasetDict:
    """Like a copy on the hub: both splits hold all classes, unless their own are the protocol's."""
    parts = {}
    for part, offset in (("train", 0), ("test", 3)):
        rows = [(n, i) for n in numbers for i in range(offset, offset + 3)]
        if names is None:
            own = numbers[:4] if part == "train" else numbers[4:]
            rows = [(n, i) for n in own for i in range(6)]
        label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
        parts[part] = datasets.Dataset.from_dict(
            {
                "image": [{"bytes": miniature.jpeg(n, i), "path": None} for n, i in rows],
                "label" if names else "item_id": [n - 1 if names else n for n, _ in rows],
            },
            features=datasets.Features({"image": datasets.Image(), "label" if names else "item_id": label}),
        )
    return datasets.DatasetDict(parts)


@pytest.mark.parametrize("name", ["cub", "cars", "sop"])
def test_copies_on_the_hub_become_the_same_protocol(name, tmp_path, monkeypatch):
    asked = []
    numbers = {"cub": [1, 2, 99, 100, 101, 102, 199, 200], "cars": [1, 2, 97, 98, 99, 100, 195, 196]}.get(name)
    copy = hub_copy(numbers or list(range(8)), [f"class {n}" for n in range(1, numbers[-1] + 1)] if numbers else None)

    def load(identifier, *, revision, split):
        asked.append((identifier, revision, split))
        return copy[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    done = prepare(name, ["hub"], str(tmp_path), ignore)
    assert [(table.images, table.classes) for table in done] == [(24, 4), (24, 4)]
    known = BENCHMARKS[name].hub
    assert known is not None
    assert asked == [(known.id, known.revision, part) for part in ("train", "test")]
    train, test = (
        open_source(f"{name}:{split}", flag="--data", labels="required", data_root=str(tmp_path))
        for split in ("train", "test")
    )
    assert not set(train.classes) & set(test.classes)
    if name == "cub":
        assert test.classes == ("101 class 101", "102 class 102", "199 class 199", "200 class 200")
    group = {"cub": 101, "cars": 99, "sop": 4}[name]
    assert test.source(0)["bytes"] == miniature.jpeg(group, 0)


def test_copies_that_are_not_as_expected_are_refused(tmp_path, monkeypatch):
    assert "no trustworthy copy on the hub; give its archive with --source" in refusal(
        "nabirds", ["hub"], str(tmp_path)
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split, **__: hub_copy(list(range(8)), None)[split])
    assert "lacks a column 'label'" in refusal("cub", ["hub"], str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split, **__: hub_copy([1, 2, 3], list("abc"))[split])
    assert "cub:train has 18 images instead of 24" in refusal("cub", ["hub"], str(tmp_path))

    def offline(*_, **__):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert "--source hub: bentrevett/" in refusal("cub", ["hub"], str(tmp_path))
