"""What several test processes share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one of several test processes fills, and all of them read."""
    place = tmp_path_factory.getbasetemp()
    folder = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / name
    with FileLock(f"{folder}.lock"):
        if not folder.with_suffix(".done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make(folder)
            folder.with_suffix(".done").touch()
    return folder
