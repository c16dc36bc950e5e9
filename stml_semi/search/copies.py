"""Copies of an index for programs that do not read Lance."""

import csv
from typing import Literal

import numpy as np

from stml_semi.runtime.files import replacing
from stml_semi.search.index import KEYS, PART_SIZE, Index

Format = Literal["lance", "parquet", "npy"]
FORMATS: tuple[Format, ...] = ("lance", "parquet", "npy")


def write_copy(index: Index, format: Format) -> None:
    """Writes all readable rows beside the table, one part in memory at a time; nothing for "lance".

    Args:
        index: a complete one.
        format: "parquet": embeddings.parquet with the columns of the table. "npy": embeddings.npy, and images.csv with
            a line for each of its rows.
    """
    if format == "lance":
        return
    columns = [name for name in index.table.schema.names if name not in ("reason", *KEYS)]
    batches = index.table.to_batches(columns=columns, filter="reason IS NULL", batch_size=PART_SIZE)
    folder = index.folder
    if format == "parquet":
        from pyarrow import parquet

        schema = index.table.scanner(columns=columns).projected_schema
        with replacing(folder / "embeddings.parquet") as path, parquet.ParquetWriter(path, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return
    count = index.table.count_rows("reason IS NULL")
    with (
        replacing(folder / "embeddings.npy") as array,
        replacing(folder / "images.csv") as names,
        names.open("w", newline="", encoding="utf-8") as file,
    ):
        embeddings = np.lib.format.open_memmap(array, "w+", np.float32, (count, index.info.num_features))
        writer, start = csv.writer(file, lineterminator="\n"), 0
        writer.writerow(["row", "image", "label"])
        for batch in batches:
            end = start + len(batch)
            embeddings[start:end] = batch.column("embedding").flatten().to_numpy().reshape(len(batch), -1)
            lines = zip(*(batch.column(name).to_pylist() for name in ("row", "image", "label")), strict=True)
            writer.writerows((row, image, label or "") for row, image, label in lines)
            start = end
        embeddings.flush()
