"""The page at the end of a run: whatever goes wrong with it, the run itself has finished."""

import shlex

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError

from stml_semi.report.page import ReportedRun, write_report


def write_or_explain(run: ReportedRun, device: torch.device | str) -> str:
    """Writes report.html into the run folder.

    Returns one line for the user: where it is, or why it is not there and how to try again.
    """
    path = run.folder.report
    try:
        write_report([run], path, device=device)
    except (OSError, ValueError, LookupError, RuntimeError, MemoryError, SafetensorError, TemplateError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        again = f"python cli.py report {shlex.quote(str(run.folder.path))}"
        return f"the run has finished, but its report could not be written ({reason}): try again with `{again}`"
    return f"report: {path}"
