"""`embed`, `search`, `browse`, `dedup`: an index of embeddings and what it is good for."""

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from stml_semi.cli.terminal import among, is_main, one_line_errors, print_outcome, quiet_libraries

if TYPE_CHECKING:
    from stml_semi.config import Fit


def embed(
    model: Annotated[str, typer.Option(help="A run folder, an exported model, a hub id, or a bare backbone.")],
    data: Annotated[str, typer.Option(help="Images: like --unlabeled of `semi`.")],
    output: Annotated[str, typer.Option(help="Folder of the index; one there is finished, or brought up to date.")],
    format: Annotated[
        str, typer.Option(help="parquet or npy also writes a copy for programs that do not read Lance.")
    ] = "lance",
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="Prepare `search --backend approximate`, for a million images and more."),
    ] = False,
    image_column: Annotated[str | None, typer.Option(help="Column of --data with the images.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Of a bare backbone: side of its input in pixels. Default: its own.", min=8)
    ] = None,
    fit: Annotated[
        str,
        typer.Option(help="Of a bare backbone: crop, pad or squash images of another shape. Default: what it does."),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 256,
    num_workers: Annotated[int | None, typer.Option(help="Processes that decode images.", min=0)] = None,
    part_size: Annotated[
        int, typer.Option(help="Images between two writes: memory, and what an interruption costs.", min=1)
    ] = (16384),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a sentence.")] = False,
) -> None:
    """Embed images into an index: a table of embeddings for `search` and `dedup`, or for yourself.

    Run again, it adds what is new, embeds what has changed and deletes what is gone.

    Example: stml-semi embed --model runs/demo --data photos/ --output index
    """
    with one_line_errors():
        quiet_libraries()
        from stml_semi.search.copies import FORMATS
        from stml_semi.search.embed import embed_source

        among("--format", format, *FORMATS)
        made = embed_source(
            model,
            data,
            output,
            format=next(known for known in FORMATS if known == format),
            approximate=approximate,
            image_column=image_column,
            image_size=image_size,
            fit=cast("Fit", fit),
            batch_size=batch_size,
            num_workers=num_workers,
            part_size=part_size,
        )
    before = made.num_rows - made.num_embedded - made.num_bad
    counts = {
        "of them embedded before": before,
        "changed": made.num_changed,
        "new": made.num_new,
        "gone": made.num_gone,
    }
    first = made.num_new == made.num_rows and not made.num_gone
    known = "" if first else "".join(f", {count} {what}" for what, count in counts.items() if count > 0)
    bad = f", {made.num_bad} unreadable (bad_images.jsonl)" if made.num_bad else ""
    near = f"; approximate search finds {made.recall:.1%} of the ten nearest" if made.recall is not None else ""
    for sentence in made.skipped if is_main() else ():
        print(f"warning: {sentence}", file=sys.stderr)
    print_outcome(f"{output}: {made.num_rows} images{known}{bad}{near}", made._asdict(), as_json)


def search(
    index: Annotated[str, typer.Option(help="Folder that `embed` wrote.")],
    images: Annotated[list[str] | None, typer.Argument(help="Image files.", metavar="IMAGE...")] = None,
    row: Annotated[list[int] | None, typer.Option(help="A row of the index as a query; may be repeated.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the one that made the index.")] = None,
    k: Annotated[int, typer.Option("--k", help="Answers per query.", min=1)] = 10,
    where: Annotated[
        str | None,
        typer.Option(
            help="""Only among rows that fulfil this condition (SQL: row, image, label), e.g. "label = 'wren'"."""
        ),
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Order the 100 nearest by whether they are near to each other too.")
    ] = False,
    backend: Annotated[
        str, typer.Option(help="exact; faiss where it is installed; approximate after `embed --approximate`.")
    ] = "exact",
    min_precision: Annotated[
        float | None,
        typer.Option(help="Leave out what is less similar than a match with this share of right answers, e.g. 0.95."),
    ] = None,
    html: Annotated[str | None, typer.Option(help="Write a page with images to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of tables.")] = False,
) -> None:
    """Find the images of an index that are nearest to given ones, exactly.

    Example: stml-semi search --index index query.jpg --html answers.html
    """
    with one_line_errors():
        quiet_libraries()
        from stml_semi.search.nearest import Backend
        from stml_semi.search.query import search as find

        among("--backend", backend, *get_args(Backend))
        answers = find(
            index,
            images or (),
            rows=row or (),
            model=model,
            k=k,
            where=where,
            rerank=rerank,
            backend=cast(Backend, backend),
            min_precision=min_precision,
        )
        if html:
            from stml_semi.search.answers_page import write_page

            write_page(html, index, answers)
    if html and is_main():
        print(f"{html}: a page with all images in it", file=sys.stderr)
    if as_json:
        print(json.dumps([{"query": a.query, "hits": [hit._asdict() for hit in a.hits]} for a in answers]))
        return
    from stml_semi.cli.printing import print_answers

    print_answers(answers)


def browse(
    index: Annotated[str, typer.Option(help="Folder that `embed` wrote.")],
    model: Annotated[str | None, typer.Option(help="Default: the one that made the index.")] = None,
    k: Annotated[int, typer.Option("--k", help="Neighbors per image.", min=1, max=1000)] = 20,
    host: Annotated[
        str, typer.Option(help="Address to listen on. The default can be reached from this machine only.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65535)] = 8765,
) -> None:
    """Open a page on this machine where one drops an image and sees its neighbors.

    Example: stml-semi browse --model runs/demo --index index

    Images that are dropped are looked at in memory and not kept. Ctrl+C ends it.
    """
    with one_line_errors():
        quiet_libraries()
        from stml_semi.search.browse.finder import Finder
        from stml_semi.search.browse.server import is_loopback, serve

        server = serve(Finder(index, model, k=k), host, port)
    if not is_loopback(host):
        print("warning: whoever reaches this address can look through the indexed images", file=sys.stderr)
    print(f"{server.url} (Ctrl+C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt), server:
        server.serve_forever()


def dedup(
    index: Annotated[str, typer.Option(help="Folder that `embed` wrote.")],
    threshold: Annotated[float, typer.Option(help="Cosine from which two images are near-duplicates.")] = 0.97,
    html: Annotated[str | None, typer.Option(help="Write a page with the images of the largest groups.")] = None,
    csv: Annotated[str | None, typer.Option(help="Write a list of what to keep and what to remove.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of text.")] = False,
) -> None:
    """List groups of near-duplicates in an index, largest first: an image to keep, and those that are near to it.

    Example: stml-semi dedup --index index --threshold 0.98 --html duplicates.html --csv duplicates.csv
    """
    with one_line_errors():
        quiet_libraries()
        from stml_semi.search.duplicates import as_csv, find_duplicates

        groups = find_duplicates(index, threshold=threshold)
        if html:
            from stml_semi.search.answers_page import write_groups

            write_groups(html, index, groups)
        if csv:
            from pathlib import Path

            from stml_semi.runtime.failures import writing
            from stml_semi.runtime.files import write_text

            with writing("--csv", Path(csv)):
                write_text(Path(csv), as_csv(groups))
    if as_json:
        print(json.dumps([group._asdict() for group in groups]))
        return
    from stml_semi.cli.printing import print_groups

    print_groups(groups)
    for written in filter(None, (html, csv)):
        print(written)
