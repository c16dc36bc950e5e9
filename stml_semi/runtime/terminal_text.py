"""What reaches a terminal. Names of files, classes and columns come from data, and may hold what a terminal obeys."""

import re
from collections.abc import Iterable, Mapping
from typing import IO, Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# Control characters (escape sequences begin with one, a carriage return hides what was said before), marks that turn
# the order of writing around, separators of lines, and what is no character at all.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object) -> str:
    """The text in one line, with characters that a terminal would obey spelled out, such as \\x1b."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


class PlainConsole(Console):
    """Prints text as it is: neither markup nor emoji names nor anything that a terminal would obey."""

    def __init__(
        self,
        *,
        stderr: bool = False,
        file: IO[str] | None = None,
        quiet: bool = False,
        soft_wrap: bool = False,
        width: int | None = None,
    ) -> None:
        super().__init__(
            stderr=stderr,
            file=file,
            quiet=quiet,
            soft_wrap=soft_wrap,
            width=width,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Text as it is laid out: what is spelled out needs more room."""
        return super().render_str(_in_lines(text), **options)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, piece by piece; rich's own pieces of control stay."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else _in_lines(text), style, control)


def lines_table(lines: Mapping[str, str]) -> Table:
    """Named lines below each other, as wide as the console."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, text in lines.items():
        table.add_row(name, text)
    return table


def _in_lines(text: str) -> str:
    return "\n".join(map(visible, text.split("\n")))
