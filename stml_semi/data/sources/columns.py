"""Files with columns, and which of them hold images and labels.

Importing this module is cheap: pyarrow and datasets are imported by the functions that need them.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stml_semi.data.image_table import ImageTable, image_dataset, paths_dataset
from stml_semi.data.sources.named_files import data_files
from stml_semi.data.sources.request import SourceRequest, listed

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_COLUMNS = (
    *("image", "img", "picture", "photo", "path", "file", "file_name", "filename", "filepath", "file_path"),
    *("image_path", "img_path", "image_file", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_id", "class_name", "category", "category_id", "target", "fine_label"),
    *("item_id", "product_id", "label_name", "species", "species_id", "identity", "y", "cls"),
)
# Parquet files up to this size are read into memory; larger ones become a memory-mapped copy in the cache of datasets.
_IN_MEMORY_BYTES = 2**30


class Columns(NamedTuple):
    """A table of which nothing but the columns is known yet."""

    features: Mapping[str, Any]
    """Column -> its feature as in `datasets`; None if it can be neither image nor label."""
    read: Callable[[list[str]], "Dataset"]
    folder: Path
    """What relative paths start from."""


def read_csv(path: Path) -> Columns:
    from datasets import Value
    from pyarrow import csv as arrow_csv

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=delimiter), [])

    def read(columns: list[str]) -> "Dataset":
        import pyarrow

        # Everything is text: a class may be called 007 or NA.
        convert = arrow_csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pyarrow.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        parse = arrow_csv.ParseOptions(delimiter=delimiter)
        return image_dataset(arrow_csv.read_csv(path, parse_options=parse, convert_options=convert))

    return Columns({name: Value("string") for name in names}, read, path.parent)


def read_json(path: Path) -> Columns:
    """One object per line, or one list of objects."""
    from datasets import Value

    first = next(_records(path), {})
    features = {k: None if isinstance(v, (list, dict)) else Value("string") for k, v in first.items()}

    def read(columns: list[str]) -> "Dataset":
        import pyarrow

        values: dict[str, list[str | None]] = {name: [] for name in columns}
        for record in _records(path):
            for name, column in values.items():
                value = record.get(name)
                column.append(None if value is None else str(value))
        return image_dataset(pyarrow.table({k: pyarrow.array(v, pyarrow.string()) for k, v in values.items()}))

    return Columns(features, read, path.parent)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        records = json.load(file) if start == "[" else (json.loads(line) for line in file if not line.isspace())
        for number, record in enumerate(records):
            if not isinstance(record, dict):
                raise json.JSONDecodeError(f"record {number} is no object of named values", str(record), 0)
            yield record


def read_parquet(path: Path) -> Columns:
    from datasets import Dataset, Features, NamedSplit
    from pyarrow import parquet

    def read(columns: list[str]) -> Dataset:
        if path.stat().st_size > _IN_MEMORY_BYTES:
            files, split = data_files([path]), NamedSplit("train")
            dataset = Dataset.from_parquet(files, split=split, columns=columns)  # pyright: ignore[reportArgumentType]
            assert isinstance(dataset, Dataset)
            return dataset
        return image_dataset(parquet.ParquetFile(path).read(columns))

    return Columns(Features.from_arrow_schema(parquet.read_schema(path)), read, path.parent)


READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
}


def table_from_columns(request: SourceRequest, columns: Columns) -> ImageTable:
    from datasets import Image, Value

    names = listed(list(columns.features))
    if not columns.features:
        raise request.error("is empty; give a table with a column of images")
    image = image_column_of(request, columns.features)
    if image is None:
        first = (
            " (a csv names its columns in the first line)" if request.spec.lower().endswith((".csv", ".tsv")) else ""
        )
        raise request.error(f"no image column among {names}; name it with {request.flag}-image-column{first}")
    label = None if request.labels == "ignored" else label_column_of(request, columns.features)
    if label is None and request.labels == "required":
        raise request.error(f"no label column among {names}; name it with {request.flag}-label-column")
    dataset = columns.read([image, label] if label else [image])
    texts = dataset.with_format("arrow")
    if len(dataset) == 0:
        raise request.error("holds no rows; give a table with a row per image")
    feature = dataset.features[image]
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        paths = texts[:][image].to_pylist()
        images = paths_dataset([p and os.path.join(columns.folder, p) for p in paths])
        few = [path for path in images[:5]["image"] if path["path"]]
        if few and not any(os.path.exists(path["path"]) for path in few):
            raise request.error(
                f"none of the first {len(few)} files in column '{image}' exists, such as {few[0]['path']}; "
                f"paths must be absolute or start from {columns.folder.absolute()}"
            )
    else:
        images = dataset.select_columns([image])
        images = images if image == "image" else images.rename_column(image, "image")
        images = images.cast_column("image", Image(decode=False))
    if label is None:
        return ImageTable(request.spec, images, None, ())
    encoded = texts[:][label].combine_chunks().dictionary_encode()
    return ImageTable(request.spec, images, *number_labels(request, label, dataset.features[label], encoded))


def image_column_of(request: SourceRequest, features: Mapping[str, Any]) -> str | None:
    from datasets import Image, Value

    texts = [k for k, f in features.items() if isinstance(f, Value) and ("string" in f.dtype or "binary" in f.dtype)]
    pairs = [k for k, f in features.items() if isinstance(f, dict) and "bytes" in f]
    return _find(request, "image", request.image_column, features, Image, pairs + texts, IMAGE_COLUMNS)


def label_column_of(request: SourceRequest, features: Mapping[str, Any]) -> str | None:
    from datasets import ClassLabel, Value

    plain = [k for k, f in features.items() if isinstance(f, Value) and "binary" not in f.dtype]
    return _find(request, "label", request.label_column, features, ClassLabel, plain, LABEL_COLUMNS)


def _find(
    request: SourceRequest,
    kind: str,
    chosen: str | None,
    features: Mapping[str, Any],
    best: type,
    others: list[str],
    usual: tuple[str, ...],
) -> str | None:
    """The chosen column; else one of the best type, usual names first; else one of the others with a usual name."""
    if chosen:
        if chosen not in features:
            flag = f"{request.flag}-{kind}-column"
            raise request.error(f"no column '{chosen}'; set {flag} to one of {listed(list(features))}")
        return chosen
    typed = [name for name, feature in features.items() if isinstance(feature, best)]
    for names in (typed, others):
        by_name = {name.lower(): name for name in names}
        if found := next((by_name[name] for name in usual if name in by_name), None):
            return found
        if typed:
            return typed[0]
    return None


class Labeling(NamedTuple):
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def number_labels(request: SourceRequest, column: str, feature: Any, encoded: Any) -> Labeling:
    """Contiguous labels in the order of the class names, from a dictionary-encoded column."""
    names = encoded.dictionary.to_pylist()
    if class_names := getattr(feature, "names", None):  # -1 is how a ClassLabel says that there is none.
        names = [class_names[value] if 0 <= value < len(class_names) else None for value in names]
    known = [name is not None and name == name and name != "" for name in names]  # NaN differs from itself.
    codes = encoded.indices.fill_null(len(names)).to_numpy()
    missing = int((~np.array([*known, False])[codes]).sum())
    if missing:
        raise request.error(
            f"{missing} of {len(codes)} rows have no label in column '{column}'; fill them in or drop them"
        )
    texts = [str(name) for name in names]
    classes = sorted(set(texts))
    places = {name: i for i, name in enumerate(classes)}
    return Labeling(np.array([places[text] for text in texts], dtype=np.int64)[codes], tuple(classes))
