"""What a user types after --labeled and the like: sources joined by commas, each perhaps with a weight."""

import os
import re
from typing import NamedTuple

_WEIGHT = re.compile(r"(.+)=(\d+(?:\.\d*)?|\.\d+)")


class Part(NamedTuple):
    """One of the joined sources."""

    spec: str
    """A benchmark, path, pattern or hub id, perhaps with `:split`."""
    weight: float | None = None
    """The number after `=`; None without one."""


def split_parts(text: str | None) -> list[Part]:
    """`inat=0.7,photos/=0.3` -> its parts. What exists under the very name that was typed is one path: commas, and an
    equals sign as in `year=2021`, are part of it. Hub ids, splits and revisions have no equals sign."""
    if not text:
        return []
    return [_part(piece.strip()) for piece in ([text] if _exists(text) else text.split(","))]


def specs_of(text: str | None) -> list[str]:
    """The parts without their weights."""
    return [part.spec for part in split_parts(text)]


def _part(text: str) -> Part:
    match = None if _exists(text) else _WEIGHT.fullmatch(text)
    return Part(match[1], float(match[2])) if match else Part(text)


def _exists(text: str) -> bool:
    return os.path.exists(os.path.expanduser(text))
