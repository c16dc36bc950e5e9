"""Official archives of the benchmarks: which files make one, and what they say about each image.

A reader is a pure function (folder, split) -> rows; paths are relative to the folder, which is the archive's own.
"""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One image of a split."""

    path: str
    """Relative to the archive's folder, with slashes."""
    label: str
    """Name of the class; empty in sets without labels."""
    query: bool = False
    """Whether it asks, in splits that have a gallery."""


class Layout(NamedTuple):
    """How an archive looks on disk."""

    top: tuple[str, ...]
    """Folders that the archive may unpack into; what `needs` names lies in one of these, or in the folder itself."""
    needs: tuple[tuple[str, ...], ...]
    """Files and folders that make it, relative; alternatives, as sets have been published in several ways.
    `{split}` stands for the split."""
    read: Callable[[Path, str], Iterator[Row]]


class Archive(NamedTuple):
    """What is in a folder, as far as one split is concerned."""

    folder: Path | None
    """Where the archive is complete, or None."""
    missing: tuple[str, ...]
    """Otherwise what lacks in the most complete place."""


def find_archive(layout: Layout, folder: Path, split: str) -> Archive:
    """Looks for a layout in a folder and its top folders."""
    best: tuple[str, ...] | None = None
    for base in (folder, *(folder / top for top in layout.top)):
        for needed in layout.needs:
            paths = [path.format(split=split) for path in needed]
            missing = tuple(str(base / path) for path in paths if not (base / path).exists())
            if not missing:
                return Archive(base, ())
            if len(missing) < len(paths) and (best is None or len(missing) < len(best)):
                best = missing
    first = (folder / layout.top[0] if layout.top else folder, layout.needs[0])
    return Archive(None, best or tuple(str(first[0] / path.format(split=split)) for path in first[1]))


def absent(folder: Path, rows: list[Row]) -> list[str]:
    """Paths of rows whose file is not there; reads each folder once, since a million single questions take long."""
    present: dict[str, set[str]] = {}
    lost = []
    for row in rows:
        parent, name = os.path.split(row.path)
        if parent not in present:
            try:
                present[parent] = set(os.listdir(folder / parent))
            except OSError:
                present[parent] = set()
        if name not in present[parent]:
            lost.append(row.path)
    return lost


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        yield from (text for line in file if (text := line.strip()))


def _pairs(path: Path) -> dict[str, str]:
    """Lines `<id> <rest of the line>`."""
    return {key: rest for key, _, rest in (line.partition(" ") for line in _lines(path))}


def _cub(folder: Path, split: str) -> Iterator[Row]:
    paths, names = _pairs(folder / "images.txt"), _pairs(folder / "classes.txt")
    for image, number in _pairs(folder / "image_class_labels.txt").items():
        if (int(number) <= 100) == (split == "train"):
            yield Row(f"images/{paths[image]}", names[number])


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    return loadmat(path, squeeze_me=True)


def _cars(folder: Path, split: str) -> Iterator[Row]:
    names, parts = [], []
    if (folder / "cars_annos.mat").is_file():
        known = _mat(folder / "cars_annos.mat")
        names = known.get("class_names", [])
        parts = [("", "relative_im_path", known["annotations"])]
    else:
        if (folder / "devkit" / "cars_meta.mat").is_file():
            names = _mat(folder / "devkit" / "cars_meta.mat")["class_names"]
        labels = (folder / "cars_test_annos_withlabels.mat", folder / "devkit" / "cars_test_annos_withlabels.mat")
        tests = next(path for path in labels if path.is_file())
        for place, path in (("cars_train/", folder / "devkit" / "cars_train_annos.mat"), ("cars_test/", tests)):
            parts.append((place, "fname", _mat(path)["annotations"]))
    for place, column, annotations in parts:
        for path, number in zip(annotations[column].tolist(), annotations["class"].tolist(), strict=True):
            if (int(number) <= 98) == (split == "train"):
                name = f" {names[int(number) - 1]}" if len(names) else ""
                yield Row(f"{place}{path}", f"{int(number):03d}{name}")


def _sop(folder: Path, split: str) -> Iterator[Row]:
    lines = _lines(folder / f"Ebay_{split}.txt")
    column = {name: place for place, name in enumerate(next(lines, "").split())}
    for line in lines:
        fields = line.split()
        yield Row(fields[column["path"]], fields[column["class_id"]])


def _inshop(folder: Path, split: str) -> Iterator[Row]:
    lines = _lines(folder / "Eval" / "list_eval_partition.txt")
    places = ("Img/img", "img", "Img/img_highres", "img_highres")
    place = next(place for place in places if (folder / place).is_dir())
    for line in itertools.islice(lines, 2, None):  # After the number of images and the names of the columns.
        path, label, role = line.split()
        if (role == "train") == (split == "train"):
            yield Row(f"{place}/{path.removeprefix('img/')}", label, role == "query")


