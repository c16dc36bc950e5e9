"""`audit`: labels that the embeddings contradict, and images that are there twice where they must not be.

An image is compared with the mean embedding of its class, without itself, and with those of all other classes. The
further another class is ahead, the more likely the label is wrong. Means of classes find planted errors better than
votes of neighbors do (docs/RESULTS.md), because an image's neighbors may be mislabeled too, and cost N x classes.
"""

import csv
import io
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from stml_semi.curation.coverage import all_nearest
from stml_semi.curation.pool import embed_images
from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.objects import Source, as_spec
from stml_semi.data.sources.open_source import open_source
from stml_semi.data.workers import resolve_num_workers
from stml_semi.models.evaluation import EmbeddedTable
from stml_semi.neighbors import nearest_neighbors
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.progress import Counter
from stml_semi.sharing.evaluate import trained_classes
from stml_semi.sharing.load import load

Problem = Literal["label", "two classes", "evaluated"]
_NEAREST = 10
"""Neighbors that are looked at for near-duplicates."""
_CHUNK = 4096


class Finding(NamedTuple):
    """An image that somebody should look at."""

    problem: Problem
    """label: another class is nearer than its own; two classes: a near-duplicate has another label; evaluated: a
    near-duplicate is among the evaluation images."""
    row: int
    """Of the labeled images."""
    image: str
    label: str
    other: str
    """The class that is nearer, or that of the near-duplicate."""
    other_row: int
    """The image of the other class that is nearest, or the near-duplicate; of the evaluation images if "evaluated"."""
    other_image: str
    score: float
    """Of a label: cosine to the mean of the other class minus that to its own. Of near-duplicates: their cosine."""


class Audit(NamedTuple):
    """What was found."""

    tables: list[ImageTable]
    """The labeled images, and the evaluation images if there are any."""
    findings: list[Finding]
    """One problem after the other, each worst first."""
    num_images: int
    num_judged: int
    """Readable, and not the only image of their class."""
    num_unreadable: int
    num_trained_classes: int
    """Classes with the name of one that the model was trained on; see `evaluate`."""


def audit(
    model: str,
    labeled: Source,
    *,
    evaluated: Source = None,
    image_column: str | None = None,
    label_column: str | None = None,
    threshold: float = 0.97,
    batch_size: int = 256,
    num_workers: int | None = None,
    data_root: str | None = None,
) -> Audit:
    """Looks for wrong labels and misplaced near-duplicates among labeled images.

    Args:
        model: what `load` opens. One that was trained on these very labels has learned the wrong ones too.
        labeled: images with labels, as `stml_semi.train` takes them.
        evaluated: labeled images that results are measured on, and that training must not see.
        image_column: of both.
        label_column: of both.
        threshold: cosine from which two images are near-duplicates.
        batch_size: images per forward pass.
        num_workers: decoding processes.
        data_root: where benchmarks are.

    Raises:
        BadInput: nothing to open, or a threshold that is no cosine above zero.
    """
    if not 0 < threshold <= 1:
        raise BadInput(f"--threshold {threshold}: is a cosine; give a number above 0, up to 1")
    sources = [(as_spec(labeled, "--labeled"), "--labeled"), (as_spec(evaluated, "--eval"), "--eval")]
    columns = {"image_column": image_column, "label_column": label_column, "data_root": data_root}
    tables = [open_source(source, flag=flag, labels="required", **columns) for source, flag in sources if source]
    retriever = load(model)
    workers = resolve_num_workers(num_workers)
    embedded = [embed_images(table, retriever, batch_size, workers) for table in tables]
    own = _Labeled(tables[0], embedded[0])
    findings = own.wrong_labels() + own.in_two_classes(threshold)
    if len(tables) > 1:
        findings += own.also_in(_Labeled(tables[1], embedded[1]), threshold)
    counts = own.labels.bincount(minlength=len(own.table.classes))
    judged = int((counts[own.labels] > 1).sum())
    trained = len(trained_classes(model) & set(own.table.classes))
    return Audit(tables, findings, len(own.table), judged, len(own.table) - len(own.rows), trained)


class Doubts(NamedTuple):
    """How far another class is ahead of an image's own."""

    margin: Tensor
    """(n,) cosine to the mean of the nearest other class minus that to its own; -inf without another image of it."""
    other: Tensor
    """(n,) the nearest other class."""


