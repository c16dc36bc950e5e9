"""Names that not every place can hold: file names that are not UTF-8, and scripts that a font may lack.

Python carries the bytes of a file name that is not UTF-8, such as one of an old zip archive, as lone surrogates
(`surrogateescape`), which Arrow refuses.
"""

import re

_ESCAPED = re.compile(r"[\udc80-\udcff]")
# No file name has a zero byte.
_KEPT = re.compile(r"\0([89a-f][0-9a-f])")

# Latin, Greek and Cyrillic with their marks and punctuation: what every font has.
_COMMON = re.compile("[\u0000-\u052f\u1e00-\u206f\u20a0-\u214f]")
_MOST_CODE_POINTS = 4


def to_utf8(name: str) -> str:
    """The name as a text that is UTF-8: a zero and two hexadecimal digits for each byte that is not."""
    return name if name.isascii() else _ESCAPED.sub(lambda byte: f"\0{ord(byte[0]) - 0xDC00:02x}", name)


def from_utf8(text: str) -> str:
    """The name again."""
    return _KEPT.sub(lambda byte: chr(0xDC00 + int(byte[1], 16)), text) if "\0" in text else text


def with_code_points(name: str) -> str:
    """A name with the code points of the characters that the reader's fonts may lack, if there are any.

    Those of the first four characters tell names apart; a name that says its code points already stays as it is.
    """
    rare = [char for char in name if not _COMMON.match(char)]
    if not rare or "U+" in name:
        return name
    points = " ".join(f"U+{ord(char):04X}" for char in rare[:_MOST_CODE_POINTS])
    return f"{name} ({points}{' ...' if len(rare) > _MOST_CODE_POINTS else ''})"
