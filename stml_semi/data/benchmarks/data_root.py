"""Where benchmarks lie on this machine: prepared tables and extracted archives under the data root.

A data root holds a folder per benchmark, called by its name. In it are either tables that `data prepare` wrote
(train.parquet, test.parquet) or the official archive as it unpacks; archives with a top folder of their own, such as
CUB_200_2011, may also lie in the data root itself.
"""

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stml_semi.data.benchmarks.archives import LAYOUTS, Row, absent, find_archive
from stml_semi.data.benchmarks.facts import BENCHMARKS, Split
from stml_semi.runtime.errors import BadInput, one_line

if TYPE_CHECKING:
    from datasets import Dataset

ROOT_VARIABLE = "STML_DATA"


class Place(NamedTuple):
    """Where a split was found: one of the two."""

    table: Path | None
    """A parquet file."""
    archive: Path | None
    """The folder of an official archive."""


def data_root(given: str | None) -> Path | None:
    """The folder of all benchmarks: what was given, else $STML_DATA, else None."""
    text = given or os.environ.get(ROOT_VARIABLE)
    return Path(text).expanduser() if text else None


def find_split(name: str, split: str, root: str | None) -> Place:
    """Where a split of a benchmark is.

    Raises:
        BadInput: nowhere; says where it was looked for, what lacks, and how to get there. Flag and name are the
            caller's to add.
    """
    known = BENCHMARKS[name].splits[split]
    if known.file:
        return Place(known.file, None)
    folder = data_root(root)
    if folder is None:
        raise BadInput(
            f"is not on this machine as far as known; set --data-root or ${ROOT_VARIABLE} to the folder that holds it "
            f"(`stml-semi data prepare {name} --source ARCHIVE --data-root FOLDER` puts it there)"
        )
    table = folder / name / f"{split}.parquet"
    if table.is_file():
        return Place(table, None)
    layout = LAYOUTS[name]
    found = find_archive(layout, folder / name, split)
    for top in layout.top if found.folder is None else ():
        if (folder / top).is_dir():
            found = find_archive(layout, folder / top, split)
    if found.folder is None:
        fix = f"run `stml-semi data prepare {name} --source ARCHIVE --data-root {folder}`"
        if any((folder / top).is_dir() for top in (name, *layout.top)):
            fix = f"extract the whole archive there, or {fix}"
        raise BadInput(f"neither {table} nor {found.missing[0]} exists; {fix}")
    return Place(None, found.folder)


def read_archive(name: str, split: str, folder: Path) -> list[Row]:
    """Rows of a split, after their number and their files have been checked.

    Raises:
        BadInput: another number of images or classes than there should be, files that are not there, or lists that
            are not what the publisher's are. Flag and name are the caller's to add.
    """
    try:
        rows = list(LAYOUTS[name].read(folder, split))
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; make the archive in {folder} readable") from None
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        problem = one_line(error)
        raise BadInput(f"the lists in {folder} are not the official ones ({problem}); extract them again") from None
    if lost := absent(folder, rows):
        raise BadInput(
            f"{len(lost):,} of the {len(rows):,} listed images are missing in {folder}, such as {lost[0]}; extract the "
            f"whole archive"
        )
    num_queries = sum(row.query for row in rows)
    if problem := wrong_counts(name, split, len(rows), num_classes(rows), num_queries):
        raise BadInput(f"{problem}; {folder} is not the whole official archive, or not this one")
    return rows


def num_classes(rows: list[Row]) -> int:
    """How many classes rows have; 0 without labels."""
    return len({row.label for row in rows} - {""})


def wrong_counts(name: str, split: str, images: int, classes: int | None, queries: int | None) -> str:
    """What differs from the published counts, as a phrase; empty if nothing does. None is not compared."""
    known = BENCHMARKS[name].splits[split]
    if not known.exact:
        return ""
    compared = (("images", images, known.images), ("classes", classes, known.classes))
    differences = []
    for what, count, expected in (*compared, ("queries", queries, known.queries)):
        if count is not None and expected is not None and count != expected:
            change = f"{expected - count:,} missing" if count < expected else f"{count - expected:,} too many"
            differences.append(f"{count:,} {what} instead of {expected:,} ({change})")
    return f"{name}:{split} has {', '.join(differences)}" if differences else ""


class Opened(NamedTuple):
    """An archive's split, not yet a table."""

    images: "Dataset"
    """One column, `image`: paths."""
    labels: NDArray[np.int64] | None
    """(N,) or None in sets without labels."""
    classes: tuple[str, ...]
    queries: NDArray[np.bool_] | None
    """(N,) or None where each image asks all others."""


def open_archive(name: str, split: str, folder: Path, *, with_labels: bool) -> Opened:
    """Images of a split where the archive lies, without a copy of them.

    Raises:
        BadInput: as `read_archive`.
    """
    from stml_semi.data.image_table import paths_dataset

    rows = read_archive(name, split, folder)
    images = paths_dataset([str(folder / row.path) for row in rows])
    if not with_labels:
        return Opened(images, None, (), None)
    classes = tuple(sorted({row.label for row in rows}))
    places = {label: i for i, label in enumerate(classes)}
    labels = np.array([places[row.label] for row in rows], dtype=np.int64)
    return Opened(images, labels, classes, queries_of(BENCHMARKS[name].splits[split], [row.query for row in rows]))


def queries_of(split: Split, asks: list[bool]) -> NDArray[np.bool_] | None:
    """Which rows ask, or None where all do."""
    return np.array(asks, dtype=bool) if split.queries is not None else None


def presence(name: str, root: str | None) -> str:
    """A few words on what is here, for a list; lists are not read."""
    if BENCHMARKS[name].embedded:
        return "embedded"
    states = Counter[str]()
    for split in BENCHMARKS[name].splits:
        try:
            place = find_split(name, split, root)
        except BadInput:
            continue
        states["prepared" if place.table else "archive"] += 1
    if not states:
        return "-"
    here = " + ".join(states)
    return here if states.total() == len(BENCHMARKS[name].splits) else f"{here} (in part)"