def doubt_labels(embeddings: Tensor, labels: Tensor, num_classes: int) -> Doubts:
    """Compares each image with the means of all classes, its own without itself.

    Args:
        embeddings: (n, d) of unit length.
        labels: (n,) 0..num_classes-1; a class may be empty.
        num_classes: C; memory is that of C means and of a block of n x C cosines.
    """
    sums = embeddings.new_zeros(num_classes, embeddings.shape[1]).index_add_(0, labels, embeddings)
    counts = labels.bincount(minlength=num_classes)
    means = F.normalize(sums, dim=1)
    margins, others = [], []
    for start in range(0, len(labels), _CHUNK):
        block, own = embeddings[start : start + _CHUNK], labels[start : start + _CHUNK]
        to_own = (block * F.normalize(sums[own] - block, dim=1)).sum(1)
        cosines = (block @ means.T).masked_fill(counts == 0, -torch.inf)
        nearest = cosines.scatter_(1, own[:, None], -torch.inf).max(1)
        margins.append((nearest.values - to_own).masked_fill(counts[own] < 2, -torch.inf))
        others.append(nearest.indices)
    return Doubts(torch.cat(margins), torch.cat(others))


class _Labeled:
    """The readable images of a table."""

    def __init__(self, table: ImageTable, embedded: EmbeddedTable) -> None:
        assert table.labels is not None
        readable = torch.from_numpy(embedded.readable)
        if not readable.any():
            raise BadInput(f"{table.name}: none of its {len(table)} images can be read, such as {table.describe(0)}")
        self.table: ImageTable = table
        self.rows: list[int] = readable.nonzero().flatten().tolist()
        self.embeddings: Tensor = F.normalize(embedded.embeddings.cpu().float()[readable], dim=1)
        self.labels: Tensor = torch.from_numpy(table.labels)[readable]

    def wrong_labels(self) -> list[Finding]:
        """Images that are nearer to another class, the clearest first."""
        doubts = doubt_labels(self.embeddings, self.labels, len(self.table.classes))
        found = doubts.margin.argsort(descending=True, stable=True)[: int((doubts.margin > 0).sum())]
        members = {int(label): (self.labels == label).nonzero().flatten() for label in doubts.other[found].unique()}
        findings = []
        for place in found.tolist():
            same = members[int(doubts.other[place])]
            other = int(same[(self.embeddings[same] @ self.embeddings[place]).argmax()])
            findings.append(self._finding("label", place, self, other, float(doubts.margin[place])))
        return findings

    def in_two_classes(self, threshold: float) -> list[Finding]:
        """Pairs of near-duplicates with different labels, the nearest first, each once."""
        if len(self.rows) < 2:
            return []
        with Counter("compare", len(self.rows), enabled=distributed.rank() == 0) as counter:
            near = all_nearest(self.embeddings, min(_NEAREST, len(self.rows) - 1), counter.advance)
        differ = (self.labels[near.indices] != self.labels[:, None]) & (near.similarities >= threshold)
        places, columns = differ.nonzero(as_tuple=True)
        pairs: dict[tuple[int, int], float] = {}
        for place, column in zip(places.tolist(), columns.tolist(), strict=True):
            other = int(near.indices[place, column])
            pairs[min(place, other), max(place, other)] = float(near.similarities[place, column])
        ranked = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
        return [self._finding("two classes", first, self, second, cosine) for (first, second), cosine in ranked]

    def also_in(self, evaluated: "_Labeled", threshold: float) -> list[Finding]:
        """Images with a near-duplicate among the evaluation images, the nearest first."""
        near = nearest_neighbors(evaluated.embeddings, 1, queries=self.embeddings)
        cosines = near.similarities[:, 0]
        found = cosines.argsort(descending=True, stable=True)[: int((cosines >= threshold).sum())]
        return [
            self._finding("evaluated", place, evaluated, int(near.indices[place, 0]), float(cosines[place]))
            for place in found.tolist()
        ]

    def _finding(self, problem: Problem, place: int, others: "_Labeled", other: int, score: float) -> Finding:
        row, other_row = self.rows[place], others.rows[other]
        return Finding(
            problem,
            row,
            self.table.describe(row),
            self.table.classes[int(self.labels[place])],
            others.table.classes[int(others.labels[other])],
            other_row,
            others.table.describe(other_row),
            score,
        )


def worst(findings: Sequence[Finding], count: int) -> dict[Problem, list[Finding]]:
    """The first findings of each problem that was found."""
    grouped = {problem: [one for one in findings if one.problem == problem] for problem in get_args(Problem)}
    return {problem: found[:count] for problem, found in grouped.items() if found}


def as_csv(findings: Sequence[Finding]) -> str:
    """A line for every finding; columns as of `Finding`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Finding._fields)
    for finding in findings:
        writer.writerow([*finding[:-1], f"{finding.score:.6f}"])
    return text.getvalue()
