"""What curation compares: the images of an index, and labeled ones that its model embeds."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.objects import Source, as_spec
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.workers import resolve_num_workers
from stml_semi.models.evaluation import EmbeddedTable, embed_table
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.names import to_utf8
from stml_semi.runtime.progress import Counter
from stml_semi.search.index import Index, Part
from stml_semi.search.query import open_model
from stml_semi.sharing.load import Retriever


class Labeled(NamedTuple):
    """Labeled images."""

    embeddings: Tensor
    """(m, d) of unit length, of those that can be read."""
    labels: Tensor
    """(m,)"""
    classes: tuple[str, ...]
    files: list[tuple[str, str]]
    """File and class of each; [] where they are inside tables."""


def whole_index(index: Index) -> Part:
    """All readable images of an index, in memory.

    Raises:
        BadInput: there are none.
    """
    parts = list(index.parts())
    if not parts:
        raise BadInput(f"--index {index.folder}: holds no readable image; there is nothing to choose from")
    return Part(torch.cat([part.embeddings for part in parts]), np.concatenate([part.rows for part in parts]))


def embed_labeled(
    index: Index,
    source: Source,
    *,
    model: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    data_root: str | None = None,
    batch_size: int = 256,
    num_workers: int | None = None,
) -> Labeled:
    """Embeds labeled images with the model of an index. All processes call this together.

    Raises:
        BadInput: another model than its own, or no labeled image that can be read.
    """
    spec = as_spec(source, "--labeled")
    if not spec:
        return Labeled(torch.zeros(0, index.info.num_features), torch.zeros(0, dtype=torch.int64), (), [])
    columns = {"image_column": image_column, "label_column": label_column, "data_root": data_root}
    table = open_source(spec, flag="--labeled", labels="required", **columns)
    assert table.labels is not None
    retriever = open_model(index, model)
    made = embed_images(table, retriever, batch_size, resolve_num_workers(num_workers))
    readable = torch.from_numpy(made.readable)
    if not readable.any():
        raise BadInput(f"--labeled {spec}: none of its {len(table)} images can be read")
    labels, files = torch.from_numpy(table.labels)[readable], []
    if all(paths := table.paths()[made.readable]):
        absolute = [to_utf8(str(Path(path).absolute())) for path in paths]
        files = [(path, table.classes[label]) for path, label in zip(absolute, labels.tolist(), strict=True)]
    return Labeled(F.normalize(made.embeddings.cpu().float()[readable], dim=1), labels, table.classes, files)


def embed_images(table: ImageTable, retriever: Retriever, batch_size: int, num_workers: int) -> EmbeddedTable:
    """Embeds images with a progress bar. All processes call this together."""
    with Counter("embed", len(table), enabled=distributed.rank() == 0) as counter:
        return embed_table(
            table,
            retriever,
            retriever.processor,
            batch_size=batch_size,
            num_workers=num_workers,
            device=retriever.device,
            progress=lambda count: counter.advance(count * distributed.world_size()),
        )


def nearest_classes(embeddings: Tensor, known: Labeled) -> list[tuple[str, float]]:
    """The class whose mean is nearest to each embedding, and its cosine; "" and 0 without labels."""
    if not len(known.embeddings):
        return [("", 0.0)] * len(embeddings)
    present, own = known.labels.unique(return_inverse=True)
    sums = known.embeddings.new_zeros(len(present), known.embeddings.shape[1]).index_add_(0, own, known.embeddings)
    best = (embeddings @ F.normalize(sums, dim=1).T).max(1)
    names = [known.classes[label] for label in present[best.indices].tolist()]
    return list(zip(names, best.values.tolist(), strict=True))
