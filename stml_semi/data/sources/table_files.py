"""Files that are tables, by what their names end in.

Importing this module is cheap: pyarrow and datasets are imported by the functions that need them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stml_semi.data.image_table import image_dataset
from stml_semi.data.sources.columns import Columns, check_unique
from stml_semi.data.sources.csv_tables import read_csv
from stml_semi.data.sources.json_tables import read_json
from stml_semi.data.sources.named_files import data_files

if TYPE_CHECKING:
    from datasets import Dataset

# Parquet files up to this size are read into memory; larger ones become a memory-mapped copy in the cache of datasets.
_IN_MEMORY_BYTES = 2**30


def read_parquet(path: Path, *, table_bytes: int | None = None) -> Columns:
    """
    Args:
        path: of a file.
        table_bytes: size of all files, where the table has several.
    """
    from datasets import Dataset, Features, NamedSplit
    from pyarrow import parquet

    schema = parquet.read_schema(path)
    features = Features.from_arrow_schema(_without_views(schema))

    def read(columns: list[str]) -> "Dataset":
        check_unique(path, schema.names, columns)
        if (table_bytes or path.stat().st_size) > _IN_MEMORY_BYTES:
            files, split = data_files([path]), NamedSplit("train")
            wanted = Features({name: features[name] for name in columns})
            dataset = Dataset.from_parquet(files, split=split, columns=columns, features=wanted)  # pyright: ignore[reportArgumentType]
            assert isinstance(dataset, Dataset)
            return dataset
        table = parquet.ParquetFile(path).read(columns)
        return image_dataset(table.cast(_without_views(table.schema)))

    return Columns(features, read, path.parent)


def _without_views(schema: Any) -> Any:
    """The same columns with texts and bytes as `datasets` knows them: polars and DuckDB write views of such."""
    import pyarrow

    return pyarrow.schema([field.with_type(_without_view(field.type)) for field in schema], schema.metadata)


def _without_view(kind: Any) -> Any:
    import pyarrow

    if kind == pyarrow.string_view():
        return pyarrow.large_string()
    if kind == pyarrow.binary_view():
        return pyarrow.large_binary()
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([field.with_type(_without_view(field.type)) for field in kind])
    return kind


READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
}
