"""`audit`: what is wrong with labeled images."""

import json
import sys
from typing import Annotated

import typer

from stml_semi.cli.terminal import is_main, one_line_errors, quiet_libraries


def audit(
    labeled: Annotated[str, typer.Option(help="Labeled images: like --labeled of `semi`.")],
    model: Annotated[str, typer.Option(help="A run folder, an exported model, a hub id, or a bare backbone.")],
    evaluated: Annotated[
        str | None, typer.Option("--eval", help="Evaluation images, to find copies of them among the labeled ones.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Column with the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the classes.")] = None,
    data_root: Annotated[str | None, typer.Option(help="Where benchmarks are.")] = None,
    threshold: Annotated[float, typer.Option(help="Cosine from which two images are near-duplicates.")] = 0.97,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 256,
    num_workers: Annotated[int | None, typer.Option(help="Processes that decode images.", min=0)] = None,
    count: Annotated[int, typer.Option(help="Findings of each kind that are shown.", min=1)] = 20,
    csv: Annotated[str | None, typer.Option(help="Write all findings to this file.")] = None,
    html: Annotated[str | None, typer.Option(help="Write a page with the images of what is shown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Find labels that are probably wrong, and images that are in two classes or in the evaluation too.

    Example: stml-semi audit --labeled birds --model facebook/dinov2-small --csv findings.csv --html findings.html

    A label is in doubt if the image is nearer to the mean of another class. Take a model that was not trained on these
    labels: one that was has learned the wrong ones as well.
    """
    with one_line_errors():
        quiet_libraries()
        from stml_semi.curation.audit import as_csv, worst
        from stml_semi.curation.audit import audit as look

        found = look(
            model,
            labeled,
            evaluated=evaluated,
            image_column=image_column,
            label_column=label_column,
            data_root=data_root,
            threshold=threshold,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        if csv and is_main():
            from pathlib import Path

            from stml_semi.runtime.failures import writing
            from stml_semi.runtime.files import write_text

            with writing("--csv", Path(csv)):
                write_text(Path(csv), as_csv(found.findings))
        if html and is_main():
            from stml_semi.curation.audit_page import write_page

            write_page(html, found, model, count)
    if not is_main():
        return
    if as_json:
        values = {
            "num_images": found.num_images,
            "num_judged": found.num_judged,
            "num_unreadable": found.num_unreadable,
        }
        print(json.dumps(values | {"findings": [finding._asdict() for finding in found.findings]}))
    else:
        from stml_semi.cli.printing import print_audit

        print_audit(found, worst(found.findings, count))
    for written in filter(None, (csv, html)):
        print(written, file=sys.stderr)
