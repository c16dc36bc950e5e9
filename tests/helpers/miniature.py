"""Small archives in the exact layouts of the official ones, and the counts that they have instead."""

import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

PER_CLASS = 6
COUNTS: dict[str, dict[str, tuple[int, int | None, int | None]]] = {
    "cub": {"train": (24, 4, None), "test": (24, 4, None)},
    "cars": {"train": (24, 4, None), "test": (24, 4, None)},
    "sop": {"train": (24, 4, None), "test": (24, 4, None)},
    "inshop": {"train": (24, 4, None), "test": (24, 4, 8)},
    "inat": {"train": (24, 4, None), "test": (24, 4, None)},
    "inat21": {"train": (24, 4, None), "val": (24, 4, None)},
    "inat21-mini": {"train": (24, 4, None)},
    "nabirds": {"all": (24, 4, None)},
    "compcars": {"frequent": (203, 2, None), "all": (210, 3, None)},
    "fashion200k": {"train": (20, None, None)},
}
"""Images, classes and queries of each split."""


def jpeg(group: int, member: int, *, side: int = 24) -> bytes:
    """An image that looks like others of its group."""
    base = np.random.default_rng(group).integers(0, 255, (4, 4, 3))
    noise = np.random.default_rng([group, member]).normal(0, 25, base.shape)
    pixels = np.clip(base + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def build(name: str, folder: Path, *, form: str = "") -> Path:
    """Writes the archive of a benchmark as it unpacks. `form` names one of several layouts, where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    _BUILDERS[name](folder, form)
    return folder


def replace_counts(benchmarks: dict) -> None:
    """The miniature counts in place of the official ones, in the dictionary itself."""
    for name, splits in COUNTS.items():
        known = benchmarks[name]
        own = {
            split: replace(known.splits[split], images=images, classes=classes, queries=queries)
            for split, (images, classes, queries) in splits.items()
        }
        assert list(own) == list(known.splits)
        benchmarks[name] = replace(known, splits=own)


def write(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """Relative path -> content."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def _cub(folder: Path, form: str) -> None:
    """Classes are numbered as in the original: training ones up to 100, test ones from 101."""
    numbers = [1, 2, 99, 100, 101, 102, 199, 200]
    classes = {n: f"{n:03d}.Bird_{n}" for n in numbers}
    images = [(f"{classes[n]}/Bird_{n}_{i:04d}.jpg", n, i) for n in numbers for i in range(PER_CLASS)]
    ids = range(1, len(images) + 1)
    lists = {
        "images.txt": [f"{k} {path}" for k, (path, _, _) in zip(ids, images, strict=True)],
        "image_class_labels.txt": [f"{k} {n}" for k, (_, n, _) in zip(ids, images, strict=True)],
        "train_test_split.txt": [f"{k} {k % 2}" for k in ids],
        "bounding_boxes.txt": [f"{k} 1.0 1.0 9.0 9.0" for k in ids],
        "classes.txt": [f"{n} {classes[n]}" for n in numbers],
    }
    top = folder / "CUB_200_2011"
    write(top, {name: "\n".join(lines) + "\n" for name, lines in lists.items()})
    write(top, {f"images/{path}": jpeg(n, i) for path, n, i in images})


def _cars(folder: Path, form: str) -> None:
    """`form`: "ims" (car_ims and one list) or "devkit" (the two official halves, each with all classes)."""
    from scipy.io import savemat

    numbers = [1, 2, 97, 98, 99, 100, 195, 196]
    names = np.array([f"Make Model {n} 2012" for n in range(1, 197)], dtype=object)
    images = [(n, i) for n in numbers for i in range(PER_CLASS)]
    box = [("bbox_x1", "O"), ("bbox_y1", "O"), ("bbox_x2", "O"), ("bbox_y2", "O"), ("class", "O")]
    if form != "devkit":
        rows = [(f"car_ims/{k:06d}.jpg", 1, 1, 9, 9, n, k % 2) for k, (n, _) in enumerate(images, 1)]
        annotations = np.array([rows], dtype=[("relative_im_path", "O"), *box, ("test", "O")])
        savemat(folder / "cars_annos.mat", {"annotations": annotations, "class_names": names[None]})
        write(folder, {f"car_ims/{k:06d}.jpg": jpeg(n, i) for k, (n, i) in enumerate(images, 1)})
        return
    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names[None]})
    for part, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        own = [(n, i) for n, i in images if (i % 2 == 0) == (part == "train")]
        rows = [(1, 1, 9, 9, n, f"{k:05d}.jpg") for k, (n, _) in enumerate(own, 1)]
        savemat(folder / file, {"annotations": np.array([rows], dtype=[*box, ("fname", "O")])})
        write(folder, {f"cars_{part}/{k:05d}.jpg": jpeg(n, i) for k, (n, i) in enumerate(own, 1)})


def _sop(folder: Path, form: str) -> None:
    top = folder / "Stanford_Online_Products"
    image = 0
    for split, items in (("train", range(1, 5)), ("test", range(11319, 11323))):
        lines = ["image_id class_id super_class_id path"]
        for item in items:
            for i in range(PER_CLASS):
                image += 1
                path = f"bicycle_final/1110858{item:05d}_{i}.JPG"
                lines.append(f"{image} {item} 1 {path}")
                write(top, {path: jpeg(item, i)})
        write(top, {f"Ebay_{split}.txt": "\n".join(lines) + "\n"})


