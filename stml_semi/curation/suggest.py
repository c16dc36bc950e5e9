"""`suggest`: which images of an index to label next, each with those that are probably the same."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.curation.coverage import choose, survey
from stml_semi.curation.pool import embed_labeled, nearest_classes, whole_index
from stml_semi.data.images import BadImage, read_image
from stml_semi.data.sources.objects import Source
from stml_semi.neighbors import nearest_neighbors
from stml_semi.runtime import distributed
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.failures import writing
from stml_semi.runtime.names import to_utf8
from stml_semi.runtime.progress import Counter
from stml_semi.search.index import Index
from stml_semi.search.query import Hit, indexed_source, open_indexed

_SAME = 0.998
"""Squared cosine from which an image of the index is a labeled one."""


class Suggestion(NamedTuple):
    """An image to label."""

    row: int
    """Of the index."""
    image: str
    gain: float
    """Images that it stands for and that no label or suggestion before it stands for: a sum of similarities."""
    nearest_class: str
    """Of the labeled images, by the mean of its embeddings; empty without labels."""
    cosine: float
    """To that mean; 0 without labels."""
    similar: list[Hit]
    """Its nearest images that are nearer to it than to any other suggestion: probably the same, to be confirmed."""


class Suggestions(NamedTuple):
    """What to label."""

    suggestions: list[Suggestion]
    """Best first."""
    classes: list[str]
    """Of the labeled images."""
    num_images: int
    """Readable ones of the index."""
    labeled_files: list[tuple[str, str]]
    """File and class of every labeled image, for a list of all labels; [] where they are inside tables."""
    num_labeled: int


def suggest(
    folder: str,
    labeled: Source = None,
    *,
    count: int = 50,
    num_similar: int = 5,
    model: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    data_root: str | None = None,
    batch_size: int = 256,
    num_workers: int | None = None,
) -> Suggestions:
    """Chooses images that are typical of an index, unlike what is labeled, and unlike each other.

    All embeddings of the index are in memory; time grows with the square of the images, as of exact search.

    Args:
        folder: the index.
        labeled: images with labels, as `stml_semi.train` takes them; they may be in the index too.
        count: images; fewer if the others add nothing.
        num_similar: images shown with each, at most.
        model: default: the one that made the index.
        image_column: of the labeled images.
        label_column: of the labeled images.
        data_root: where benchmarks are.
        batch_size: images per forward pass.
        num_workers: decoding processes.

    Raises:
        BadInput: no index, an empty one, another model than its own, or no labeled image that can be read.
    """
    index = Index.open(folder)
    embeddings, rows = whole_index(index)
    known = embed_labeled(
        index,
        labeled,
        model=model,
        image_column=image_column,
        label_column=label_column,
        data_root=data_root,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    with Counter("compare", len(embeddings), enabled=distributed.rank() == 0) as counter:
        surroundings = survey(embeddings, counter.advance)
    covered = surroundings.covered(known.embeddings)
    chosen = choose(surroundings, count, covered)
    places = [one.row for one in chosen]
    nearest = nearest_classes(embeddings[places], known)
    similar = _similar(embeddings, places, num_similar, covered >= _SAME)
    names = index.images(rows[[*places, *(place for near in similar for place, _ in near)]].tolist())
    suggestions = [
        Suggestion(
            int(rows[one.row]),
            names[int(rows[one.row])],
            one.gain,
            name,
            cosine,
            [Hit(int(rows[place]), names[int(rows[place])], value) for place, value in near],
        )
        for one, (name, cosine), near in zip(chosen, nearest, similar, strict=True)
    ]
    return Suggestions(suggestions, [*known.classes], len(embeddings), known.files, len(known.labels))


def _similar(
    embeddings: Tensor, places: list[int], count: int, labeled: NDArray[np.bool_]
) -> list[list[tuple[int, float]]]:
    """The nearest images of each chosen one that are nearer to it than to any other, with their cosines.

    Images that are labeled already are left out: a second label could contradict the first.
    """
    k = min(count, len(embeddings) - 1)
    if k < 1 or not places:
        return [[] for _ in places]
    chosen = embeddings[places]
    near = nearest_neighbors(embeddings, k, queries=chosen, exclude=torch.tensor(places))
    found = []
    for number, (columns, cosines) in enumerate(zip(near.indices, near.similarities, strict=True)):
        own = (embeddings[columns] @ chosen.T).argmax(1) == number
        own &= torch.from_numpy(~labeled[columns.numpy()])
        found.append([(c, s) for c, s, mine in zip(columns.tolist(), cosines.tolist(), own, strict=True) if mine])
    return found


def image_files(folder: str, found: Suggestions, copies: str | None) -> dict[int, str]:
    """Files of all suggested and similar images by their rows: what a list of labels can name.

    Args:
        folder: the index.
        found: of `suggest`.
        copies: a folder for images that are inside tables.

    Raises:
        BadInput: the images have moved, or are in tables and no folder is given.
        RunFailed: the disk is full.
    """
    index = Index.open(folder)
    table = open_indexed(index)
    if table is None:
        raise BadInput(f"--index {folder}: the images of {index.info.data} have moved or are gone; run `embed` again")
    rows = [row for one in found.suggestions for row in (one.row, *(hit.row for hit in one.similar))]
    files: dict[int, str] = {}
    for row in dict.fromkeys(rows):
        source = table.original(row)
        if source["bytes"] is None and source["path"]:
            files[row] = str(Path(source["path"]).absolute())
            continue
        if copies is None:
            raise BadInput(f"--copy-to is missing: {index.info.data} holds its images itself, and labels name files")
        path = Path(copies) / f"{row}.png"
        try:
            image = read_image(indexed_source(index, table, row))
        except BadImage:
            continue  # Changed since it was embedded: nothing can be said of it.
        with writing("--copy-to", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        files[row] = str(path.absolute())
    return files


def as_csv(found: Suggestions, files: dict[int, str]) -> str:
    """A line for each suggestion, its label to be filled in, and for each labeled image: then `--labeled` takes it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "nearest_class", "cosine", "gain"])
    for one in found.suggestions:
        if one.row in files:
            scores = [one.nearest_class, f"{one.cosine:.6f}", f"{one.gain:.3f}"]
            writer.writerow([to_utf8(files[one.row]), "", *scores])
    writer.writerows([file, label, "", "", ""] for file, label in found.labeled_files)
    return text.getvalue()
