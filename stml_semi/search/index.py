"""An index on disk: embeddings with row ids in parts, so that neither writing nor searching needs them all at once.

    index.json                  what was embedded with what; `complete` once all parts are there
    part-00000.safetensors      embeddings (n, d) float32, unit length, and rows (n,) int64 of the source
    part-00000.ids.jsonl        a line per row: {"row": 17, "image": "birds/17.jpg"}
    part-00000.keys             what the images were when they were embedded; see `changes`
    bad_images.jsonl            images that could not be read, with their rows; they are in no part
    .update/                    new parts of an index that is brought up to date, until all of them are there

With `parquet` a part is one file with columns row, image and embedding. With `npy` it is a bare array beside its ids.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stml_semi.data.any_image import OneImage
from stml_semi.runtime.errors import BadInput, one_line
from stml_semi.runtime.files import read_json_lines, replacing, write_json_lines, write_text
from stml_semi.runtime.finite import check_lengths
from stml_semi.runtime.names import from_utf8, to_utf8

if TYPE_CHECKING:
    from stml_semi.search.query import Hit

Format = Literal["safetensors", "parquet", "npy"]
FORMATS: tuple[Format, ...] = ("safetensors", "parquet", "npy")


class Part(NamedTuple):
    """Some consecutive readable rows of a source."""

    embeddings: Tensor
    """(n, d) float32, unit length."""
    rows: NDArray[np.int64]
    """(n,), rising."""
    images: "Sequence[str] | _Names"
    """(n,) how a user finds each image."""


class IndexInfo(NamedTuple):
    """What index.json says."""

    model: str
    fingerprint: str
    """Of the model's weights: embeddings of different models do not compare."""
    data: str
    image_column: str | None
    num_rows: int
    """Rows of the source, readable or not."""
    sample: list[str]
    """First, middle and last image of the source."""
    part_size: int
    """Rows of the source in each part."""
    format: Format
    num_features: int
    complete: bool = False
    commit: str | None = None
    """Of the hub, at which the model was opened; None of a local one."""
    image_size: int | None = None
    """Side of the input that a bare backbone was opened for; None: its own."""

    @property
    def num_parts(self) -> int:
        return -(-self.num_rows // self.part_size)


class Index:
    """A folder of parts. Reading is lazy: one part at a time is in memory."""

    def __init__(self, folder: str | Path, info: IndexInfo) -> None:
        self.folder: Path = Path(folder)
        self.info: IndexInfo = info
        self.bad_images: Path = self.folder / "bad_images.jsonl"

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """
        Raises:
            BadInput: no index there, or an unfinished one.
        """
        info = read_info(Path(folder))
        if info is None:
            raise BadInput(f"--index {folder}: holds no index; make one with `embed --output {folder}`")
        if not info.complete:
            raise BadInput(f"--index {folder}: is not finished; run the same `embed` command again to go on")
        return cls(folder, info)

    def search(
        self,
        queries: OneImage | Iterable[OneImage] | NDArray[np.float32] | Tensor,
        k: int = 10,
        *,
        model: str | None = None,
        min_precision: float | None = None,
    ) -> "list[list[Hit]]":
        """The nearest rows of each query, nearest first: a list for each, for a single one too.

        Args:
            queries: one image or many, as `Retriever.encode` takes them; or embeddings of this index's model, (d,) or
                (Q, d) of floating point.
            k: hits per query; all there are, if fewer.
            model: default: the one that made the index. It stays open for the next search.
            min_precision: leave out what is less similar than a match of this precision (0..1), by the thresholds of
                the model.

        Raises:
            TypeError: something that is no image.
            BadInput: an image cannot be read, embeddings do not fit, another model than the index's, or the index is
                damaged.
        """
        from stml_semi.search.query import find  # It imports this file.

        return find(self, queries, k, model=model, min_precision=min_precision)

    def parts(self) -> Iterator[Part]:
        """All parts in order of their rows; parts without readable images are left out.

        Raises:
            BadInput: a part is missing or damaged.
        """
        for number in range(self.info.num_parts):
            part = self.part(number)
            if len(part.rows):
                yield part

    def part(self, number: int) -> Part:
        """
        Raises:
            BadInput: it is missing or damaged, or may not be read.
        """
        what, fix = self._path(number).name, "delete that file and run the same `embed` command again"
        try:
            with _readable(self.folder):
                self._path(number).open("rb").close()  # Safetensors calls a file that may not be read missing.
            part = _READ[self.info.format](self._path(number))
            if part.embeddings.shape != (len(part.rows), self.info.num_features):
                raise ValueError(f"embeddings of shape {tuple(part.embeddings.shape)}")
        except BadInput:
            raise
        except Exception as error:  # Readers of three formats raise what they like on damaged files.
            raise BadInput(f"--index {self.folder}: {what} cannot be read ({one_line(error)}): {fix}") from None
        check_lengths(part.embeddings, f"--index {self.folder}: {what}", lambda i: part.images[i], fix)
        return part

    def has(self, number: int) -> bool:
        """Whether a part was written."""
        return self._path(number).is_file()

    def keys(self, number: int) -> NDArray[np.int64] | None:
        """(n, 2) keys of all rows of a part, readable or not; None if it was written without."""
        path = _keys(self._path(number))
        return np.fromfile(path, np.int64).reshape(-1, 2) if path.is_file() else None

    def key(self, row: int) -> tuple[int, int] | None:
        """The key of one row; None if it was written without."""
        number, place = divmod(row, self.info.part_size)
        path = _keys(self._path(number))
        found = np.fromfile(path, np.int64, 2, offset=16 * place).tolist() if path.is_file() else []
        return (found[0], found[1]) if len(found) == 2 else None

    def write(self, number: int, part: Part, keys: NDArray[np.int64] | None = None) -> None:
        """Writes a part; what has its final name is complete, and its keys and names are its own.

        Args:
            number: of the part.
            part: its readable rows.
            keys: of all its rows; without them the next `embed` cannot know what changed, and embeds them again.
        """
        path = self._path(number)
        self.remove(number)
        if keys is not None:
            with replacing(_keys(path)) as partial:
                keys.tofile(partial)
        with replacing(path) as partial:
            _WRITE[self.info.format](partial, part)
            if self.info.format != "parquet":
                named = zip(part.rows, part.images, strict=True)
                write_json_lines(_ids(path), ({"row": int(row), "image": image} for row, image in named))

    def remove(self, number: int) -> None:
        """Removes a part, if it is there."""
        path = self._path(number)
        for file in (path, _keys(path), _ids(path)):
            file.unlink(missing_ok=True)

    def take(self, number: int, other: "Index") -> None:
        """Moves a part of another index here, in place of the one of its number."""
        self.remove(number)
        path, source = self._path(number), other._path(number)
        # The part itself comes last: where it is, the rest is its own.
        for make in (_keys, _ids, Path):
            with contextlib.suppress(FileNotFoundError):  # Parquet has its names inside.
                make(source).replace(make(path))

    def save_info(self) -> None:
        """Writes index.json."""
        write_text(self.folder / "index.json", json.dumps(self.info._asdict(), indent=1, ensure_ascii=False))

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.{self.info.format}"


def read_info(folder: Path) -> IndexInfo | None:
    """index.json of a folder, or None if it holds no index.

    Raises:
        BadInput: it may not be read.
    """
    try:
        with _readable(folder):
            return IndexInfo(**json.loads((folder / "index.json").read_text(encoding="utf-8")))
    except BadInput:
        raise
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """
    Raises:
        BadInput: a file of an index may not be read, which is no damage.
    """
    try:
        yield
    except PermissionError as error:
        raise BadInput(
            f"index {folder}: {Path(error.filename or folder).name} may not be read (permission denied); make it "
            f"readable with chmod, or choose another index"
        ) from None


def _ids(path: Path) -> Path:
    return path.with_suffix(".ids.jsonl")


def _keys(path: Path) -> Path:
    return path.with_suffix(".keys")


def _write_safetensors(path: Path, part: Part) -> None:
    from safetensors.torch import save_file

    save_file({"embeddings": part.embeddings.contiguous(), "rows": torch.from_numpy(part.rows)}, path)


def _read_safetensors(path: Path) -> Part:
    from safetensors.torch import load_file

    tensors = load_file(path)
    return Part(tensors["embeddings"], tensors["rows"].numpy(), _Names(_ids(path), len(tensors["rows"])))


def _write_npy(path: Path, part: Part) -> None:
    with path.open("wb") as file:
        np.save(file, part.embeddings.numpy())


def _read_npy(path: Path) -> Part:
    embeddings = torch.from_numpy(np.load(path))
    names = _Names(_ids(path), len(embeddings))
    return Part(embeddings, np.array([line["row"] for line in names.lines], dtype=np.int64), names)


def _write_parquet(path: Path, part: Part) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    width = part.embeddings.shape[1]
    values = pa.FixedSizeListArray.from_arrays(pa.array(part.embeddings.numpy().reshape(-1)), width)
    columns = {
        "row": pa.array(part.rows),
        "image": pa.array(map(to_utf8, part.images), pa.string()),
        "embedding": values,
    }
    parquet.write_table(pa.table(columns), path)


def _read_parquet(path: Path) -> Part:
    from pyarrow import parquet

    table = parquet.ParquetFile(path).read().combine_chunks()
    column = table.column("embedding").combine_chunks()
    flat = column.flatten().to_numpy()
    embeddings = torch.from_numpy(flat.reshape(len(column), column.type.list_size).copy())
    images = [from_utf8(image) for image in table.column("image").to_pylist()]
    return Part(embeddings, table.column("row").to_numpy().copy(), images)


class _Names:
    """Names of a part, read when the first is asked for: a search shows few of them."""

    def __init__(self, path: Path, count: int) -> None:
        self.path: Path = path
        self.count: int = count
        self._lines: list[dict[str, Any]] | None = None

    @property
    def lines(self) -> list[dict[str, Any]]:
        """
        Raises:
            BadInput: some are missing or damaged.
        """
        if self._lines is None:
            with _readable(self.path.parent):
                lines = [line for line in read_json_lines(self.path) if line.keys() >= {"row", "image"}]
            if len(lines) != self.count:
                raise BadInput(
                    f"--index {self.path.parent}: {self.path.name} has {len(lines)} of {self.count} names: delete "
                    f"{self.path.name.removesuffix('.ids.jsonl')}.* and run the same `embed` command again"
                )
            self._lines = lines
        return self._lines

    def __iter__(self) -> Iterator[str]:
        return (line["image"] for line in self.lines)

    def __getitem__(self, place: int) -> str:
        return self.lines[place]["image"]


_WRITE = {"safetensors": _write_safetensors, "parquet": _write_parquet, "npy": _write_npy}
_READ = {"safetensors": _read_safetensors, "parquet": _read_parquet, "npy": _read_npy}
