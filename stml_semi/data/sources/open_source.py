"""What the user names (a benchmark, a folder, a file, a hub id) -> a table of images, and labels if they are wanted.

Importing this module is cheap: pyarrow, datasets and Pillow are imported by the functions that need them.
"""

import contextlib
import difflib
import functools
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stml_semi.data.benchmarks.data_root import find_split, open_archive, queries_of, wrong_counts
from stml_semi.data.benchmarks.facts import BENCHMARKS
from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.columns import Columns, label_column_of, table_from_columns
from stml_semi.data.sources.folders import FolderIndex
from stml_semi.data.sources.image_folder import image_folder
from stml_semi.data.sources.request import Labels, SourceRequest, checked_parts, listed, shares_of, split_spec
from stml_semi.data.sources.shards import read_shards, shards_of
from stml_semi.data.sources.table_files import READERS, read_parquet
from stml_semi.data.sources.table_shards import first_shards, table_shards_of
from stml_semi.runtime.errors import BadInput, one_line
from stml_semi.runtime.hub import reach_hub

_NEAR = 0.75
"""Likeness of two names, 0..1: kanij and kanji have 0.8."""


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

    Files that make up one table are one source: a folder of `train-0.parquet`, `train-1.parquet`, a pattern, or such
    names joined by commas; see `table_shards`.

    Labels of joined specs: splits and shards of one source (`a:train,a:test`) share their classes by name. Classes of
    different sources are different, whatever they are called, and get the source's name in front (`birds/robin`): only
    the user knows whether two lists mean the same thing by "3", and one merged list says so.

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
    return _open(SourceRequest(spec, flag, labels, image_column, label_column, data_root))


def open_with_others(spec: str, *, flag: str, image_column: str | None) -> ImageTable:
    """The same with all that the source says: labels, if it has any, and the further columns of a single table.

    Raises:
        BadInput: as `open_source`.
    """
    return _open(SourceRequest(spec, flag, "optional", image_column, None, others=True))


def _open(whole: SourceRequest) -> ImageTable:
    parts = checked_parts(whole)
    tables = [open_part(replace(whole, spec=part.spec)) for part in parts]
    if len({table.name for table in tables}) < len(tables):
        raise whole.error("names the same source twice; name each once")
    sources = first_shards([split_spec(part.spec)[0] for part in parts])
    table = tables[0] if len(tables) == 1 else _join(whole.spec, tables, sources)
    table = replace(table, weights=shares_of(parts))
    if whole.labels == "required" and len(table.classes) < 2:
        raise whole.error(f"only one class, '{''.join(table.classes)}'; a metric compares classes: give at least two")
    return table


def open_part(request: SourceRequest) -> ImageTable:
    """One source, without commas and weights.

    Raises:
        BadInput: as `open_source`.
    """
    with request.reading():
        table = _open_part(request)
    if not len(table):
        raise request.error("holds no rows; give a table with a row per image")
    return table


def _open_part(request: SourceRequest) -> ImageTable:
    source, split = split_spec(request.spec)
    if source in BENCHMARKS:
        return _open_benchmark(request, source, split or BENCHMARKS[source].default_split)
    path = Path(source).expanduser()
    if not split and (shards := shards_of(source)):
        return table_from_columns(request, read_shards(shards))
    if path.is_dir():
        return _open_folder(request, path, split)
    if path.exists():
        if split:
            raise request.error(f"a file has no splits; leave ':{split}' out")
        if path.suffix.lower() not in READERS:
            raise request.error(f"'{path.suffix}' is no known table; give a folder or a {', '.join(READERS)} file")
        return table_from_columns(request, READERS[path.suffix.lower()](path))
    if tables := table_shards_of(request, source):
        return _open_table_shards(request, tables)
    dataset = load_hub(request, source, split or "train")
    return table_from_columns(request, Columns(dataset.features, dataset.select_columns, Path()))


