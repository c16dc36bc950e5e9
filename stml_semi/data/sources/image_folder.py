"""A folder of class folders, or of loose images, as a table."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stml_semi.data.image_kinds import describe_skipped
from stml_semi.data.image_table import ImageTable, paths_dataset
from stml_semi.data.labels import class_name
from stml_semi.data.sources.folders import FolderIndex
from stml_semi.data.sources.request import SourceRequest, listed
from stml_semi.data.sources.table_files import READERS

_SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


def image_folder(request: SourceRequest, folder: Path) -> ImageTable:
    """A folder of class folders, or of loose images."""
    from stml_semi.data.images import readable_extensions

    with FolderIndex(folder) as index:
        loose = list(index.files(folder, deep=request.labels == "ignored"))
        classes = [] if request.labels == "ignored" else index.folders()
        inside: dict[str, list[str]] = {}
        for sub in classes:
            inside.setdefault(class_name(sub.name) or sub.name, []).extend(index.files(sub, outside=folder))
        other_kinds = index.skipped()
    empty = [name for name, files in inside.items() if not files]
    inside = {name: files for name, files in inside.items() if files}
    skipped = _skipped(request, other_kinds, len(loose) + sum(map(len, inside.values())), empty)
    if request.labels == "ignored":
        by_class = {"": loose}
    else:
        shape = f"one sub-folder per class is needed, as in {folder}/robin/1.jpg and {folder}/wren/2.jpg"
        splits = bool(inside) and inside.keys() <= _SPLIT_FOLDERS
        if request.labels == "optional" and (loose or splits or not inside):
            by_class = {"": loose + list(itertools.chain(*inside.values()))}
        elif loose:
            where = "beside the class folders" if inside else "loose in the folder"
            raise request.error(
                f"{len(loose)} images lie {where}, such as {Path(loose[0]).name}; {shape}, or a csv file"
            )
        elif splits:
            raise request.error(
                f"holds splits, not classes; name one of {', '.join(inside)} as in {folder}:{min(inside)}"
            )
        else:
            by_class = inside
    files = list(itertools.chain(*by_class.values()))
    if not files:
        tables = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix.lower() in READERS)
        fix = f"the folder holds {tables[0]}: name that file or its folder" if tables else "check the path"
        if other_kinds:
            fix = f"{fix}; {describe_skipped(other_kinds, 0)}"
        raise request.error(f"no images at any depth; {fix} (looked for {' '.join(sorted(readable_extensions()))})")
    if "" in by_class:
        return ImageTable(request.spec, paths_dataset(files), None, (), skipped=skipped)
    classes = tuple(sorted(by_class))
    labels = np.repeat(np.arange(len(classes)), [len(by_class[name]) for name in classes])
    paths = paths_dataset(list(itertools.chain(*(by_class[name] for name in classes))))
    return ImageTable(request.spec, paths, labels, classes, skipped=skipped)


def _skipped(request: SourceRequest, kinds: Mapping[str, int], num_images: int, empty: list[str]) -> tuple[str, ...]:
    """What a folder holds that the table does not, in sentences."""
    sentences = []
    if kinds:
        sentences.append(f"{request.spec}: {describe_skipped(kinds, num_images)}")
    if empty and request.labels != "ignored":
        subject = "class folder holds" if len(empty) == 1 else "class folders hold"
        sentences.append(f"{request.spec}: {len(empty)} {subject} no readable image: {listed(empty)}")
    return tuple(sentences)
