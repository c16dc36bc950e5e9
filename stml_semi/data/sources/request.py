"""What a user types after --labeled and the like: sources joined by commas, each perhaps with a weight, and how they
are to be read."""

import contextlib
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from stml_semi.data.sources.named_files import exists, matching
from stml_semi.runtime.errors import BadInput, one_line

Labels = Literal["required", "ignored", "optional"]
_OF_TRAINING = ("--labeled", "--unlabeled", "--eval")
_WEIGHT = re.compile(r"(.+)=(\d+(?:\.\d*)?|\.\d+)")


class Damaged(Exception):
    """What is wrong with a file, and where, in words for the user."""


class Part(NamedTuple):
    """One of the joined sources."""

    spec: str
    """A benchmark, path, pattern or hub id, perhaps with `:split`."""
    weight: float | None = None
    """The number after `=`; None without one."""


@dataclass(frozen=True)
class SourceRequest:
    """A source that the user named; knows what to say if it cannot be used."""

    spec: str
    flag: str
    labels: Labels
    image_column: str | None
    label_column: str | None
    data_root: str | None = None
    others: bool = False
    """Whether further columns are kept."""

    def error(self, problem: str) -> BadInput:
        return BadInput(f"{self.flag} {self.spec}: {problem}")

    def column_flag(self, kind: str) -> str:
        """What names a column of the source: a training has several sources, other commands one kind of them."""
        return f"{self.flag if self.flag in _OF_TRAINING else '-'}-{kind}-column"

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turns what libraries raise of damaged files into one line, and keeps their progress bars away.

        Raises:
            BadInput: the source cannot be read.
        """
        import datasets
        from datasets.exceptions import DatasetsError
        from pyarrow import ArrowException

        damaged = (OSError, EOFError, UnicodeError, Damaged, tarfile.TarError)
        shown = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            yield
        except (*damaged, ArrowException, DatasetsError) as error:
            raise self.error(f"cannot be read, check the file: {one_line(error)}") from None
        finally:
            if shown:
                datasets.enable_progress_bars()


def split_parts(text: str | None) -> list[Part]:
    """`inat=0.7,photos/=0.3` -> its parts. What exists under the very name that was typed is one path: commas, and an
    equals sign as in `year=2021`, are part of it. Hub ids, splits and revisions have no equals sign."""
    if not text:
        return []
    if exists(text):
        return [Part(text)]
    parts, pieces = [], text.split(",")
    while pieces:
        count = _num_joined(pieces)
        parts.append(_part(",".join(pieces[:count]).strip()))
        del pieces[:count]
    return parts


def _num_joined(pieces: list[str]) -> int:
    """How many of the pieces between commas make up the first path; 1 if they are no path."""
    names = (_path_in(",".join(pieces[:count])) for count in range(1, len(pieces) + 1))
    return next((count for count, name in enumerate(names, 1) if next(matching(name), None)), 1)


def _path_in(text: str) -> str:
    """A source without its weight and split."""
    return split_spec(_part(text.strip()).spec)[0]


def split_spec(spec: str) -> tuple[str, str | None]:
    """Source and split; the colon of an existing path, or of a drive as in C:\\images, separates nothing."""
    parts = re.fullmatch(r"(.+?):([\w.-]+(?:\[[^\]]*\])?)", spec)
    if not parts or exists(spec):
        return spec, None
    return parts[1], parts[2]


def specs_of(text: str | None) -> list[str]:
    """The parts without their weights."""
    return [part.spec for part in split_parts(text)]


def checked_parts(whole: "SourceRequest") -> list[Part]:
    """The sources that a user joined.

    Raises:
        BadInput: one of them is empty, or their weights make no mixture.
    """
    parts = split_parts(whole.spec)
    if not parts or not all(part.spec for part in parts):
        raise whole.error("names nothing; give a folder, a file, a benchmark or a hub id, joined by single commas")
    weighted = [part for part in parts if part.weight is not None]
    if not weighted:
        return parts
    first = weighted[0]
    if whole.flag != "--unlabeled":
        raise whole.error(
            f"weights are for --unlabeled; leave '={first.weight:g}' out of {first.spec}={first.weight:g}"
        )
    if len(parts) == 1:
        raise whole.error(f"a weight says how much of a mixture is one source, and this is all of it: {first.spec}")
    if len(weighted) < len(parts) or not all(part.weight for part in parts):
        raise whole.error(
            "give every source a weight above 0, or none: each is its share of the pool, as in a=0.7,b=0.3"
        )
    return parts


def shares_of(parts: list[Part]) -> tuple[float, ...]:
    """Weights as shares of 1; () where there are none."""
    weights = [part.weight for part in parts if part.weight is not None]
    return tuple(weight / sum(weights) for weight in weights)


def _part(text: str) -> Part:
    match = None if exists(text) else _WEIGHT.fullmatch(text)
    return Part(match[1], float(match[2])) if match else Part(text)


def listed(names: list[str]) -> str:
    shown = ", ".join(names[:20]) or "none"
    return f"{shown}, ..." if len(names) > 20 else shown
