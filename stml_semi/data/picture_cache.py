"""`--cache-images`: images are decoded and made small once; later reads skip most of that work.

A cache is a folder of parts, each with some hundred images, renamed into place when it is whole: a process that is
killed loses the part at hand, and the next run goes on with the missing ones. Parts are memory-mapped, so processes and
workers share what they read. The folder's name is a digest of the images and of how they are kept.
"""

import hashlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch.utils.data import Dataset

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage, ImageSource, raw, read_image
from stml_semi.data.workers import decode_ahead
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.files import replacing
from stml_semi.runtime.names import from_utf8

Form = Literal["raw", "jpeg"]
PART_ROWS = 256
_VERSION = 1
_QUALITY = 92
# A part takes seconds: what a killed process left is older than this.
_LEFT_BEHIND_SECONDS = 3600


class PictureCache:
    """Images of a table by row, as far as they are kept here. Pickles as the names of its files."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files
        self._columns: dict[int, Any] = {}

    def __reduce__(self) -> tuple[type["PictureCache"], tuple[tuple[Path, ...]]]:
        return PictureCache, (self.files,)

    def source(self, row: int) -> ImageSource | None:
        """What `read_pixels` takes; None for an image that is better read where it lies, or cannot be read."""
        number, place = divmod(row, PART_ROWS)
        if number not in self._columns:
            self._columns[number] = _open_part(self.files[number])
        data = self._columns[number][place].as_py()
        return None if data is None else {"bytes": data, "path": None}


def cache_folder(table: ImageTable, form: Form, side: int) -> Path:
    """Where the cache of a table is: below the cache of `datasets` ($HF_DATASETS_CACHE), by content and size.

    Images in a table count with all their bytes; files with path, size and time of change, since reading a million
    of them takes long.
    """
    from datasets import config as datasets_config

    seen = hashlib.blake2b(f"{_VERSION} {form} {side}\n".encode(), digest_size=16)
    block: Any
    for block in table.images.with_format("arrow").iter(1000):
        pictures = block["image"].combine_chunks()
        for data, path in zip(pictures.field("bytes"), pictures.field("path").to_pylist(), strict=True):
            if data.is_valid:
                seen.update(b"%d " % len(data.as_buffer()))
                seen.update(data.as_buffer())
            else:
                seen.update(f"{path} {_stamp(path and from_utf8(path))}\n".encode(errors="surrogateescape"))
    return Path(datasets_config.HF_DATASETS_CACHE) / "stml-semi-pictures" / seen.hexdigest()


def _stamp(path: str | None) -> str:
    try:
        status = os.stat(path or "")
    except (OSError, ValueError):
        return "-"
    return f"{status.st_size} {status.st_mtime_ns}"


def cached(
    table: ImageTable,
    form: Form,
    side: int,
    *,
    num_workers: int,
    progress: Callable[[int], None] | None = None,
) -> ImageTable:
    """The table with its images in a cache, which is built as far as it is not there.

    All processes call this together; those of a machine build it together.

    Args:
        table: images.
        form: "raw" keeps pixels, "jpeg" encodes images that were made smaller and leaves the others where they lie.
        side: pixels; images with a longer shorter side are made smaller, to this.
        num_workers: processes that decode, for each of those that train.
        progress: called with the number of images done since the last call, over all processes of this machine.

    Raises:
        BadInput: the cache cannot be written.
    """
    folder = distributed.gather_objects(str(cache_folder(table, form, side)) if distributed.rank() == 0 else "")[0]
    parts = [Path(folder) / f"{start:09d}.arrow" for start in range(0, len(table), PART_ROWS)]
    # Before anybody writes one: all must agree on what is missing.
    missing = distributed.gather_objects([number for number, part in enumerate(parts) if not part.is_file()])
    local = distributed.local_world_size()
    own = missing[distributed.rank()][distributed.rank() % local :: local]
    problems = distributed.gather_objects(_build(_Parts(table, parts, own, form, side), num_workers, progress, local))
    if problem := next(filter(None, problems), None):
        raise BadInput(
            f"--cache-images: {folder}: {problem}; make room, or set HF_DATASETS_CACHE to a folder on another disk"
        )
    return replace(table, cache=PictureCache(tuple(parts)).source)


def _build(parts: "_Parts", num_workers: int, progress: Callable[[int], None] | None, local: int) -> str:
    """What went wrong, if anything."""
    try:
        if parts.own:
            parts.files[0].parent.mkdir(parents=True, exist_ok=True)
            for left in parts.files[0].parent.glob(".*.partial"):
                if left.stat().st_mtime < time.time() - _LEFT_BEHIND_SECONDS:
                    left.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    for done in decode_ahead(parts, num_workers=num_workers):
        if isinstance(done, str):
            return done
        if progress is not None:
            progress(done * local)
    return ""


class _Parts(Dataset[int | str]):
    """Item i writes the i-th part of this process: how many images are in it, or what went wrong."""

    def __init__(self, table: ImageTable, files: list[Path], own: list[int], form: Form, side: int) -> None:
        self.table, self.files, self.own, self.side = table, files, own, side
        self.form: Form = form

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, item: int) -> int | str:
        start = self.own[item] * PART_ROWS
        rows = range(start, min(start + PART_ROWS, len(self.table)))
        try:
            _write_part(self.files[self.own[item]], [_kept(self.table.source(r), self.form, self.side) for r in rows])
        except OSError as error:
            return error.strerror or str(error)
        return len(rows)


def _kept(source: ImageSource, form: Form, side: int) -> bytes | None:
    try:
        image = read_image(source, enough=lambda *sides: min(sides) >= 2 * side)
    except BadImage:
        return None  # Found bad again whenever it is drawn, and listed then.
    shrink = side / min(image.size)
    if shrink < 1:
        size = (max(round(image.width * shrink), 1), max(round(image.height * shrink), 1))
        image = image.resize(size, Image.Resampling.BICUBIC)
    elif form == "jpeg":
        return None
    if form == "raw":
        return raw(image)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _write_part(path: Path, pictures: list[bytes | None]) -> None:
    """A part that is either whole or not there; two runs that write the same one write the same."""
    import pyarrow

    table = pyarrow.table({"picture": pyarrow.array(pictures, pyarrow.large_binary())})
    with (
        replacing(path, durable=True) as partial,
        pyarrow.OSFile(str(partial), "wb") as file,
        pyarrow.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)


def _open_part(path: Path) -> Any:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:  # The map outlives the open file.
        return pyarrow.ipc.open_file(file).read_all()["picture"]
