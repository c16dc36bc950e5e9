"""What the user names (a benchmark, a folder, a file, a hub id) -> a table of images, and labels if they are wanted.

Importing this module is cheap: pyarrow, datasets and Pillow are imported by the functions that need them.
"""

import contextlib
import difflib
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stml_semi.data.benchmarks.data_root import find_split, open_archive, queries_of, wrong_counts
from stml_semi.data.benchmarks.facts import BENCHMARKS
from stml_semi.data.image_kinds import describe_skipped
from stml_semi.data.image_table import ImageTable, paths_dataset
from stml_semi.data.sources.columns import READERS, Columns, label_column_of, read_parquet, table_from_columns
from stml_semi.data.sources.folders import FolderIndex
from stml_semi.data.sources.named_files import is_pattern, matching
from stml_semi.data.sources.request import Labels, SourceRequest, checked_parts, listed, shares_of, split_spec
from stml_semi.data.sources.shards import read_shards, shards_of
from stml_semi.runtime.errors import BadInput, one_line

_SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


def open_source(
    spec: str,
    *,
    flag: str,
    labels: Labels,
    image_column: str | None = None,
    label_column: str | None = None,
    data_root: str | None = None,
) -> ImageTable:
    """The images that a user named.

    A spec is, in this order: a benchmark, webdataset shards (a tar file, a folder of them, or `train-*.tar`), a file or
    folder, a hub id; each may end in `:split` (for a folder, a sub-folder). A folder called like a benchmark is
    `./name`. A comma joins several specs; with weights, as in `a=0.7,b=0.3`, each gives that share of the pool.

    Labels of joined specs: splits of one source (`a:train,a:test`) share their classes by name. Classes of different
    sources are different, whatever they are called, and get the source's name in front (`birds/robin`): only the user
    knows whether two lists mean the same thing by "3", and one merged list says so.

    Args:
        spec: what the user typed.
        flag: the flag it was typed after, for error messages.
        labels: "required" raises without them, "optional" takes them where they are, "ignored" never looks for them.
        image_column: column of the images or their paths. Default: found by type, then by name.
        label_column: column of the classes. Default: found by type, then by name.
        data_root: folder of the benchmarks that do not ship with the package. Default: $STML_DATA.

    Raises:
        BadInput: one line with the flag and the fix.
    """
    whole = SourceRequest(spec, flag, labels, image_column, label_column, data_root)
    parts = checked_parts(whole)
    tables = [open_part(replace(whole, spec=part.spec)) for part in parts]
    if len({table.name for table in tables}) < len(tables):
        raise whole.error("names the same source twice; name each once")
    table = tables[0] if len(tables) == 1 else _join(spec, tables, [split_spec(part.spec)[0] for part in parts])
    table = replace(table, weights=shares_of(parts))
    if labels == "required" and len(table.classes) < 2:
        raise whole.error(f"only one class, '{''.join(table.classes)}'; a metric compares classes: give at least two")
    return table


def open_part(request: SourceRequest) -> ImageTable:
    """One source, without commas and weights.

    Raises:
        BadInput: as `open_source`.
    """
    with request.reading():
        return _open_part(request)


def _open_part(request: SourceRequest) -> ImageTable:
    source, split = split_spec(request.spec)
    if source in BENCHMARKS:
        return _open_benchmark(request, source, split or BENCHMARKS[source].default_split)
    path = Path(source).expanduser()
    if not split and (shards := shards_of(source)):
        columns = read_shards(shards)
        return table_from_columns(request, columns)
    if path.is_dir():
        return _open_folder(request, path, split)
    if path.exists():
        if split:
            raise request.error(f"a file has no splits; leave ':{split}' out")
        if path.suffix.lower() not in READERS:
            raise request.error(f"'{path.suffix}' is no known table; give a folder or a {', '.join(READERS)} file")
        columns = READERS[path.suffix.lower()](path)
        return table_from_columns(request, columns)
    if is_pattern(source):
        found = "only what is no shard" if next(matching(source), None) else "nothing"
        raise request.error(f"the pattern matches {found}; check it, or name a folder or file")
    dataset = load_hub(request, source, split or "train")
    return table_from_columns(request, Columns(dataset.features, dataset.select_columns, Path()))


