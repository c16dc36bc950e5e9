"""`embed` killed with SIGKILL at random moments of its run, while it fills an index and while it updates one.

    python benchmarks/kills.py --kills 50

After each kill the old index must still answer (or the new one, if the kill came late), and the same command must end
with what an undisturbed one makes: nothing lost, nothing twice. Raises an error where that is not so.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from stml_semi.runtime.errors import BadInput
from stml_semi.search.embed import embed_source
from stml_semi.search.index import Index

IMAGES = 240


def embed(photos: Path, index: Path) -> int:
    """Embeds in steps of twenty images, as a run over many more does. Returns how many it embedded."""
    return embed_source("tiny-resnet", str(photos), str(index), batch_size=10, num_workers=0, part_size=20).num_embedded


def quietly(photos: str, index: str) -> None:
    """What a child process does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    embed(Path(photos), Path(index))


def change(photos: Path, round: int) -> None:
    """A tenth of the images is new, replaced or gone: before, between and after the others."""
    rng = np.random.default_rng(round)
    for number in rng.permutation(IMAGES)[: IMAGES // 10].tolist():
        path = photos / f"{number}.png"
        if path.exists() and rng.random() < 0.4:
            path.unlink()
        else:
            Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(path)
    Image.new("RGB", (24, 24), (round % 256, 0, 0)).save(photos / f"+{round}.png")


def content(index: Path) -> list[tuple[int, str, int]]:
    """Rows, names and keys of an index."""
    table = Index.open(index).table.to_table(columns=["row", "image", "content_key"]).to_pylist()
    return sorted((line["row"], line["image"], line["content_key"]) for line in table)


def kill(photos: Path, index: Path, seconds: float) -> bool:
    """Runs `embed` for that long. Whether it was killed."""
    child = multiprocessing.get_context("forkserver").Process(target=quietly, args=(str(photos), str(index)))
    child.start()
    child.join(seconds)
    killed = child.exitcode is None
    if killed and child.pid is not None:
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    if not killed and child.exitcode:
        raise SystemExit(f"embed failed with {child.exitcode}")
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    kills: int = parser.parse_args().kills
    multiprocessing.set_forkserver_preload(["stml_semi.search.embed", "transformers", "torchvision", "lance"])
    found: dict[str, Counter[str]] = {"fill": Counter(), "update": Counter()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "photos").mkdir()
        for round in range(10):
            change(folder / "photos", round)
        photos, index, fresh = folder / "photos", folder / "index", folder / "fresh"
        kill(photos, index, 600)  # Imports.
        moments, usual = np.random.default_rng(0), 10.0
        for what, counts in found.items():
            number = 0
            while counts["killed"] < kills:
                number += 1
                if what == "fill":
                    shutil.rmtree(index, ignore_errors=True)
                else:
                    change(photos, 100 + number)
                before = content(index) if what == "update" else []
                shutil.rmtree(fresh, ignore_errors=True)
                embed(photos, fresh)
                seconds, started = usual * moments.uniform(), time.perf_counter()
                if kill(photos, index, seconds):
                    counts["killed"] += 1
                else:
                    usual = time.perf_counter() - started
                    counts["ended before"] += 1
                try:
                    now = content(index)
                    counts["old index answers" if now == before else "new index answers"] += 1
                    assert now in (before, content(fresh)), f"{what} {number}: neither the old nor the new index"
                except BadInput:
                    assert what == "fill", f"{what} {number}: the old index is gone"
                    counts["not finished"] += 1
                counts["images embedded again"] += embed(photos, index)
                assert content(index) == content(fresh), f"{what} {number}: not what an undisturbed run makes"
            print(f"{what}: {dict(counts)}, each time the same index in the end", flush=True)


if __name__ == "__main__":
    main()
