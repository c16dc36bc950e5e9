"""`evaluate`, `export`, `push`, `report`: what one does with a trained model."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from stml_semi.cli.terminal import DATA_ROOT, among, is_main, one_line_errors, print_outcome, quiet_libraries

if TYPE_CHECKING:
    from stml_semi.config import Fit


def evaluate(
    model: Annotated[str, typer.Option(help="A run folder, an exported model, a hub id, or a bare backbone.")],
    data: Annotated[str, typer.Option(help="Labeled images: like --labeled of `semi`, e.g. kanji:test.")],
    gallery: Annotated[
        str | None, typer.Option(help="Labeled images to look those of --data up in. Default: in one another.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of both with the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of both with the class.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Of a bare backbone: side of its input in pixels. Default: its own.", min=8)
    ] = None,
    fit: Annotated[
        str,
        typer.Option(help="Of a bare backbone: crop, pad or squash images of another shape. Default: what it does."),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 256,
    num_workers: Annotated[int | None, typer.Option(help="Processes that decode images.", min=0)] = None,
    data_root: Annotated[str | None, typer.Option(help=DATA_ROOT)] = None,
    k: Annotated[str | None, typer.Option("--k", help="Neighbors for recall, such as 1,10,100.", metavar="N,N")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Run the backbone in bfloat16.")] = False,
    confidence: Annotated[
        float | None, typer.Option(help="Percent: adds confidence intervals from a bootstrap over queries.")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Add a table of the worst classes.")] = False,
    open_set: Annotated[
        bool,
        typer.Option("--open-set", help="Add how similar a match has to be, if half of the queries have none."),
    ] = False,
    save_thresholds: Annotated[
        bool, typer.Option("--save-thresholds", help="Put these thresholds into the model, for `search`.")
    ] = False,
    truncate_dims: Annotated[
        str | None,
        typer.Option(help="Add the scores of so many leading dimensions, such as 64,128,256.", metavar="N,N"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Score a model on labeled images: recall@k, R-precision and MAP@R, each image against all others, or against
    those of --gallery.

    Example: stml-semi evaluate --model runs/demo --data kanji:test
    """
    with one_line_errors():
        quiet_libraries()
        from stml_semi.sharing.evaluate import evaluate_model

        line = evaluate_model(
            model,
            data,
            gallery=gallery,
            image_column=image_column,
            label_column=label_column,
            image_size=image_size,
            fit=cast("Fit", fit),
            batch_size=batch_size,
            num_workers=num_workers,
            data_root=data_root,
            recall_at=k,
            bf16=bf16,
            confidence=confidence,
            per_class=per_class,
            open_set=open_set,
            save_thresholds=save_thresholds,
            truncate_dims=truncate_dims,
        )
    if not is_main():
        return
    if as_json:
        print(json.dumps(line))
    else:
        from stml_semi.cli.printing import print_open_set, print_scores, print_truncated, print_worst_classes

        title = f"{line['data']}: {line['num_queries']:,} queries among {line['num_gallery']:,} images"
        print_scores(title, {model: line})
        if "truncated" in line:
            print_truncated(line["truncated"])
        if per_class:
            print_worst_classes(line["per_class"])
        if "thresholds" in line:
            print_open_set(line["thresholds"], line["fnmr"])


def export(
    run: Annotated[str, typer.Argument(help="A run folder, finished or not.", metavar="RUN")],
    output: Annotated[str, typer.Option(help="Folder of the model: new or empty.")],
    weights: Annotated[
        str, typer.Option(help="student (or what validation classes chose), or teacher: its moving average.")
    ] = "student",
    license: Annotated[str | None, typer.Option(help="For the card. Default: the base model's, if known.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the stored weights: float32; bfloat16 or float16 for half.")] = (
        "float32"
    ),
    format: Annotated[str, typer.Option(help="safetensors, or onnx: embedder.onnx beside it.")] = "safetensors",
    truncate_dim: Annotated[
        int | None, typer.Option(help="Dimensions that embeddings keep, the leading ones. Default: all.", min=1)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that --output holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a sentence.")] = False,
) -> None:
    """Write a run's newest checkpoint as a model that sentence-transformers and transformers open.

    Example: stml-semi export runs/demo --output model --weights teacher
    """
    with one_line_errors():
        among("--weights", weights, "student", "teacher")
        among("--format", format, "safetensors", "onnx")
        quiet_libraries()
        from stml_semi.run_folder.log import Choice
        from stml_semi.sharing.card import Dtype
        from stml_semi.sharing.export_run import export_run

        among("--dtype", dtype, *get_args(Dtype))
        made = export_run(
            run,
            output,
            weights="teacher" if weights == "teacher" else "student",
            license=license,
            dtype=cast(Dtype, dtype),
            onnx=format == "onnx",
            truncate_dim=truncate_dim,
            overwrite=overwrite,
        )
    print_outcome(
        f"{made.folder}: the {Choice(made.weights, made.step, made.alpha).name}"
        + f" after {made.step} steps" * (made.weights != "frozen"),
        {**made._asdict(), "folder": output},
        as_json,
    )


def push(
    model: Annotated[str, typer.Argument(help="A finished run, or a folder that export wrote.", metavar="RUN")],
    repo: Annotated[str, typer.Argument(help="Where to: user/name.", metavar="REPO")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository private.")] = False,
    license: Annotated[str | None, typer.Option(help="For the card, in place of the one that it states.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a sentence.")] = False,
) -> None:
    """Upload a model with its card to the Hugging Face hub, in one commit.

    The login is that of `hf auth login`, or HF_TOKEN. Example: stml-semi push runs/demo user/name --private
    """
    with one_line_errors():
        from stml_semi.sharing.push import push as upload

        def note(text: str) -> None:
            print(text, file=sys.stderr)

        pushed = upload(model, repo, private=private, license=license, note=note)
    print_outcome(f"uploaded to {pushed.url}", pushed._asdict(), as_json)


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders; several are shown side by side.")],
    output: Annotated[
        str | None,
        typer.Option(help="File to write. Default: report.html in the run, or comparison.html beside several."),
    ] = None,
) -> None:
    """Write the page of a run: scores, curves, neighbors before and after, what unlabeled images were used.

    Example: stml-semi report runs/demo runs/baseline --output compared.html
    """
    with one_line_errors():
        quiet_libraries()
        from stml_semi.report.write import report_runs

        page = report_runs(runs, output)
    print(page)
