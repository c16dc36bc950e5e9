"""`embed`: any model on any images, into an index on disk."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from stml_semi.config import Fit
from stml_semi.data.batches.plan import Rows
from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.open_source import open_source, open_with_others
from stml_semi.data.workers import resolve_num_workers
from stml_semi.models.evaluation import EmbeddedTable, embed_table
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.failures import writing
from stml_semi.runtime.files import read_json_lines
from stml_semi.runtime.names import to_utf8
from stml_semi.runtime.progress import Counter
from stml_semi.search.approximate import build, recall
from stml_semi.search.changes import Changes, row_keys
from stml_semi.search.copies import Format, write_copy
from stml_semi.search.index import PART_SIZE, TABLE, Index, IndexInfo, read_info
from stml_semi.search.update import Described, Update, latest
from stml_semi.sharing.load import Retriever, load


class Embedded(NamedTuple):
    """What was done."""

    folder: str
    num_rows: int
    """Rows of the source."""
    num_embedded: int
    """Those that this call embedded; the others were there already, or cannot be read."""
    num_bad: int
    """Those that cannot be read."""
    num_new: int
    """Those that the index did not have before."""
    num_changed: int
    """Those whose name was another image's in the index."""
    num_gone: int
    """Images of the index that the source does not have any more: they are dropped."""
    skipped: tuple[str, ...]
    """Sentences about files of the source that are not read."""
    recall: float | None = None
    """Of approximate search: the share of the ten nearest images that it finds. None if it was not asked for."""


def embed_source(
    model: str,
    data: str,
    output: str,
    *,
    format: Format = "lance",
    approximate: bool = False,
    image_column: str | None = None,
    image_size: int | None = None,
    fit: Fit = "auto",
    batch_size: int = 256,
    num_workers: int | None = None,
    part_size: int = PART_SIZE,
) -> Embedded:
    """Embeds all images of a source into an index.

    Run again, it resumes where it was stopped, and brings the index up to date: what is new or has changed is embedded,
    what is gone is dropped.

    `format` other than "lance" also writes a copy (`copies`). `approximate` prepares approximate search, which takes
    minutes for every million images. Memory: `part_size` images, which are written together,
    on every process, and a few bytes per image.

    Raises:
        BadInput: nothing to open, or an output folder that holds something else.
    """
    table = open_source(data, flag="--data", labels="ignored", image_column=image_column)
    accelerator = Accelerator()
    retriever = load(model, device=accelerator.device, image_size=image_size, fit=fit)
    info = IndexInfo(
        model=_absolute(model),
        fingerprint=fingerprint(retriever),
        data=_absolute(data),
        image_column=image_column,
        num_rows=len(table),
        sample=sample_names(table),
        num_features=retriever.num_features,
        commit=retriever.commit,
        image_size=image_size,
        fit=fit,
    )
    index = Index(output, info)
    main = accelerator.is_main_process
    with writing("--output", index.folder):
        problems = distributed.gather_objects(_problem(index) if main else None)
    if problems[0]:
        raise BadInput(problems[0])
    with Counter("embed", len(table), enabled=main) as counter:

        def embed(rows: Rows) -> EmbeddedTable:
            return embed_table(
                table,
                retriever,
                retriever.processor,
                rows=rows,
                batch_size=batch_size,
                num_workers=resolve_num_workers(num_workers),
                device=accelerator.device,
                progress=lambda count: counter.advance(count * distributed.world_size()),
            )

        with writing("--output", index.folder):
            embedded, changes = _fill(index, table, embed, part_size, counter, accelerator)
            if main:
                write_copy(index, format)
                index = build(index) if approximate else index
    accelerator.wait_for_everyone()
    num_bad = len(read_json_lines(index.bad_images))
    accelerator.end_training()
    found = recall(index) if approximate and main else None
    return Embedded(output, len(table), embedded, num_bad, *changes, table.skipped, found)