def _open_benchmark(request: SourceRequest, name: str, split: str) -> ImageTable:
    known = BENCHMARKS[name]
    if split not in known.splits:
        raise request.error(f"no split '{split}'; {name} has {', '.join(known.splits)}")
    if not known.labeled:
        if request.labels == "required":
            raise request.error("has no labels; it is meant for --unlabeled")
        request = replace(request, labels="ignored")
    try:
        place = find_split(name, split, request.data_root)
        if place.archive:
            opened = open_archive(name, split, place.archive, with_labels=request.labels != "ignored")
            table = ImageTable(request.spec, opened.images, opened.labels, opened.classes, queries=opened.queries)
        else:
            assert place.table is not None
            table = _open_prepared(request, place.table, name, split)
    except BadInput as error:
        text = str(error)
        raise (error if text.startswith(f"{request.flag} ") else request.error(text)) from None
    return replace(table, name=f"{name}:{split}", recall_at=known.recall_at)


def _open_prepared(request: SourceRequest, path: Path, name: str, split: str) -> ImageTable:
    own = replace(request, image_column=None, label_column=None)  # These name columns of the user's own tables.
    columns = read_parquet(path)
    table = table_from_columns(own, columns)
    known = BENCHMARKS[name].splits[split]
    if table.labels is not None and known.queries is not None:
        table = replace(table, queries=queries_of(known, columns.read(["query"])["query"]))
    classes = None if table.labels is None else len(table.classes)
    queries = None if table.queries is None else int(table.queries.sum())
    if problem := wrong_counts(name, split, len(table), classes, queries):
        raise request.error(f"{problem}; delete {path} and run `cli.py data prepare {name}` again")
    return table


def load_hub(request: SourceRequest, source: str, split: str, *, streaming: bool = False) -> Any:
    """A data set of the hub, `user/name` or `user/name@revision`: a `Dataset`, or an `IterableDataset`.

    Raises:
        BadInput: it is not there, or cannot be opened; says why and what to do.
    """
    hint = _closest(source)
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(@[\w./-]+)?", source) or Path(source).suffix.lower() in READERS:
        raise request.error(f"no such file or folder; {hint}")
    name, _, revision = source.partition("@")
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(name, split=split, revision=revision or None, streaming=streaming)
    except DatasetNotFoundError:
        raise request.error(
            f"no benchmark, no file or folder here, and no data set on the Hugging Face hub; {hint} "
            f"(private and gated ones need `hf auth login`)"
        ) from None
    except ConnectionError:
        raise request.error(
            f"no benchmark, no file or folder here, and the Hugging Face hub cannot be asked: go online and unset "
            f"HF_HUB_OFFLINE, or give a local path; {hint}"
        ) from None
    except Exception as error:
        fix = "if it opens elsewhere, save it with save_to_disk and give that folder"
        if "split" in str(error).lower():
            fix = f"name a split as in {source}:test"
        raise request.error(f"{one_line(error).rstrip('.')}; {fix}") from None


def _closest(source: str) -> str:
    """The fix for a name that is nowhere."""
    path = Path(source).expanduser()
    candidates = {name: name for name in BENCHMARKS}
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        names = sorted(entry.name for entry in itertools.islice(entries, 10_000))
        candidates |= {name: str(path.parent / name) for name in names}
    close = difflib.get_close_matches(path.name, candidates, n=1)
    return f"did you mean {candidates[close[0]]}?" if close else f"benchmarks are {', '.join(BENCHMARKS)}"


