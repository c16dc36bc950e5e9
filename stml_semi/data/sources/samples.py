"""The samples of webdataset shards: members `key.jpg`, `key.cls` of a tar file, one after the other.

The builder of `datasets` takes the members of the first samples for those of all: it refuses shards that hold JPEG and
PNG files by turns. Here the image of a sample is its image, of whatever kind.
"""

import itertools
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stml_semi.data.images import MAX_FILE_BYTES, readable_extensions
from stml_semi.runtime.errors import BadInput

IMAGE = "image"
"""The column with the image of every sample."""
# Samples that tell which columns there are: so many of each shard, and of all shards together.
_SAMPLES, _SAMPLES_IN_ALL = 20_000, 200_000
_MEMBERS = 100
"""Members of one key after which none without a dot is expected any more."""
# A text that is longer is a document, not the name of a class.
_MAX_TEXT = 4096
# Of two images in a sample, the first of these is the one that is meant.
_USUAL = ("jpg", "jpeg", "png", "webp")
_UNTYPED = frozenset((IMAGE, "img"))
"""Fields with images of whose format the name says nothing."""
_NO_TEXTS = frozenset(("json", "jsn"))

Shard = tuple[str, int, int]
"""Path, size and time of change: the cache of `datasets` knows a shard by all three."""


class Fields(NamedTuple):
    """What samples hold."""

    images: tuple[str, ...]
    """Fields with images, such as `jpg` or `mask.png`."""
    others: tuple[str, ...]
    """Other fields, such as `cls`."""

    @property
    def columns_of_images(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((IMAGE, *self.images))) if self.images else ()


class _Member(NamedTuple):
    key: str
    """Name up to the first dot of the file name."""
    field: str
    """The rest, in lowercase."""
    data: bytes | None
    """None of links, and of what is too large to be an image."""


_Sample = dict[str, bytes | None]
"""Field -> content."""


def fields_of(shards: list[Path]) -> Fields:
    """What samples hold, by the names of their members; images that come later are found too, as `image`.

    Raises:
        BadInput: a sample holds a member twice.
        OSError, tarfile.TarError: a shard cannot be read.
    """
    found: dict[str, None] = {}
    left = _SAMPLES_IN_ALL
    for shard in shards:
        for sample in itertools.islice(_samples(str(shard), names_only=True), min(_SAMPLES, left)):
            found.update(dict.fromkeys(sample))
            left -= 1
    return Fields(tuple(filter(_is_image, found)), tuple(itertools.filterfalse(_is_image, found)))


def features_of(fields: Fields) -> dict[str, Any]:
    """Column -> its feature as in `datasets`."""
    from datasets import Image, Value

    images = {name: Image(decode=False) for name in fields.columns_of_images}
    return images | {name: Value("string") for name in fields.others}


def samples(shards: list[Shard], images: tuple[str, ...], texts: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Every sample of some shards as a row: its images and texts; None where it has none.

    Args:
        shards: one after the other.
        images: fields; `image` is the image of a sample, of whatever kind.
        texts: fields.

    Raises:
        BadInput: a sample holds a member twice.
        OSError, tarfile.TarError: a shard cannot be read.
    """
    for shard, *_ in shards:
        for sample in _samples(shard):
            row: dict[str, Any] = {name: _text(name, sample.get(name)) for name in texts}
            for name in images:
                data = sample.get(_image_field(sample) if name == IMAGE else name)
                row[name] = None if data is None else {"bytes": data, "path": None}
            yield row


def _image_field(sample: _Sample) -> str:
    """The field of a sample's image. Fields with dots (`mask.png`) are other things, if there is one without."""
    images = [field for field in sample if _is_image(field)]
    plain = [field for field in images if "." not in field] or images
    return next((field for field in _USUAL if field in plain), plain[0] if plain else "")


def _samples(shard: str, *, names_only: bool = False) -> Iterator[_Sample]:
    """The samples of a shard, each of members with one key that follow each other."""
    members = _members(shard, names_only=names_only)
    for key, of_key in itertools.groupby(members, key=lambda member: member.key):
        for sample in _divided(of_key):
            fields = [member.field for member in sample]
            if twice := next((field for field in fields if fields.count(field) > 1), None):
                raise BadInput(f"{shard}: sample {key} holds {key}.{twice} twice; give every sample a key of its own")
            yield {member.field: member.data for member in sample}


def _divided(members: Iterator[_Member]) -> Iterator[list[_Member]]:
    """The samples among members of one key, which is what the name says up to its first dot.

    The convention of webdataset is one sample, whose fields may have dots: `a.jpg`, `a.mask.png`, `a.cls`. But many
    names have dots that nobody thought of (`scan_2.00.png`, `scan_2.01.png`), and one sample would lose all but one of
    their images. So what goes up to the last dot is a sample of its own if all members of the key have more dots than
    one, or if it has an image and something beside it: `scan_2.5.png`, `scan_2.5.cls` after `scan_2.png`.
    """
    head = list(itertools.islice(members, _MEMBERS))  # Keys may begin alike in all of a shard.
    dotted = all("." in member.field for member in head)
    rest: list[_Member] = []
    for stem, of_stem in itertools.groupby(itertools.chain(head, members), key=lambda m: m.field.rpartition(".")[0]):
        sample = list(of_stem)
        kinds = {_is_image(member.field) for member in sample}
        if stem and (dotted or len(kinds) == 2):
            yield [member._replace(field=member.field.rpartition(".")[2]) for member in sample]
        else:
            rest += sample
    if rest:
        yield rest


def _members(shard: str, *, names_only: bool) -> Iterator[_Member]:
    # As a stream, a shard is read once from its beginning to its end; names alone are found by seeking.
    with tarfile.open(shard, "r:*" if names_only else "r|*") as archive:
        while member := archive.next():
            archive.members = []  # pyright: ignore[reportAttributeAccessIssue] # Headers would fill the memory.
            folder, name = os.path.split(member.name)
            key, dot, field = name.partition(".")
            # Hidden files, folders, and what has no kind.
            if not key or not dot or member.isdir() or name.startswith("__"):
                continue
            wanted = not names_only and member.isreg() and member.size <= MAX_FILE_BYTES
            file = archive.extractfile(member) if wanted else None
            yield _Member(os.path.join(folder, key), field.lower(), file.read() if file else None)


def _is_image(field: str) -> bool:
    return field in _UNTYPED or f".{field.rpartition('.')[2]}" in readable_extensions()


def _text(field: str, data: bytes | None) -> str | None:
    """A short text, without white space around it; None of anything else."""
    if data is None or len(data) > _MAX_TEXT or b"\0" in data or field in _NO_TEXTS:
        return None
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        return None
