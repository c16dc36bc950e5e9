"""Fenced blocks of the documentation, and how each kind of command is run or at least parsed."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import typer
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from torch.distributed.run import get_args_parser

from stml_semi.cli import app as cli
from stml_semi.training.resolve import resolve

ROOT = Path(__file__).parents[2]
FOLLOWED = [ROOT / "README.md", ROOT / "docs" / "own-folder.md"]
"""Pages that test_stranger follows as they are printed."""
TRAINING = ("semi", "unsup", "sup")
SMALL = [
    *("--labeled-batch-size", "8", "--images-per-class", "2", "--unlabeled-batch-size", "20", "--pool-size", "40"),
    *("--max-steps", "2", "--label-warmup-steps", "1", "--lr-warmup-steps", "0", "--log-every", "1"),
    *("--num-workers", "0", "--image-size", "32"),
]
"""Added to every command that trains: the run stays the one that is shown, and takes seconds."""


class Block(NamedTuple):
    """A fenced block."""

    language: str
    info: str
    """What follows the language: `no-run: REASON`, or the name of the file that the block is."""
    text: str
    line: int


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    blocks: list[Block] = []
    opened: tuple[str, str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif opened is None:
            language, _, info = line.removeprefix("```").strip().partition(" ")
            opened, lines = (language, info.strip(), number), []
        else:
            blocks.append(Block(opened[0], opened[1], "\n".join(lines), opened[2]))
            opened, lines = None, []
    assert opened is None, f"{page}: a block is not closed"
    return blocks


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The lines of a shell block, continued ones joined, without comments."""
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if shlex.split(line, comments=True)]


def parse_only(line: str) -> None:
    """Checks the flags of a line that cannot be run here: ours, accelerate's and torchrun's."""
    launcher, found, ours = line.replace("'", "").partition("cli.py ")
    words = shlex.split(launcher, comments=True)
    if words[:2] == ["accelerate", "launch"]:
        launch_command_parser().parse_args([*words[2:], "cli.py"])
    if "torchrun" in words:
        get_args_parser().parse_args([*words[words.index("torchrun") + 1 :], "cli.py"])
    if not found and words[:1] == ["stml-semi"]:
        ours = shlex.join(words[1:])
    if ours:
        check_flags(shlex.split(ours.replace('"', ""), comments=True))


def check_flags(arguments: list[str]) -> None:
    """Parses arguments of cli.py, without running anything; what trains is also validated as far as it is given.

    Raises:
        AssertionError: no such command.
        Exception: typer's, for an option that does not exist.
        ValueError: options that do not fit together.
    """
    command: Any = typer.main.get_command(cli.app)
    rest = list(arguments)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    values, _, _ = command.make_parser(command.context_class(command)).parse_args(rest)
    if command.name in TRAINING and values.get("labeled", values.get("unlabeled")) and not values.get("recipe"):
        needed = {"semi": {"labeled", "unlabeled"}, "sup": {"labeled"}, "unsup": {"unlabeled"}}[command.name]
        if needed <= values.keys():
            resolve(command.name, values)


def run_line(line: str, *, dry: bool) -> None:
    """Runs a line of a shell block in the working directory; Python programs in this process.

    Args:
        line: a command without shell syntax if it runs Python, else anything.
        dry: a command that trains ends with its plan.
    """
    words = shlex.split(os.path.expandvars(line), comments=True)
    if words[:2] == ["accelerate", "launch"]:
        split = words.index("cli.py")
        launch_command_parser().parse_args([*words[2:split], "cli.py"])
        words = ["python", *words[split:]]
    if words[0] == "stml-semi":
        words = ["python", "cli.py", *words[1:]]
    if words[0] != "python" or not words[1].endswith(".py"):
        subprocess.run(["bash", "-euc", line], check=True, capture_output=True, text=True)
        return
    if words[1] == "cli.py" and words[2] in TRAINING:
        words += ["--num-workers", "0"] if "--resume" in words else SMALL
        words += ["--dry-run", "--output-dir", "planned"] if dry else []
        words += ["--eval", "kanji:train"] if "kanji" in line and "--test-classes" not in words else []
    elif words[1] == "cli.py":
        words = [word.replace("kanji:test", "kanji:train") for word in words]
    _run_python([os.path.expanduser(word) for word in words[1:]])


def _run_python(words: list[str]) -> None:
    arguments, sys.argv = sys.argv, words
    code: object = 0
    try:
        if words[0] == "cli.py":  # It would end this process.
            cli.run()
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = arguments
        AcceleratorState._reset_state(reset_partial_state=True)
    assert code == 0, f"{shlex.join(words)} ended with {code}"