def _inat(folder: Path, split: str) -> Iterator[Row]:
    for line in _lines(folder / "Inat_dataset_splits" / f"Inaturalist_{split}_set1.txt"):
        kingdom, species, name = line.split("/")[-3:]
        yield Row(f"train_val2018/{kingdom}/{species}/{name}", f"{kingdom}/{species}")


def _species_folders(folder: Path) -> Iterator[Row]:
    for species in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
        for name in sorted(os.listdir(folder / species)):
            if name.lower().endswith((".jpg", ".jpeg")):
                yield Row(f"{folder.name}/{species}/{name}", species)


def _inat21(folder: Path, split: str) -> Iterator[Row]:
    yield from _species_folders(folder / split)


def _inat21_mini(folder: Path, split: str) -> Iterator[Row]:
    yield from _species_folders(folder / "train_mini")


def _nabirds(folder: Path, split: str) -> Iterator[Row]:
    paths, names = _pairs(folder / "images.txt"), _pairs(folder / "classes.txt")
    for image, number in _pairs(folder / "image_class_labels.txt").items():
        yield Row(f"images/{paths[image]}", f"{int(number):04d} {names[number]}")


def _compcars(folder: Path, split: str) -> Iterator[Row]:
    names = _car_names(folder / "data" / "misc" / "make_model_name.mat")
    if split == "all":
        pictures = folder / "data" / "image"
        for place, inner, files in os.walk(pictures):
            inner.sort()
            for name in sorted(files):
                if name.lower().endswith((".jpg", ".jpeg")):
                    path = Path(place, name).relative_to(pictures).as_posix()
                    yield _car(path, names)
        return
    lists = [folder / "data" / "train_test_split" / "classification" / f"{part}.txt" for part in ("train", "test")]
    listed = [_car(line, names) for path in lists for line in _lines(path)]
    lost = set(absent(folder, listed))  # The publisher's lists name files that the archive lacks.
    rows = [row for row in listed if row.path not in lost]
    counts = Counter(row.label for row in rows)
    yield from (row for row in rows if counts[row.label] >= 100)


class _CarNames(NamedTuple):
    makes: list[str]
    models: list[str]


def _car_names(path: Path) -> _CarNames:
    """Names of makes and models, by number from 1; none where the list is not there."""
    if not path.is_file():
        return _CarNames([], [])
    known = _mat(path)
    makes, models = (
        [name if isinstance(name, str) else "" for name in known[f"{kind}_names"]] for kind in ("make", "model")
    )
    return _CarNames(makes, models)


def _car(path: str, names: _CarNames) -> Row:
    """`<make>/<model>/<year>/<name>.jpg`, in numbers; a class is a model of a make."""
    make, model = path.split("/")[:2]
    known = [names.makes[int(make) - 1], names.models[int(model) - 1]] if names.models else []
    return Row(f"data/image/{path}", " ".join([f"{make}/{model}", *filter(None, known)]))


def _fashion200k(folder: Path, split: str) -> Iterator[Row]:
    for kind in ("dress", "jacket", "pants", "skirt", "top"):
        for line in _lines(folder / "labels" / f"{kind}_{split}_detect_all.txt"):
            yield Row(line.split("\t")[0], "")


_LISTS = ("images.txt", "image_class_labels.txt", "classes.txt", "images")
_CLASSIFICATION = "data/train_test_split/classification"

LAYOUTS: dict[str, Layout] = {
    "cub": Layout(("CUB_200_2011",), ((*_LISTS, "bounding_boxes.txt"),), _cub),
    "cars": Layout(
        (),
        (
            ("car_ims", "cars_annos.mat"),
            ("cars_train", "cars_test", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
            ("cars_train", "cars_test", "devkit/cars_train_annos.mat", "devkit/cars_test_annos_withlabels.mat"),
        ),
        _cars,
    ),
    "sop": Layout(("Stanford_Online_Products",), (("Ebay_{split}.txt",),), _sop),
    "inshop": Layout(
        (),
        tuple(
            ("Eval/list_eval_partition.txt", place) for place in ("Img/img", "img", "Img/img_highres", "img_highres")
        ),
        _inshop,
    ),
    "inat": Layout((), (("train_val2018", "Inat_dataset_splits/Inaturalist_{split}_set1.txt"),), _inat),
    "inat21": Layout((), (("{split}",),), _inat21),
    "inat21-mini": Layout((), (("train_mini",),), _inat21_mini),
    "nabirds": Layout(("nabirds",), ((*_LISTS, "hierarchy.txt"),), _nabirds),
    "compcars": Layout((), (("data/image", f"{_CLASSIFICATION}/train.txt", f"{_CLASSIFICATION}/test.txt"),), _compcars),
    "fashion200k": Layout(
        (),
        (
            (
                *(f"labels/{kind}_{{split}}_detect_all.txt" for kind in ("dress", "jacket", "pants", "skirt", "top")),
                "women",
            ),
        ),
        _fashion200k,
    ),
}