def _fill(
    index: Index,
    table: ImageTable,
    embed: Callable[[Rows], EmbeddedTable],
    part_size: int,
    counter: Counter,
    accelerator: Accelerator,
) -> tuple[int, Changes]:
    """Embeds and writes what is not there; all processes call this together. Returns how many rows, and the changes."""
    device, writes = accelerator.device, accelerator.is_main_process
    # The main process alone looks and writes: the others might see what it has just written.
    found = distributed.gather_objects((read_info(index.folder), _is_begun(index)) if writes else None)[0]
    keys = row_keys(table, np.arange(len(table)), device) if found[1] else None
    update = Update(index, found[0], table, _described(table, index.info), keys) if writes else None
    missing = distributed.gather_objects(update.missing if update else None)[0]
    counter.skip(len(table) - len(missing))
    embedded = 0
    for start in range(0, len(missing), part_size):
        rows = missing[start : start + part_size]
        own = row_keys(table, rows, device) if keys is None else keys[rows]
        made = embed(rows)
        if update:
            update.write(rows, own, made)
        embedded += int(made.readable.sum())
    return embedded, distributed.gather_objects(update.finish() if update else None)[0]


def _is_begun(index: Index) -> bool:
    return (index.folder / TABLE).exists() and latest(index.folder).count_rows() > 0


def _described(table: ImageTable, info: IndexInfo) -> Described:
    """What the source says of its images beside their names."""
    nothing = Described(np.full(len(table), None, np.object_), None)
    try:
        named = open_with_others(info.data, flag="--data", image_column=info.image_column)
    except BadInput:
        return nothing
    if len(named) != len(table) or not is_sample(sample_names(named), info):
        return nothing
    first, second = ([path and os.path.abspath(path) for path in one.paths()] for one in (named, table))
    if first != second:
        return nothing
    classes = np.array([to_utf8(name) for name in named.classes], np.object_)
    return Described(nothing.labels if named.labels is None else classes[named.labels], named.others)


def sample_names(table: ImageTable) -> list[str]:
    """First, middle and last image of a source, as an index remembers them: the same from any working folder."""
    return [_from_anywhere(table.describe(row)) for row in (0, len(table) // 2, len(table) - 1)]


def is_sample(names: list[str], info: IndexInfo) -> bool:
    """Whether these are the images that an index remembers."""
    return names == [_from_anywhere(name) for name in info.sample]


def _from_anywhere(name: str) -> str:
    """A file in full; `name[row]` of a table without its folder."""
    return Path(name).name if re.search(r"\[\d+\]$", name) else os.path.abspath(name)


def fingerprint(retriever: Retriever) -> str:
    """A hash of a model's weights, by which an index knows what made it."""
    digest = hashlib.sha256()
    for name, value in sorted(retriever.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _problem(index: Index) -> str | None:
    """Why the output folder cannot be used."""
    folder = index.folder
    found = read_info(folder)
    if found is None:
        if folder.exists() and not folder.is_dir():
            return f"--output {folder}: is a file; choose another folder"
        filled = folder.exists() and any(folder.iterdir())
        return f"--output {folder}: holds files that are no index; choose another folder" if filled else None
    fields = ("fingerprint", "image_size", "fit", "image_column", "num_features")
    changed = [name for name in fields if getattr(found, name) != getattr(index.info, name)]
    # The same source under another name (a table that was moved) has the same images.
    same = found.data == index.info.data or (
        found.num_rows == index.info.num_rows and is_sample(index.info.sample, found)
    )
    if changed or not same:
        what = "other data"
        if changed:
            what = {"fingerprint": "another model"}.get(changed[0], f"another {changed[0].replace('_', ' ')}")
        return f"--output {folder}: holds an index of {what} ({found.model}, {found.data}); choose another folder"
    return None


def _absolute(name: str) -> str:
    """Local paths in full, so that the index is understood from anywhere; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
