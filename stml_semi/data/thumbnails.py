"""Small copies of images, for pages."""

import base64
import io
from typing import NamedTuple

from PIL import Image, features

from stml_semi.data.images import ImageSource, read_image


class Thumbnail(NamedTuple):
    """An encoded image."""

    data: bytes
    kind: str
    """Its media type, such as image/webp."""

    @property
    def uri(self) -> str:
        """The image as an address, for pages that are one file."""
        return f"data:{self.kind};base64,{base64.b64encode(self.data).decode('ascii')}"


def thumbnail(source: ImageSource, side: int, *, quality: int = 80) -> Thumbnail:
    """An image made smaller, to at most side x side pixels.

    Args:
        source: what `read_image` takes.
        side: pixels.
        quality: of the encoder, 0..100.

    Raises:
        BadImage: it cannot be read.
    """
    image = read_image(source)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    form = "WEBP" if features.check("webp") else "JPEG"
    file = io.BytesIO()
    image.save(file, form, quality=quality)
    return Thumbnail(file.getvalue(), f"image/{form.lower()}")
