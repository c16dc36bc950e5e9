"""`report`: the page of finished runs on demand, and of a run at its end."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError

from stml_semi.data.run_tables import exclude, open_tables
from stml_semi.report.page import ReportedRun, write_page
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import BadInput, one_line
from stml_semi.runtime.failures import writing


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
    with writing("--output", target):
        if target.is_dir():
            raise BadInput(f"--output {target}: is a folder; name a file such as {target / 'report.html'}")
        return write_page(runs, target, device="cuda" if torch.cuda.is_available() else "cpu")


def _open(path: str) -> ReportedRun:
    folder = RunFolder.open(path)
    config = folder.config()
    try:
        tables = exclude(config, open_tables(config), folder.read_overlap())
    except BadInput as error:
        # Moved or deleted since: curves and configuration can still be shown.
        return ReportedRun(folder, config, None, problem=f"{path}: its images cannot be opened ({error}).")
    return ReportedRun(folder, config, tables)


def write_or_explain(run: ReportedRun, device: torch.device | str) -> str:
    """Writes report.html into the folder of a run that has just finished: whatever goes wrong here, the run is done.

    Returns one line for the user: where the page is, or why it is not there and how to try again.
    """
    path = run.folder.report
    try:
        write_page([run], path, device=device)
    except (OSError, ValueError, LookupError, RuntimeError, MemoryError, SafetensorError, TemplateError) as error:
        again = f"stml-semi report {shlex.quote(str(run.folder.path))}"
        reason = one_line(error, 200)
        return f"the run has finished, but its report could not be written ({reason}): try again with `{again}`"
    return f"report: {path}"