def _inshop(folder: Path, form: str) -> None:
    """`form`: "highres" for the large images, beside the lists."""
    lines = []
    for item in range(1, 9):
        for i in range(PER_CLASS):
            role = "train" if item <= 4 else "query" if i < 2 else "gallery"
            path = f"WOMEN/Dresses/id_{item:08d}/{i:02d}_1_front.jpg"
            lines.append(f"{'img/' + path:<72}{f'id_{item:08d}':<16}{role}")
            write(folder, {f"img_highres/{path}" if form == "highres" else f"Img/img/{path}": jpeg(item, i)})
    head = [str(len(lines)), "image_name item_id evaluation_status"]
    write(folder, {"Eval/list_eval_partition.txt": "\n".join([*head, *lines]) + "\n"})


def _inat(folder: Path, form: str) -> None:
    for split, species in (("train", range(2, 6)), ("test", range(5000, 5004))):
        paths = [f"train_val2018/Aves/{n}/{n:04d}{i:028x}.jpg" for n in species for i in range(PER_CLASS)]
        write(folder, {f"Inat_dataset_splits/Inaturalist_{split}_set1.txt": "\n".join(paths) + "\n"})
        write(folder, {path: jpeg(k // PER_CLASS + 100 * len(split), k) for k, path in enumerate(paths)})
    write(folder, {"train2018.json": "{}", "val2018.json": "{}"})


def _species(folder: Path, *parts: str) -> None:
    for part in parts:
        for n in range(3126, 3130):
            place = f"{part}/{n:05d}_Animalia_Chordata_Aves_Accipitriformes_Accipitridae_Buteo_species{n}"
            write(folder, {f"{place}/{part}-{i:04d}.jpg": jpeg(n, i) for i in range(PER_CLASS)})


def _nabirds(folder: Path, form: str) -> None:
    """Leaf labels are not contiguous; the list of classes holds the inner ones too."""
    leaves = [295, 296, 817, 1010]
    images = [(f"{n:08x}-{i:04x}-4444-8888-{n:012x}", n, i) for n in leaves for i in range(PER_CLASS)]
    lists = {
        "images.txt": [f"{key} {n:04d}/{key.replace('-', '')}.jpg" for key, n, _ in images],
        "image_class_labels.txt": [f"{key} {n}" for key, n, _ in images],
        "train_test_split.txt": [f"{key} {i % 2}" for key, _, i in images],
        "hierarchy.txt": [f"{n} 1" for n in leaves],
        "classes.txt": ["0 Birds", "1 Ducks", *(f"{n} Bird {n} (Adult Male)" for n in leaves)],
    }
    top = folder / "nabirds"
    write(top, {name: "\n".join(lines) + "\n" for name, lines in lists.items()})
    write(top, {f"images/{n:04d}/{key.replace('-', '')}.jpg": jpeg(n, i) for key, n, i in images})


def _compcars(folder: Path, form: str) -> None:
    """Two models with a hundred images in the lists, one with few; lists name a file that is not there."""
    from scipy.io import savemat

    lists: dict[str, list[str]] = {"train": [], "test": []}
    for make, model, count in ((78, 1, 100), (78, 2, 104), (81, 5, 7)):
        for i in range(count):
            path = f"{make}/{model}/{'unknown' if i % 9 == 0 else 2014}/{model:02d}{i:012x}.jpg"
            lists["test" if i % 2 else "train"].append(path)
            if (model, i) != (2, 103):
                write(folder / "data" / "image", {path: jpeg(make + model, i, side=16)})
    for part, lines in lists.items():
        write(folder, {f"data/train_test_split/classification/{part}.txt": "\n".join(lines) + "\n"})
    names = {"make_names": (163, {78: "Audi", 81: "BWM"}), "model_names": (2004, {1: "Audi A3", 2: "Audi TTS coupe"})}
    (folder / "data" / "misc").mkdir(parents=True)
    columns = {
        key: np.array([known.get(n, f"{key} {n}") for n in range(1, count + 1)], dtype=object)[:, None]
        for key, (count, known) in names.items()
    }
    savemat(folder / "data" / "misc" / "make_model_name.mat", columns)


def _fashion200k(folder: Path, form: str) -> None:
    for kind in ("dress", "jacket", "pants", "skirt", "top"):
        for split, count in (("train", 4), ("test", 1)):
            paths = [f"women/{kind}s/some_{kind}s/{count}{i}/{count}{i}_0.jpeg" for i in range(count)]
            write(folder, {f"labels/{kind}_{split}_detect_all.txt": "".join(f"{p}\t0.9\ta {kind}\n" for p in paths)})
            write(folder, {path: jpeg(len(kind) + 10 * count, i) for i, path in enumerate(paths)})


_BUILDERS = {
    "cub": _cub,
    "cars": _cars,
    "sop": _sop,
    "inshop": _inshop,
    "inat": _inat,
    "inat21": lambda folder, form: _species(folder, "train", "val"),
    "inat21-mini": lambda folder, form: _species(folder, "train_mini"),
    "nabirds": _nabirds,
    "compcars": _compcars,
    "fashion200k": _fashion200k,
}


def write_shard(path: Path, samples: list[tuple[int, int]], *, with_labels: bool = True) -> None:
    """A webdataset shard: for every (group, i) an image, and a class."""
    with tarfile.open(path, "w") as archive:
        for group, i in samples:
            members = {"jpg": jpeg(group, i)} | ({"cls": str(i % 3).encode()} if with_labels else {})
            for kind, content in members.items():
                member = tarfile.TarInfo(f"{group}-{i:03d}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
