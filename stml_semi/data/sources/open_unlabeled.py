"""What --unlabeled names: a table, or a stream."""

from dataclasses import replace
from pathlib import Path

from stml_semi.data.benchmarks.facts import BENCHMARKS
from stml_semi.data.image_table import ImageTable
from stml_semi.data.sources.columns import image_column_of
from stml_semi.data.sources.named_files import exists, is_pattern, matching, streamed
from stml_semi.data.sources.open_source import load_hub, open_part, open_source
from stml_semi.data.sources.reach import Reach
from stml_semi.data.sources.request import SourceRequest, checked_parts, listed, shares_of, split_spec
from stml_semi.data.sources.shards import shards_of, stream_shards
from stml_semi.data.sources.streams import ImageStream, StreamSource
from stml_semi.runtime.errors import BadInput

# Shards that are read in turn: neighbors in a shard are often alike. Each costs the memory of what it reads ahead: of
# parquet files of the hub that is all of the file.
_SHARDS_IN_TURN = 4
_SHARDS_IN_TURN_HUB = 1
_KINDS = frozenset((".tar", ".parquet", ".jsonl"))
# Rows that tell what the columns are; the image of the first one may be missing.
_ROWS_READ = 20


def open_unlabeled(
    spec: str,
    *,
    stream: bool,
    image_column: str | None,
    data_root: str | None,
    seed: int,
    label_column: str | None = None,
    allow_urls: bool = False,
) -> ImageTable | ImageStream:
    """The images of --unlabeled.

    Args:
        spec: what the user typed.
        stream: whether what can be read as a stream is: webdataset shards, parquet and jsonl files, hub ids. Folders of
            images, benchmarks and lists of paths are small without their images: they stay tables.
        image_column: column of the images or their paths. Default: found by type, then by name.
        data_root: folder of the benchmarks.
        seed: of the order of shards.
        label_column: column of classes that are known; None looks for none.
        allow_urls: whether the paths of a stream may be web addresses; see `reach`.

    Raises:
        BadInput: one line with the flag and the fix.
    """
    flag = "--unlabeled"
    if not stream:
        return open_source(
            spec,
            flag=flag,
            labels="ignored" if label_column is None else "required",
            image_column=image_column,
            label_column=label_column,
            data_root=data_root,
        )
    if label_column is not None:
        raise BadInput("--unlabeled-label-column is for tables: leave it or --unlabeled-stream out")
    whole = SourceRequest(spec, flag, "ignored", image_column, None, data_root)
    parts = checked_parts(whole)
    requests = [replace(whole, spec=part.spec) for part in parts]
    sources = []
    for request in requests:
        with request.reading():
            sources.append(_open(request, seed, allow_urls=allow_urls))
    if not any(isinstance(source, StreamSource) for source in sources):
        raise whole.error(
            "nothing of it can be read as a stream (tar shards, parquet and jsonl files, and hub ids can); leave "
            "--unlabeled-stream out"
        )
    weights = shares_of(parts) or (1.0,)
    if len(weights) < len(sources):
        raise whole.error(
            "nobody knows how long a stream is: say how much of the pool each source gives, as in "
            + ",".join(f"{part.spec}={1 / len(parts):.2g}" for part in parts)
        )
    return ImageStream(spec, tuple(sources), weights)


def _open(request: SourceRequest, seed: int, *, allow_urls: bool) -> StreamSource | ImageTable:
    from datasets import Dataset, Image

    source, split = split_spec(request.spec)
    files = [] if split or source in BENCHMARKS else _files(source)
    if files and files[0].suffix.lower() == ".tar":
        dataset = stream_shards(files)
    elif files:
        dataset = streamed(files)
    elif source in BENCHMARKS or exists(source) or is_pattern(source):
        return open_part(request)
    else:
        dataset = load_hub(request, source, split or "train", streaming=True)
    features = dataset.features
    if features is None:  # Nobody wrote down what the columns are: the first rows tell.
        features = Dataset.from_list(list(dataset.take(_ROWS_READ))).features
    column = image_column_of(request, features)
    if column is None:
        raise request.error(
            f"no image column among {listed(list(features))}; name it with {request.column_flag('image')}"
        )
    dataset = dataset.select_columns([column])
    if isinstance(features[column], Image):
        dataset = dataset.cast_column(column, Image(decode=False))
    first = next(iter(dataset), None)
    if first is None:
        raise request.error("holds no rows; give a stream of images")
    folder, in_turn = (files[0].parent, _SHARDS_IN_TURN) if files else (None, _SHARDS_IN_TURN_HUB)
    return StreamSource(request.spec, dataset, column, Reach(folder, allow_urls), seed=seed, in_turn=in_turn)


def _files(source: str) -> list[Path]:
    """Files that can be read as a stream: tar shards; one parquet or jsonl file, a pattern, or a folder of them."""
    if shards := shards_of(source):
        return shards
    path = Path(source).expanduser()
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    else:
        found = list(matching(source))
    kinds = {file.suffix.lower() if file.is_file() else "" for file in found}
    return found if len(kinds) == 1 and kinds <= _KINDS else []