def _open_folder(request: SourceRequest, folder: Path, split: str | None) -> ImageTable:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _open_saved(request, folder, split)
    if split and not (folder / split).is_dir():
        with FolderIndex(folder) as index:
            raise request.error(f"no sub-folder '{split}'; there are {listed([p.name for p in index.folders()])}")
    folder = folder / split if split else folder
    if request.labels != "ignored":
        for path in (folder / "metadata.csv", folder / "metadata.jsonl", folder / "metadata.parquet"):
            if path.is_file():
                columns = READERS[path.suffix](path)
                if label_column_of(request, columns.features):
                    return table_from_columns(request, columns)
    try:
        return _from_files(request, folder)
    except OSError as error:
        raise request.error(f"{error.filename}: {error.strerror}; make the folder readable") from None


def _open_saved(request: SourceRequest, folder: Path, split: str | None) -> ImageTable:
    from datasets import DatasetDict, load_from_disk

    saved = load_from_disk(folder)
    splits = {str(name): part for name, part in saved.items()} if isinstance(saved, DatasetDict) else {"": saved}
    if split and "" in splits:
        raise request.error(f"the saved data set has no splits; leave ':{split}' out")
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "train"
    if split not in splits:
        raise request.error(f"no split '{split}'; name one of {', '.join(splits)} as in {folder}:{next(iter(splits))}")
    return table_from_columns(request, Columns(splits[split].features, splits[split].select_columns, Path()))


def _from_files(request: SourceRequest, folder: Path) -> ImageTable:
    """A folder of class folders, or of loose images."""
    from stml_semi.data.images import readable_extensions

    with FolderIndex(folder) as index:
        loose = list(index.files(folder, deep=request.labels == "ignored"))
        classes = [] if request.labels == "ignored" else index.folders()
        inside = {sub.name: list(index.files(sub, outside=folder)) for sub in classes}
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
        tables = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in READERS)
        fix = f"the folder holds {tables[0]}: name that file" if tables else "check the path"
        if other_kinds:
            fix = f"{fix}; {describe_skipped(other_kinds, 0)}"
        raise request.error(f"no images at any depth; {fix} (looked for {' '.join(sorted(readable_extensions()))})")
    if "" in by_class:
        return ImageTable(request.spec, paths_dataset(files), None, (), skipped=skipped)
    classes = tuple(sorted(by_class))
    labels = np.repeat(np.arange(len(classes)), [len(by_class[name]) for name in classes])
    files = list(itertools.chain(*(by_class[name] for name in classes)))
    return ImageTable(request.spec, paths_dataset(files), labels, classes, skipped=skipped)


def _skipped(request: SourceRequest, kinds: Mapping[str, int], num_images: int, empty: list[str]) -> tuple[str, ...]:
    """What a folder holds that the table does not, in sentences."""
    sentences = []
    if kinds:
        sentences.append(f"{request.spec}: {describe_skipped(kinds, num_images)}")
    if empty and request.labels != "ignored":
        subject = "class folder holds" if len(empty) == 1 else "class folders hold"
        sentences.append(f"{request.spec}: {len(empty)} {subject} no readable image: {listed(empty)}")
    return tuple(sentences)


def _join(spec: str, tables: list[ImageTable], sources: list[str]) -> ImageTable:
    from datasets import concatenate_datasets

    images = concatenate_datasets([table.images for table in tables])
    starts = np.cumsum([0, *map(len, tables)]).tolist()
    parts = tuple((table.name, start) for table, start in zip(tables, starts, strict=False))
    skipped = tuple(itertools.chain(*(table.skipped for table in tables)))
    joined = ImageTable(spec, images, None, (), tables[0].recall_at, parts, skipped=skipped)
    known = [table.labels for table in tables if table.labels is not None]
    if len(known) < len(tables):
        return joined
    one = len(set(sources)) == 1
    names = [
        [name if one else f"{source}/{name}" for name in t.classes] for t, source in zip(tables, sources, strict=True)
    ]
    classes = tuple(sorted(set(itertools.chain(*names))))
    places = {name: i for i, name in enumerate(classes)}
    labels = [np.array([places[name] for name in own])[rows] for own, rows in zip(names, known, strict=True)]
    return replace(joined, labels=np.concatenate(labels), classes=classes)
