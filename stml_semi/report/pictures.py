"""Small images for the page, each in it once."""

from stml_semi.data.image_table import ImageTable
from stml_semi.data.images import BadImage
from stml_semi.data.thumbnails import thumbnail

SIDE = 128
_QUALITY = 50


class Pictures:
    """Hands out numbers for images; the page keeps their data in one list."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], int | None] = {}
        self._numbers: dict[str, int] = {}

    @property
    def uris(self) -> list[str]:
        """By number."""
        return list(self._numbers)

    def add(self, table: ImageTable, row: int) -> int | None:
        """The number of an image of a table; None if it cannot be read."""
        key = (table.name, int(row))
        if key not in self._known:
            try:
                uri = thumbnail(table.source(int(row)), SIDE, quality=_QUALITY).uri
            except BadImage:
                self._known[key] = None
            else:
                self._known[key] = self._numbers.setdefault(uri, len(self._numbers))
        return self._known[key]
