"""Memory and disk while a stream ten times larger than the pool goes by.

    python benchmarks/stream.py                 1.3 GB of tar shards, then of parquet shards, in pools of 2,000 images
    python benchmarks/stream.py --pool-size 200 a tenth of it

Images are 64 KB of random bytes: what is measured is reading, keeping and looking at each of them once. Memory is
what belongs to the process alone (RssAnon of Linux); pages of the pool's file come and go with the system's cache.
"""

import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet

from stml_semi.data.batches.live_images import live_images
from stml_semi.data.sources.open_unlabeled import open_unlabeled

_BYTES = 65_536
_SHARDS = 10


def write_stream(folder: Path, kind: str, pictures: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(_SHARDS):
        contents = [rng.bytes(_BYTES) for _ in range(pictures // _SHARDS)]
        file = folder / f"{shard:05d}.{kind}"
        if kind == "parquet":
            parquet.write_table(pyarrow.table({"image": contents}), file, row_group_size=100)
            continue
        with tarfile.open(file, "w") as archive:
            for i, content in enumerate(contents):
                member = tarfile.TarInfo(f"{shard}-{i:06d}.jpg")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def own_megabytes() -> float:
    """Memory of this process alone."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no RssAnon: this needs Linux")


def on_disk_megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool-size", type=int, default=2_000)
    size: int = parser.parse_args().pool_size
    print("| shards | stream | pool on disk | memory after pool 1 | after pool 5 | after pool 10 | pictures/s |")
    print("|---|---|---|---|---|---|---|")
    for kind in ("tar", "parquet"):
        with tempfile.TemporaryDirectory() as place:
            folder, pool = Path(place) / "stream", Path(place) / "pool"
            write_stream(folder, kind, 10 * size)
            stream = open_unlabeled(
                str(folder), stream=True, image_column=None, label_column=None, data_root=None, seed=0
            )
            live = live_images(stream, seed=0, pool_size=size, folder=pool)
            record, memory, disk, seen = None, [], 0.0, 0
            started = time.perf_counter()
            for refresh in range(10):
                drawn = live.draw(refresh, record)
                record = drawn.record
                seen += sum(len(drawn.table.source(int(row))["bytes"] or b"") for row in drawn.rows)
                memory.append(own_megabytes())
                disk = max(disk, on_disk_megabytes(pool))
            seconds = time.perf_counter() - started
            assert seen == 10 * size * _BYTES
            figures = " | ".join(f"{memory[i]:.0f} MB" for i in (0, 4, 9))
            whole = on_disk_megabytes(folder)
            print(f"| {kind} | {whole:.0f} MB | {disk:.0f} MB | {figures} | {10 * size / seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
