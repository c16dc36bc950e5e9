"""`report`: the page of finished runs, on demand."""

from collections.abc import Sequence
from pathlib import Path

import torch

from stml_semi.config import TrainConfig, read_recipe
from stml_semi.report.page import ReportedRun, write_report
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import BadInput
from stml_semi.training.inputs import restore_excluded
from stml_semi.training.run import open_tables


def report_runs(paths: Sequence[str], output: str | None) -> Path:
    """Writes the page of one run, or of several side by side.

    Args:
        paths: run folders.
        output: the file. Default: report.html in the run; comparison.html beside the first of several.

    Returns:
        Where the page is.

    Raises:
        BadInput: no run there, or the page cannot be written.
    """
    if len(set(paths)) < len(paths):
        raise BadInput("RUN: the same run folder is named twice; name each once")
    runs = [_open(path) for path in paths]
    first = runs[0].folder
    target = Path(output) if output else first.report if len(runs) == 1 else first.path.parent / "comparison.html"
    if target.is_dir():
        raise BadInput(f"--output {target}: is a folder; name a file such as {target / 'report.html'}")
    try:
        return write_report(runs, target, device="cuda" if torch.cuda.is_available() else "cpu")
    except OSError as error:
        raise BadInput(f"--output {target}: {error.strerror or error}; name a file that you can write") from None


def _open(path: str) -> ReportedRun:
    folder = RunFolder(path, writes=False)
    if not folder.config.is_file() or not folder.metrics.is_file():
        raise BadInput(f"{path}: no run folder (config.yaml and metrics.jsonl are missing); check the path")
    config = TrainConfig.build(read_recipe(folder.config), origin=str(folder.config))
    try:
        tables = restore_excluded(open_tables(config), folder.read_overlap())
    except BadInput as error:
        # Moved or deleted since: curves and configuration can still be shown.
        return ReportedRun(folder, config, None, problem=f"{path}: its pictures cannot be opened ({error}).")
    return ReportedRun(folder, config, tables)