def _open_table_shards(request: SourceRequest, files: list[Path]) -> ImageTable:
    """One table in several files; empty ones, as Spark writes them, may be among them."""
    parquet = functools.partial(read_parquet, table_bytes=sum(file.stat().st_size for file in files))
    readers = READERS | {".parquet": parquet}
    tables = [table_from_columns(replace(request, spec=str(f)), readers[f.suffix.lower()](f)) for f in files]
    labeled = [table.labels is not None for table in tables]
    if any(labeled) and not all(labeled):
        raise request.error(
            f"{tables[labeled.index(False)].name} has no label column, {tables[labeled.index(True)].name} has one; "
            f"give all files of a table the same columns"
        )
    return replace(_join(request.spec, tables, [request.spec] * len(tables)), parts=())


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
        raise request.error(f"{problem}; delete {path} and run `stml-semi data prepare {name}` again")
    return table


def load_hub(request: SourceRequest, source: str, split: str, *, streaming: bool = False) -> Any:
    """A data set of the hub, `user/name` or `user/name@revision`: a `Dataset`, or an `IterableDataset`.

    Raises:
        BadInput: it is not there, or cannot be opened; says why and what to do.
    """
    hint, near = _closest(source)
    if near and "/" not in source:  # A slip of the hand, not an id of the hub: those have a user.
        raise request.error(f"no such file or folder; {hint}")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(@[\w./-]+)?", source) or Path(source).suffix.lower() in READERS:
        raise request.error(f"no such file or folder; {hint}")
    name, _, revision = source.partition("@")
    reach_hub()
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
            f"no benchmark, no file or folder here, and the Hugging Face hub cannot be reached: go online and unset "
            f"HF_HUB_OFFLINE, or give a local path; {hint}"
        ) from None
    except Exception as error:
        fix = "if it opens elsewhere, save it with save_to_disk and give that folder"
        if "split" in str(error).lower():
            fix = f"name a split as in {source}:test"
        raise request.error(f"{one_line(error).rstrip('.')}; {fix}") from None


def _closest(source: str) -> tuple[str, bool]:
    """The fix for a name that is nowhere, and whether one is so near that nothing else can be meant."""
    path = Path(source).expanduser()
    candidates = {name: name for name in BENCHMARKS}
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        names = sorted(entry.name for entry in itertools.islice(entries, 10_000))
        candidates |= {name: str(path.parent / name) for name in names}
    close = difflib.get_close_matches(path.name, candidates, n=1)
    if not close:
        return f"benchmarks are {', '.join(BENCHMARKS)}", False
    near = difflib.SequenceMatcher(None, path.name, close[0]).ratio() >= _NEAR
    return f"did you mean {candidates[close[0]]}?", near


def _open_folder(request: SourceRequest, folder: Path, split: str | None) -> ImageTable:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _open_saved(request, folder, split)
    if not split and (tables := table_shards_of(request, str(folder))):
        return _open_table_shards(request, tables)
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
        return image_folder(request, folder)
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


def _join(spec: str, tables: list[ImageTable], sources: list[str]) -> ImageTable:
    from datasets import concatenate_datasets

    images = concatenate_datasets([table.images for table in tables])
    starts = np.cumsum([0, *map(len, tables)]).tolist()
    parts = tuple((table.name, start) for table, start in zip(tables, starts, strict=False))
    skipped = tuple(itertools.chain(*(table.skipped for table in tables)))
    joined = ImageTable(spec, images, None, (), tables[0].recall_at, parts, skipped=skipped)
    if len(known := [table.labels for table in tables if table.labels is not None]) < len(tables):
        return joined
    one = len(set(sources)) == 1
    names = [
        [name if one else f"{source}/{name}" for name in t.classes] for t, source in zip(tables, sources, strict=True)
    ]
    classes = tuple(sorted(set(itertools.chain(*names))))
    places = {name: i for i, name in enumerate(classes)}
    labels = [np.array([places[name] for name in own])[rows] for own, rows in zip(names, known, strict=True)]
    return replace(joined, labels=np.concatenate(labels), classes=classes)
