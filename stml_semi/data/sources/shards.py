"""Webdataset shards: tar files whose members `key.jpg`, `key.cls` belong together."""

import glob
import os
from pathlib import Path

from stml_semi.data.sources.columns import Columns
from stml_semi.data.sources.named_files import is_pattern, matching


def shards_of(source: str) -> list[Path]:
    """The shards that a user named: one tar file, a pattern such as `data/train-*.tar`, or a folder of tar files.

    Empty if it is something else; a folder that holds folders or pictures too is something else.
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

    The cache knows shards by name, size and time; a label is the member `cls`, or what --labeled-label-column names.
    """
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetGenerationError

    escaped = [glob.escape(str(shard)) for shard in shards]
    try:
        dataset = load_dataset("webdataset", data_files={"train": escaped}, split="train")
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None  # Says what happened, where the outer one says that it did.
    assert isinstance(dataset, Dataset)
    return Columns(dataset.features, dataset.select_columns, Path())
