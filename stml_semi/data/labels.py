"""What a class is called: one normal form, wherever names of classes are read."""

import re
import unicodedata
from typing import Any

_WHOLE_FLOAT = re.compile(r"(-?(?:0|[1-9]\d*))\.0")


def class_name(value: Any) -> str | None:
    """The name of a class as it is compared and shown; None if there is no label.

    Missing are None, NaN, and text of nothing but white space. One class are `1` and `1.0`, since pandas turns whole
    numbers into the latter as soon as one of them is missing; composed and decomposed letters, since macOS stores file
    names in the other form; and names that differ in the white space around them.
    """
    if value is None or value != value:  # NaN differs from itself.
        return None
    name = unicodedata.normalize("NFC", str(value)).strip()
    whole = _WHOLE_FLOAT.fullmatch(name)
    return (whole[1] if whole else name) or None
