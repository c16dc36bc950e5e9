"""How long a folder of very many images takes to open: the first time, again, and after an image was added.

    python benchmarks/folder_index.py --files 1000000

Makes empty files, once as class folders of 100 and once loose in a single directory, and deletes them in the end. The
system has just written their directories, so it still knows them: on a cold disk the first opening waits for it too.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from unittest import mock

from datasets import config

from stml_semi.data.sources.open_source import open_source

_LONG_AGO = 1_600_000_000
"""Directories that have just changed are not remembered; these are said to be old."""


def make(folder: Path, files: int, per_folder: int) -> None:
    for start in range(0, files, per_folder):
        inner = folder / f"{start // per_folder:06d}"
        inner.mkdir(parents=True)
        for i in range(start, min(start + per_folder, files)):
            os.close(os.open(inner / f"{i:08d}.jpg", os.O_CREAT | os.O_WRONLY))
        os.utime(inner, (_LONG_AGO, _LONG_AGO))
    os.utime(folder, (_LONG_AGO, _LONG_AGO))


def timed(folder: Path, labels: str) -> tuple[float, int]:
    started = time.perf_counter()
    table = open_source(str(folder), flag="--labeled", labels=labels)  # pyright: ignore[reportArgumentType]
    return time.perf_counter() - started, len(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to make them; default: the system's place for temporary files")
    given = parser.parse_args()
    files: int = given.files
    print(f"| {files:,} files | first | again | one more image |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        cache = mock.patch.object(config, "HF_DATASETS_CACHE", Path(place) / "cache")
        with cache:
            small = Path(place) / "small"
            make(small, 200, 100)
            timed(small, "required")  # Imports.
            for name, per_folder, labels in (("class folders", 100, "required"), ("loose", files, "ignored")):
                folder = Path(place) / name.replace(" ", "-")
                make(folder, files, per_folder)
                first, count = timed(folder, labels)
                assert count == files
                again, count = timed(folder, labels)
                assert count == files
                (folder / "000000" / "one-more.jpg").touch()
                more, count = timed(folder, labels)
                assert count == files + 1
                print(f"| {name} | {first:.1f} s | {again:.1f} s | {more:.1f} s |")
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MB")


if __name__ == "__main__":
    main()
