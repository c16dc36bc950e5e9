"""Paths in the columns of a table, as they are written there and as they are meant."""

import os
from pathlib import Path

from stml_semi.data.sources.request import SourceRequest

# Paths that are looked for on the disk before a table is taken for a good one.
_ASKED = 5


def found_paths(request: SourceRequest, column: str, paths: list[str | None], folder: Path) -> list[str | None]:
    """Paths that start from a folder. Those of Windows, and blanks around them, are only taken for what they are where
    no file has such a name.

    Raises:
        BadInput: none of the first ones exists.
    """
    tidy = [path and path.strip().replace("\\", "/") for path in paths]
    other = [pair for pair in zip(paths, tidy, strict=True) if pair[0] != pair[1]][:_ASKED]
    as_written, as_meant = (
        any(os.path.exists(os.path.join(folder, pair[place] or "")) for pair in other) for place in (0, 1)
    )
    whole = [path and os.path.join(folder, path) for path in (tidy if as_meant and not as_written else paths)]
    few = [path for path in whole[:_ASKED] if path]
    if few and not any(map(os.path.exists, few)):
        raise request.error(
            f"none of the first {len(few)} files in column '{column}' exists, such as {few[0]}; "
            f"paths must be absolute or start from {folder.absolute()}"
        )
    return whole
