"""`audit`, `suggest` and `groups`: what is wrong with labels, which to add, and what is in a pool."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stml_semi.cli.terminal import is_main, one_line_errors, quiet_libraries

if TYPE_CHECKING:
    from stml_semi.curation.suggest import Suggestion


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
            _write("--csv", csv, as_csv(found.findings))
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


def suggest(
    index: Annotated[str, typer.Option(help="Folder that `embed` wrote: the images to choose from.")],
    labeled: Annotated[
        str | None, typer.Option(help="What is labeled already: like --labeled of `semi`. Default: nothing.")
    ] = None,
    count: Annotated[int, typer.Option(help="Images to label.", min=1)] = 50,
    num_similar: Annotated[int, typer.Option(help="Similar images shown with each, at most.", min=0, max=50)] = 5,
    model: Annotated[str | None, typer.Option(help="Default: the one that made the index.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of --labeled with the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of --labeled with the classes.")] = None,
    data_root: Annotated[str | None, typer.Option(help="Where benchmarks are.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 256,
    num_workers: Annotated[int | None, typer.Option(help="Processes that decode images.", min=0)] = None,
    html: Annotated[str | None, typer.Option(help="Write a page to type labels on, which gives labels.csv.")] = None,
    csv: Annotated[str | None, typer.Option(help="Write a list with an empty label column.")] = None,
    copy_to: Annotated[
        str | None,
        typer.Option(help="Folder for copies of images that are inside tables: a list names files."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Choose which images to label next: typical ones, unlike what is labeled, and unlike each other.

    Example: stml-semi suggest --index index --labeled birds --count 50 --html label.html

    The page shows each image with those that are probably the same. Type labels there and save labels.csv, which holds
    the old labels too: give it to `semi` as --labeled.
    """
    with one_line_errors():
        quiet_libraries()
        from stml_semi.curation.suggest import as_csv, image_files
        from stml_semi.curation.suggest import suggest as choose

        found = choose(
            index,
            labeled,
            count=count,
            num_similar=num_similar,
            model=model,
            image_column=image_column,
            label_column=label_column,
            data_root=data_root,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        if not is_main():
            return
        files = image_files(index, found, copy_to) if html or csv or copy_to else {}
        if csv:
            _write("--csv", csv, as_csv(found, files))
        if html:
            from stml_semi.curation.suggest_page import write_page

            write_page(html, index, found, files)
    if as_json:
        values = found._asdict() | {"suggestions": [_plain(one) for one in found.suggestions]}
        del values["labeled_files"]
        print(json.dumps(values))
    else:
        from stml_semi.cli.printing import print_suggestions

        print_suggestions(found)
    for written in filter(None, (csv, html)):
        print(written, file=sys.stderr)


def groups(
    index: Annotated[str, typer.Option(help="Folder that `embed` wrote.")],
    labeled: Annotated[
        str | None, typer.Option(help="Labeled images, which give names: like --labeled of `semi`. Default: none.")
    ] = None,
    least: Annotated[int, typer.Option(help="Images of a group.", min=1)] = 3,
    count: Annotated[int, typer.Option(help="Groups that are shown.", min=1)] = 20,
    model: Annotated[str | None, typer.Option(help="Default: the one that made the index.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of --labeled with the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of --labeled with the classes.")] = None,
    data_root: Annotated[str | None, typer.Option(help="Where benchmarks are.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 256,
    num_workers: Annotated[int | None, typer.Option(help="Processes that decode images.", min=0)] = None,
    csv: Annotated[str | None, typer.Option(help="Write all groups to this file, a line per image.")] = None,
    html: Annotated[str | None, typer.Option(help="Write a page with typical images of each group.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Find out what is in an index: groups of images that probably show the same thing, however many there are.

    Example: stml-semi groups --index index --labeled birds --html groups.html

    A group is named after the labeled images in it; one without any is new.
    """
    with one_line_errors():
        quiet_libraries()
        from stml_semi.curation.groups import as_csv, find_groups

        found = find_groups(
            index,
            labeled,
            least=least,
            model=model,
            image_column=image_column,
            label_column=label_column,
            data_root=data_root,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        if not is_main():
            return
        if csv:
            _write("--csv", csv, as_csv(found))
        if html:
            from stml_semi.search.answers_page import write_sections

            sections = [
                (f"Group {number}, {group.name or 'new'}: {len(group.rows):,} images", group.rows, group.cosines)
                for number, group in enumerate(found.groups, 1)
            ]
            write_sections(html, index, sections)
    if as_json:
        plain = {"groups": [group._asdict() for group in found.groups]}
        plain |= {"accuracy": found.accuracy and found.accuracy._asdict()}
        print(json.dumps(found._asdict() | plain))
    else:
        from stml_semi.cli.printing import print_pool_groups

        print_pool_groups(found, count)
    for written in filter(None, (csv, html)):
        print(written, file=sys.stderr)


def _plain(one: "Suggestion") -> dict[str, Any]:
    return one._asdict() | {"similar": [hit._asdict() for hit in one.similar]}


def _write(flag: str, path: str, text: str) -> None:
    from pathlib import Path

    from stml_semi.runtime.failures import writing
    from stml_semi.runtime.files import write_text

    with writing(flag, Path(path)):
        write_text(Path(path), text)
