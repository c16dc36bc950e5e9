"""What an error tells to do can be done: the flags that it names are flags of the command."""

import re

import pytest
import typer
from helpers.command_line import call

from stml_semi.cli.app import app

COMMANDS = {
    "data info": ["data", "info", "{}"],
    "evaluate": ["evaluate", "--model", "tiny-resnet", "--data", "{}"],
    "evaluate --gallery": ["evaluate", "--model", "tiny-resnet", "--data", "kanji:train", "--gallery", "{}"],
    "embed": ["embed", "--model", "tiny-resnet", "--output", "index", "--data", "{}"],
    "sup": ["sup", "--labeled", "{}"],
    "unsup": ["unsup", "--unlabeled", "{}"],
    "sup --eval": ["sup", "--labeled", "kanji", "--eval", "{}"],
}


def flags_of(arguments: list[str]) -> set[str]:
    command = typer.main.get_command(app)
    for name in arguments:
        if not hasattr(command, "commands"):
            break
        command = command.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    return {flag for parameter in command.params for flag in parameter.opts}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_table_without_images(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("what,ever\na,b\n")
    arguments = [part.format("t.csv") for part in command]
    code, _, text = call(monkeypatch, capsys, *arguments)
    assert code == 2
    named = set(re.findall(r"(?<= )--?[a-z-]+-column", text))
    assert named
    assert named <= flags_of(arguments), text
