"""Tables of pairs: two images in each row, most often of the same thing. What these connect is a class.

Importing this module is cheap: datasets and scipy are imported by the functions that need them.
"""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stml_semi.data.image_table import ImageTable, paths_dataset
from stml_semi.data.labels import class_name
from stml_semi.data.sources.request import SourceRequest, listed
from stml_semi.data.sources.table_paths import found_paths

if TYPE_CHECKING:
    from stml_semi.data.sources.columns import Columns

SAME_COLUMNS = ("label", "same", "match", "is_match", "is_same", "is_duplicate", "similar", "target", "y")
_SAME, _DIFFERENT = ("1", "true", "yes", "same", "match"), ("0", "-1", "false", "no", "different")


def pair_of(request: SourceRequest, names: list[str]) -> tuple[str, str] | None:
    """The two image columns that a user named; None: it is one.

    Raises:
        BadInput: more than two, or columns that are not there.
    """
    chosen = request.image_column
    if not chosen or chosen in names or "," not in chosen:
        return None
    flag, pair = request.column_flag("image"), tuple(name.strip() for name in chosen.split(","))
    if len(pair) != 2 or pair[0] == pair[1]:
        raise request.error(f"{flag} {chosen}: a pair is two columns, such as left,right")
    if missing := [name for name in pair if name not in names]:
        raise request.error(f"no column '{missing[0]}'; set {flag} to one of {listed(names)}, or to two of them")
    return pair


def table_from_pairs(request: SourceRequest, columns: "Columns", pair: tuple[str, str]) -> ImageTable:
    """Every image once, by path. A class is what pairs of the same thing connect, called after its first image.

    Where a column says that some pairs are different things, these connect nothing. Images that are in no other pair
    are left out, for nothing says what they are.

    Raises:
        BadInput: columns that hold no paths, or answers that contradict each other.
    """
    for name in pair:
        if "string" not in str(getattr(columns.features[name], "dtype", "")):
            raise request.error(f"column '{name}' holds no paths; images of pairs are known by their paths")
    answer = None if request.labels == "ignored" else _answer_column(request, columns)
    rows = columns.read([*pair, answer] if answer else list(pair)).with_format("arrow")[:]
    left, right = (rows[name].to_pylist() for name in pair)
    if missing := sum(not path for path in (*left, *right)):
        raise request.error(f"{missing} paths in columns '{pair[0]}' and '{pair[1]}' are missing; drop their rows")
    written = [*left, *right]
    found = found_paths(request, pair[0], written, columns.folder)
    keys = np.array([os.path.normpath(path) for path in found if path], dtype=np.object_)
    _, first, places = np.unique(keys, return_index=True, return_inverse=True)
    paths, names = ([texts[i] for i in first] for texts in (found, written))
    if request.labels == "ignored":
        return ImageTable(request.spec, paths_dataset(paths), None, ())
    ends = places.reshape(2, -1)
    same = _answers(request, answer, rows[answer].to_pylist()) if answer else np.ones(len(left), bool)
    groups = _connected(ends[:, same], len(paths))
    wrong = np.flatnonzero(~same & (groups[ends[0]] == groups[ends[1]]))
    if len(wrong):
        raise request.error(
            f"row {wrong[0] + 1} says that {left[wrong[0]]} and {right[wrong[0]]} are different things, and other rows "
            f"connect them ({len(wrong)} such rows); correct the pairs"
        )
    kept = np.unique(ends[:, same])
    _, heads, labels = np.unique(groups[kept], return_index=True, return_inverse=True)
    order = sorted(range(len(heads)), key=lambda one: names[kept[heads[one]]])
    left_out = "{} image is" if len(paths) - len(kept) == 1 else "{} images are"
    skipped = f"{request.spec}: {left_out.format(len(paths) - len(kept))} in no pair of the same thing and left out"
    return ImageTable(
        request.spec,
        paths_dataset([paths[i] for i in kept]),
        np.argsort(order)[labels.reshape(-1)],
        tuple(names[kept[heads[one]]] for one in order),
        skipped=(skipped,) if len(kept) < len(paths) else (),
    )


def _answer_column(request: SourceRequest, columns: "Columns") -> str | None:
    """The column that says whether a pair is of the same thing: the one that a user named, or one of a usual name."""
    names = {name.lower(): name for name in columns.features}
    if chosen := request.label_column:
        if chosen not in columns.features:
            flag = request.column_flag("label")
            raise request.error(f"no column '{chosen}'; set {flag} to one of {listed(list(columns.features))}")
        return chosen
    return next((names[name] for name in SAME_COLUMNS if name in names), None)


def _answers(request: SourceRequest, column: str, values: list[Any]) -> NDArray[np.bool_]:
    """(N,) whether a pair is of the same thing."""
    texts = [(class_name(value) or "").lower() for value in values]
    odd = next((row for row, text in enumerate(texts) if text not in (*_SAME, *_DIFFERENT)), None)
    if odd is not None:
        raise request.error(
            f"row {odd + 1} has {values[odd]!r:.40} in column '{column}', which says whether a pair is of the same "
            f"thing: give 1 or 0, or name another column with {request.column_flag('label')}"
        )
    return np.array([text in _SAME for text in texts], dtype=bool)


def _connected(ends: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(count,) number of the group that an image is in, given pairs (2, P) of places."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(ends.shape[1], np.int8), (ends[0], ends[1])), shape=(count, count))
    return connected_components(links, directed=False)[1]
