"""Webdataset shards: tar files whose members `key.jpg`, `key.cls` belong together."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stml_semi.data.sources.columns import Columns
from stml_semi.data.sources.named_files import is_pattern, matching

if TYPE_CHECKING:
    from datasets import IterableDataset


def shards_of(source: str) -> list[Path]:
    """The shards that a user named: one tar file, a pattern such as `data/train-*.tar`, or a folder of tar files.

    Empty if it is something else; a folder that holds folders or images too is something else.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path] if path.suffix.lower() == ".tar" else []
    if path.is_dir():
        from stml_semi.data.images import readable_extensions

        with os.scandir(path) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
        kinds = {os.path.splitext(entry.name)[1].lower() for entry in entries}
        if ".tar" not in kinds or kinds & readable_extensions() or any(entry.is_dir() for entry in entries):
            return []
        return sorted(Path(entry.path) for entry in entries if entry.name.lower().endswith(".tar"))
    return list(matching(source)) if source.lower().endswith(".tar") and is_pattern(source) else []


def read_shards(shards: list[Path]) -> Columns:
    """All samples of all shards, as a memory-mapped copy in the cache of `datasets`, made once.

    Column `image` is the image of each sample, of whatever kind; a sample without one is a row without an image. Every
    field is a column too; a label is the member `cls`, or what --labeled-label-column names. The cache knows shards by
    name, size and time.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    from stml_semi.data.sources.samples import features_of, fields_of, samples

    fields = fields_of(shards)

    def read(columns: list[str]) -> Dataset:
        images = tuple(name for name in columns if name in fields.columns_of_images)
        texts = tuple(name for name in columns if name not in images)
        try:
            dataset = Dataset.from_generator(samples, **_reading(shards, images, texts))
        except DatasetGenerationError as error:
            raise error.__cause__ or error from None  # Says what happened, where the outer one says that it did.
        assert isinstance(dataset, Dataset)
        return dataset

    return Columns(features_of(fields), read, Path())


def stream_shards(shards: list[Path]) -> "IterableDataset":
    """The images of all samples, read as a stream; columns as of `read_shards`."""
    from datasets import IterableDataset

    from stml_semi.data.sources.samples import fields_of, samples

    return IterableDataset.from_generator(samples, **_reading(shards, fields_of(shards).columns_of_images, ()))


def _reading(shards: list[Path], images: tuple[str, ...], texts: tuple[str, ...]) -> dict[str, Any]:
    """What `from_generator` needs for these columns."""
    from datasets import Features, Image, Value

    features = Features({name: Image(decode=False) for name in images} | {name: Value("string") for name in texts})
    statuses = [(shard, shard.stat()) for shard in shards]
    stamped = [(str(shard), status.st_size, status.st_mtime_ns) for shard, status in statuses]
    return {"features": features, "gen_kwargs": {"shards": stamped, "images": images, "texts": texts}}
