"""Draws what a command leaves on a terminal, as one picture (SVG).

    pip install pyte
    python scripts/terminal.py --output docs/terminal.svg -- stml-semi semi --recipe kanji --output-dir runs/demo

The command runs in a terminal of 80 columns and sees no other.
"""

import argparse
import io
import os
import pty
import re
import shlex
from pathlib import Path

import pyte  # pyright: ignore[reportMissingImports]
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, LINES = 80, 100


def record(command: list[str]) -> pyte.Screen:
    """Runs a command and returns what its terminal shows in the end."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)

    def read(terminal: int) -> bytes:
        data = os.read(terminal, 65536)
        stream.feed(data)
        return data

    os.environ |= {"COLUMNS": str(COLUMNS), "LINES": str(LINES)}
    status = os.waitstatus_to_exitcode(pty.spawn(command, read))
    assert status == 0, f"the command ended with {status}"
    return screen


def lines(screen: pyte.Screen) -> list[Text]:
    """The lines of a screen in their colors, up to the last that is not empty."""
    shown = []
    for row in range(LINES):
        line = Text()
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            color = {"default": None, "brown": "yellow"}.get(cell.fg, cell.fg.replace("bright", "bright_"))
            known = color if color is None or not color.isalnum() or len(color) != 6 else f"#{color}"
            line.append(cell.data, Style(color=known, bold=cell.bold))
        line.rstrip()
        shown.append(line)
    while shown and not shown[-1].plain:
        shown.pop()
    return shown


def main() -> None:
    """Runs and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ {shlex.join(options.command)}", "bold"))
    for line in lines(record(options.command)):
        console.print(line, no_wrap=True)
    # Pictures on a page load no fonts: the reader's own is taken.
    drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="stml-semi"), flags=re.DOTALL)
    options.output.write_text(drawn.replace("Fira Code", "ui-monospace"), encoding="utf-8")


if __name__ == "__main__":
    main()
