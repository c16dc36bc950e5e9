"""Files with columns, and which of them hold images and labels.

Importing this module is cheap: pyarrow and datasets are imported by the functions that need them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stml_semi.data.image_table import ImageTable, paths_dataset
from stml_semi.data.labels import class_name
from stml_semi.data.sources.pairs import pair_of, table_from_pairs
from stml_semi.data.sources.request import SourceRequest, listed
from stml_semi.data.sources.table_paths import found_paths
from stml_semi.runtime.errors import BadInput

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
_NUMBER = re.compile(r"-?\d+(\.\d+)?|nan", re.IGNORECASE)


class Columns(NamedTuple):
    """A table of which nothing but the columns is known yet."""

    features: Mapping[str, Any]
    """Column -> its feature as in `datasets`; None if it can be neither image nor label."""
    read: Callable[[list[str]], "Dataset"]
    folder: Path
    """What relative paths start from."""


def check_unique(path: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    """
    Raises:
        BadInput: a column that is wanted is there more than once.
    """
    for name in wanted:
        if names.count(name) > 1:
            raise BadInput(f"{path}: has {names.count(name)} columns called '{name}'; rename all but one")


def table_from_columns(request: SourceRequest, columns: Columns) -> ImageTable:
    from datasets import Image, Value

    kinds = {name: _kind(feature) for name, feature in columns.features.items()}
    names = listed([f"{name} ({kind})" if kind else name for name, kind in kinds.items()])
    if not columns.features:
        raise request.error("is empty; give a table with a column of images")
    if pair := pair_of(request, list(columns.features)):
        return table_from_pairs(request, columns, pair)
    image = image_column_of(request, columns.features)
    if image is None:
        first = (
            " (a csv names its columns in the first line)" if request.spec.lower().endswith((".csv", ".tsv")) else ""
        )
        raise request.error(f"no image column among {names}; name it with {request.column_flag('image')}{first}")
    if not _holds_images(columns.features[image]):
        what = kinds[image] or columns.features[image].dtype
        raise request.error(f"column '{image}' holds {what}; an image is a path, or the bytes of a file")
    label = None if request.labels == "ignored" else label_column_of(request, columns.features)
    if label is None and request.labels == "required":
        what = " (a label is one text or number per image)" if any(kinds.values()) else ""
        raise request.error(f"no label column among {names}; name it with {request.column_flag('label')}{what}")
    if label and kinds[label]:
        raise request.error(f"column '{label}' holds {kinds[label]}; a label is one text or number per image")
    dataset = columns.read([image, label] if label else [image])
    texts = dataset.with_format("arrow")
    feature = dataset.features[image]
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        images = paths_dataset(found_paths(request, image, texts[:][image].to_pylist(), columns.folder))
    else:
        images = dataset.select_columns([image])
        images = images if image == "image" else images.rename_column(image, "image")
        images = images.cast_column("image", Image(decode=False))
    others = _others(columns, {image, label}) if request.others else None
    if label is None:
        return ImageTable(request.spec, images, None, (), others=others)
    encoded = texts[:][label].combine_chunks().dictionary_encode()
    numbered = number_labels(request, label, dataset.features[label], encoded)
    return ImageTable(request.spec, images, *numbered, others=others)


def _others(columns: Columns, used: set[str | None]) -> "Dataset | None":
    from datasets import ClassLabel, Value

    plain = (ClassLabel, Value)
    names = [
        name
        for name, feature in columns.features.items()
        if name not in used and isinstance(feature, plain) and "binary" not in feature.dtype
    ]
    return columns.read(names) if names else None


def image_column_of(request: SourceRequest, features: Mapping[str, Any]) -> str | None:
    from datasets import Image

    # Texts last: beside encoded images, a path says where they came from.
    encoded = [k for k, f in features.items() if _holds_images(f) and not _is_text(f)]
    tiers = [encoded, [k for k, f in features.items() if _is_text(f)]]
    return _find(request, "image", request.image_column, features, Image, tiers, IMAGE_COLUMNS)


def label_column_of(request: SourceRequest, features: Mapping[str, Any]) -> str | None:
    from datasets import ClassLabel, Value

    plain = [k for k, f in features.items() if isinstance(f, Value) and "binary" not in f.dtype]
    return _find(request, "label", request.label_column, features, ClassLabel, [plain], LABEL_COLUMNS)


def _is_text(feature: Any) -> bool:
    return "string" in str(getattr(feature, "dtype", ""))


def _holds_images(feature: Any) -> bool:
    """Whether it can: images, their bytes, or paths."""
    from datasets import Image

    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, Image) or _is_text(feature) or "binary" in str(getattr(feature, "dtype", ""))


def _kind(feature: Any) -> str:
    """What is no text or number, in words; else empty."""
    from datasets import ClassLabel, Value

    if isinstance(feature, dict):
        return f"objects of {listed(list(feature))}"
    if isinstance(feature, (Value, ClassLabel)):
        return "bytes" if "binary" in feature.dtype else ""
    return f"{type(feature).__name__.lower()}s"


def _find(
    request: SourceRequest,
    kind: str,
    chosen: str | None,
    features: Mapping[str, Any],
    best: type,
    others: list[list[str]],
    usual: tuple[str, ...],
) -> str | None:
    """The chosen column; else one of the best type, usual names first; else one with a usual name of the first of the
    others that has one."""
    if chosen:
        if chosen not in features:
            flag = request.column_flag(kind)
            raise request.error(f"no column '{chosen}'; set {flag} to one of {listed(list(features))}")
        return chosen
    typed = [name for name, feature in features.items() if isinstance(feature, best)]
    for names in (typed, *others):
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
    values = encoded.dictionary.to_pylist()
    if class_names := getattr(feature, "names", None):  # -1 is how a ClassLabel says that there is none.
        values = [class_names[value] if 0 <= value < len(class_names) else None for value in values]
    names = [class_name(value) for value in values]
    if all(name is None or _NUMBER.fullmatch(name) for name in names):  # Texts: scripts write a missing number so.
        names = [None if name is None or name.lower() == "nan" else name for name in names]
    codes = encoded.indices.fill_null(len(names)).to_numpy()
    missing = int(np.array([*(name is None for name in names), True])[codes].sum())
    if missing:
        raise request.error(
            f"{missing} of {len(codes)} rows have no label in column '{column}'; fill them in or drop them"
        )
    classes = sorted({name for name in names if name is not None})
    places = {name: i for i, name in enumerate(classes)}
    numbers = [-1 if name is None else places[name] for name in names]
    return Labeling(np.array(numbers, dtype=np.int64)[codes], tuple(classes))
