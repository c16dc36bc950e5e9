"""An index of made-up embeddings: filled, brought up to date, searched exactly and nearly, next to faiss and LanceDB.

    pip install faiss-cpu lancedb                          # either is left out where it is missing
    python benchmarks/index.py --images 1000000

Embeddings of 512 numbers, 20 of each thing. Seconds of wall time and of CPU; `most` is the most memory until then.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stml_semi.models.evaluation import EmbeddedTable
from stml_semi.search.approximate import build, nearest, recall
from stml_semi.search.index import PART_SIZE, Index, IndexInfo, read_info
from stml_semi.search.nearest import nearest_rows
from stml_semi.search.update import Described, Update

WIDTH = 512
T = TypeVar("T")


class Names:
    """A source that has names, but no images."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def describe(self, row: int) -> str:
        return f"photos/{row:08d}.jpg"


def clock(name: str, do: Callable[[], T]) -> T:
    """Prints how long something takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = do()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {name} | {wall:.2f} | {cpu:.2f} | {most:.1f} |", flush=True)
    return result


def made_up(count: int, seed: int) -> Tensor:
    """Things that differ in 64 directions, with images that differ in these and in all others."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    things = torch.randn(-(-count // 20), 64, generator=generator).repeat_interleave(20, 0)[:count]
    own = things + 0.7 * torch.randn(count, 64, generator=generator)
    return F.normalize(own @ directions + 2 * torch.randn(count, WIDTH, generator=generator), dim=1)


def fill(folder: Path, keys: np.ndarray[Any, Any]) -> int:
    """Fills an index, or brings it up to date. Returns how many rows were written."""
    source, found = Names(len(keys)), read_info(folder) if folder.exists() else None
    index = Index(folder, IndexInfo("m", "f", "d", None, len(keys), [], WIDTH))
    labels = np.array([f"class {row // 20}" for row in range(len(keys))], np.object_)
    update = Update(index, found, source, Described(labels, None), None if found is None else keys)  # pyright: ignore[reportArgumentType]
    for number, rows in enumerate(blocks(update.missing)):
        update.write(rows, keys[rows], EmbeddedTable(made_up(len(rows), number), np.ones(len(rows), bool), []))
    update.finish()
    return len(update.missing)


def blocks(rows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    for start in range(0, len(rows), PART_SIZE):
        yield rows[start : start + PART_SIZE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to make it; default: the system's place for temporary files")
    given = parser.parse_args()
    count: int = given.images
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, (count, 2))
    print(f"| {count:,} images | wall, s | CPU, s | most, GiB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place) / "index"
        clock(
            "make the embeddings, which is part of the next line",
            lambda: [made_up(PART_SIZE, 0) for _ in range(count // PART_SIZE)],
        )
        clock("fill", lambda: fill(folder, keys))
        clock("again, nothing changed", lambda: fill(folder, keys))
        keys[np.random.default_rng(1).permutation(count)[: count // 100], 1] += 1
        clock("again, 1% changed", lambda: fill(folder, keys))
        index = clock("open", lambda: Index.open(folder))
        rows = np.random.default_rng(2).permutation(count)[:64].tolist()
        own = torch.tensor(rows)
        queries = torch.stack([index.find(rows)[row].embedding for row in rows])
        clock("search, 1 query", lambda: nearest_rows(index.parts(), queries[:1], own[:1], 10))
        exact = clock("search, 64 queries", lambda: nearest_rows(index.parts(), queries, own, 10))
        where = f"row < {count // 100}"
        clock("search, 1 query among 1%", lambda: nearest_rows(index.parts(where), queries[:1], own[:1], 10))
        others(folder, queries, own, exact)
        index = clock("prepare approximate search", lambda: build(index))
        clock("approximate search, 64 queries", lambda: nearest(index, queries, own, 10))
        print(f"\nApproximate search finds {recall(index):.1%} of the ten nearest.")


def others(folder: Path, queries: Tensor, own: Tensor, exact: list[Any]) -> None:
    """The same 64 queries by other programs, each exactly."""
    expected = [{near.row for near in one} for one in exact]
    if find_spec("faiss"):
        faiss: Any = import_module("faiss")
        index = Index.open(folder)
        parts = list(index.parts())
        gallery, rows = (
            np.concatenate([part.embeddings.numpy() for part in parts]),
            np.concatenate([p.rows for p in parts]),
        )
        _, places = clock(
            "faiss, 64 queries, all in memory before",
            lambda: faiss.knn(queries.numpy(), gallery, 11, metric=faiss.METRIC_INNER_PRODUCT),
        )
        check("faiss", rows[places], own, expected)
    if find_spec("lancedb"):
        lancedb: Any = import_module("lancedb")
        table = lancedb.connect(str(folder)).open_table("images")

        def ask() -> list[list[int]]:
            asked = [table.search(query).distance_type("cosine").limit(11) for query in queries.numpy()]
            found = [one.select(["row", "_distance"]) for one in asked]
            return [[hit["row"] for hit in one.to_list()] for one in found]

        check("LanceDB", clock("LanceDB, 64 queries", ask), own, expected)


def check(name: str, found: Any, own: Tensor, expected: list[set[int]]) -> None:
    same = [
        len({*map(int, rows)} - {int(left)} & wanted) for rows, left, wanted in zip(found, own, expected, strict=True)
    ]
    assert sum(same) >= 0.99 * sum(map(len, expected)), (name, sum(same))


if __name__ == "__main__":
    main()
