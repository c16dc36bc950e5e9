"""The command line, called in the process of the test."""

import sys

from stml_semi.cli import app


def call(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Runs the command in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, arguments)])
    code = 0
    try:
        app.run()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
