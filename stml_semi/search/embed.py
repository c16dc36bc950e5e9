"""`embed`: any model on any pictures, into an index on disk."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from stml_semi.data.batches.plan import Rows
from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.workers import resolve_num_workers
from stml_semi.models.evaluation import EmbeddedTable, embed_table
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.files import append_json_lines, read_json_lines
from stml_semi.runtime.progress import Counter
from stml_semi.search.index import Format, Index, IndexInfo, Part, read_info
from stml_semi.sharing.load import Retriever, load

# 33 MB of 512 numbers each: little to lose, few files for a million.
PART_SIZE = 16384


class Embedded(NamedTuple):
    """What was done."""

    folder: str
    num_rows: int
    """Rows of the source."""
    num_embedded: int
    """Those that this call embedded; the others were there already, or cannot be read."""
    num_bad: int
    """Those that cannot be read."""


def embed_source(
    model: str,
    data: str,
    output: str,
    *,
    format: Format = "safetensors",
    image_column: str | None = None,
    batch_size: int = 256,
    num_workers: int | None = None,
    part_size: int = PART_SIZE,
) -> Embedded:
    """Embeds all pictures of a source into an index, part by part; run again, it resumes where it was stopped.

    Memory: one part, on every process.

    Raises:
        BadInput: nothing to open, or an output folder that holds something else.
    """
    table = open_source(data, flag="--data", labels="ignored", image_column=image_column)
    accelerator = Accelerator()
    retriever = load(model, device=accelerator.device)
    info = IndexInfo(
        model=_absolute(model),
        fingerprint=fingerprint(retriever),
        data=_absolute(data),
        image_column=image_column,
        num_rows=len(table),
        sample=[table.describe(row) for row in (0, len(table) // 2, len(table) - 1)],
        part_size=part_size,
        format=format,
        num_features=retriever.num_features,
    )
    index = Index(output, info)
    main = accelerator.is_main_process
    problems = distributed.gather_objects(_problem(index) if main else None)
    if problems[0]:
        raise BadInput(problems[0])
    if main:
        index.folder.mkdir(parents=True, exist_ok=True)
        index.save_info()
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

        embedded = _embed_missing(index, table, embed, counter, writes=main)
    if main:
        index.info = info._replace(complete=True)
        index.save_info()
    accelerator.wait_for_everyone()
    num_bad = len({line["image"] for line in read_json_lines(index.bad_images)})
    accelerator.end_training()
    return Embedded(output, len(table), embedded, num_bad)


def _embed_missing(
    index: Index, table: ImageTable, embed: Callable[[Rows], EmbeddedTable], counter: Counter, *, writes: bool
) -> int:
    """Embeds and writes the parts that are not there; all processes call this together. Returns how many rows."""
    size, parts = index.info.part_size, range(index.info.num_parts)
    # The main process alone looks: the others might see a part that it has just written.
    there = distributed.gather_objects([index.has(number) for number in parts] if writes else None)[0]
    embedded = 0
    for number in parts:
        rows = np.arange(number * size, min((number + 1) * size, len(table)))
        if there[number]:
            counter.skip(len(rows))
            continue
        made = embed(rows)
        if writes:
            append_json_lines(index.bad_images, [bad._asdict() for bad in made.bad])
            index.write(number, _part(table, rows, made))
        embedded += int(made.readable.sum())
    return embedded


def fingerprint(retriever: Retriever) -> str:
    """A hash of a model's weights, by which an index knows what made it."""
    digest = hashlib.sha256()
    for name, value in sorted(retriever.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _part(table: ImageTable, rows: Any, made: EmbeddedTable) -> Part:
    readable = rows[made.readable]
    embeddings = made.embeddings[torch.from_numpy(made.readable).to(made.embeddings.device)]
    return Part(F.normalize(embeddings.float(), dim=1).cpu(), readable, [table.describe(int(row)) for row in readable])


def _problem(index: Index) -> str | None:
    """Why the output folder cannot be used."""
    folder = index.folder
    found = read_info(folder)
    if found is None:
        filled = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        return f"--output {folder}: holds files that are no index; choose another folder" if filled else None
    fields = ("fingerprint", "num_rows", "sample", "part_size", "format", "num_features")
    changed = [name for name in fields if getattr(found, name) != getattr(index.info, name)]
    if changed:
        what = {"fingerprint": "another model", "num_rows": "other data", "sample": "other data"}.get(
            changed[0], f"another {changed[0].replace('_', ' ')}"
        )
        return f"--output {folder}: holds an index of {what} ({found.model}, {found.data}); choose another folder"
    return None


def _absolute(name: str) -> str:
    """Local paths in full, so that the index is understood from anywhere; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
