"""File names that are not UTF-8, such as those of an old zip archive, in texts that must be.

Python carries the bytes of such a name as lone surrogates (`surrogateescape`), which Arrow refuses.
"""

import re

_ESCAPED = re.compile(r"[\udc80-\udcff]")
# No file name has a zero byte.
_KEPT = re.compile(r"\0([89a-f][0-9a-f])")


def to_utf8(name: str) -> str:
    """The name as a text that is UTF-8: a zero and two hexadecimal digits for each byte that is not."""
    return name if name.isascii() else _ESCAPED.sub(lambda byte: f"\0{ord(byte[0]) - 0xDC00:02x}", name)


def from_utf8(text: str) -> str:
    """The name again."""
    return _KEPT.sub(lambda byte: chr(0xDC00 + int(byte[1], 16)), text) if "\0" in text else text
