"""Result tables in the terminal."""

import itertools
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from stml_semi.metrics import score_title
from stml_semi.run_folder.log import (
    candidate_name,
    candidate_rows,
    exported,
    is_validation,
    result_name,
    score_keys,
)
from stml_semi.run_folder.verdict import verdict
from stml_semi.runtime.terminal_text import PlainConsole, lines_table, visible

if TYPE_CHECKING:  # What is printed was made already: nothing of it has to be imported.
    from stml_semi.curation.audit import Audit, Problem
    from stml_semi.curation.audit import Finding as Doubt
    from stml_semi.curation.groups import Groups
    from stml_semi.curation.suggest import Suggestions
    from stml_semi.search.duplicates import Group
    from stml_semi.search.query import Answer
    from stml_semi.training.preflight.costs import Finding
    from stml_semi.training.run import Result

_STYLES = {"better": "bold green", "unclear": "yellow", "worse": "bold red"}


def print_result(result: "Result") -> None:
    """Frozen beside trained, from the first and last evaluation of a run; with validation all candidates."""
    console = PlainConsole(soft_wrap=True)
    log = result.folder.log.lines()
    candidates, choice = candidate_rows(log), exported(log)
    step = 0 if choice is None else choice.step
    if candidates:
        title = f"{candidates[0]['data']}: {candidates[0]['num_queries']:,} queries; these chose the exported model (*)"
        print_scores(title, {candidate_name(line): line for line in candidates})
    tested = [line for line in result.lines if not is_validation(line)]
    for data, lines in itertools.groupby(tested, key=lambda line: line["data"]):
        last = {line["model"]: line for line in lines if line["step"] <= step}
        line = next(iter(last.values()))
        title = "; ".join([f"{data}: {line['num_queries']:,} queries", *([result.claim] if result.claim else [])])
        print_scores(title, {result_name(line): line for line in last.values()})
    if not tested:
        console.print(
            "No evaluation: name labeled images of other classes with --eval, or keep half of them with --test-classes "
            "0.5, to see recall and MAP@R."
        )
    if found := verdict(log, result.claim):
        PlainConsole().print(Text(visible(found.text), style=_STYLES[found.level]))
    _print_next_steps(result)


def _print_next_steps(result: "Result") -> None:
    """Where things are, and what one does with them. Paths and commands are not broken: they are there to be copied."""
    run, console = shlex.quote(str(result.folder.path)), PlainConsole(soft_wrap=True)
    places = {"model": result.folder.model, "report": result.folder.report}
    console.print()
    for name, path in places.items():
        if path.exists():
            console.print(Text.assemble((f"{name:7} ", "bold"), visible(path)))
    for command, purpose in (
        (f"embed --model {run} --data IMAGES --output index", "Index a folder of images"),
        ("search --index index QUERY.jpg --html answers.html", "Find the nearest ones"),
        (f"push {run} USER/NAME --private", "Share the model on the Hugging Face hub"),
    ):
        console.print(Text(f"# {purpose}", style="dim"))
        console.print(Text(visible(f"stml-semi {command}")))


def print_scores(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """A table of metrics, in percent: a line for each model, or for each metric where the terminal is too narrow."""
    first = next(iter(rows.values()))
    keys = score_keys(first)
    console = PlainConsole()
    lines = [["", *map(score_title, keys)]]
    for name, scores in rows.items():
        lines.append([visible(name), *(f"{100 * scores[key]:.1f}" for key in keys)])
        if intervals := scores.get("intervals"):
            pairs = (tuple(100 * bound for bound in intervals[key]) for key in keys)
            lines.append([f"{scores['confidence']:g}% interval", *(f"{low:.1f}-{high:.1f}" for low, high in pairs)])
    columns = list(zip(*lines, strict=True))
    if _width(columns, 1) > max(console.width, _width(lines, 1)):
        columns, lines = lines, list(map(list, columns))
    table = _table(dense=_width(columns, 2) > console.width)
    for place, heading in enumerate(lines[0]):
        # The name of a split is no emoji (":train:"), nor are brackets in a path markup.
        table.add_column(Text(heading), justify="right" if place else "left", overflow="fold")
    for line in lines[1:]:
        table.add_row(*map(Text, line), style="dim" if line[0].endswith("% interval") else "")
    _print_table(console, title, table)
    console.print()
    for sentence in left_out(first):
        console.print(f"warning: {sentence}", style="yellow", soft_wrap=True)


def _width(columns: Sequence[Sequence[str]], gap: int) -> int:
    """Of a table in characters, with so many between the columns."""
    return sum(max(map(cell_len, column)) + gap for column in columns) - gap


def _table(*, dense: bool = False) -> Table:
    """A table with two characters between its columns, or with one."""
    look = {"box": box.SIMPLE_HEAD, "collapse_padding": True, "pad_edge": False, "show_edge": False}
    return Table(padding=(0, 0 if dense else 1), **look)


def _print_table(console: PlainConsole, title: str, table: Table) -> None:
    """A table below its title, which is as wide as the terminal, not the table, and breaks no path."""
    console.print(Text(visible(title), style="bold", overflow="ignore"), crop=False, soft_wrap=False)
    console.print(table)


def left_out(line: dict[str, Any]) -> list[str]:
    """Sentences about what the scores of an evaluation line do not speak of."""
    sentences = [f"{sentence}." for sentence in line.get("skipped", ())]
    if count := line.get("num_trained_classes"):
        sentences.append(
            f"Trained classes among these, by name: {count:,}. Their scores say nothing of classes that the model has "
            "not seen."
        )
    if count := line.get("num_unreadable"):
        example = next((f", such as {bad['image']} ({bad['reason']})" for bad in line.get("unreadable", ())), "")
        sentences.append(f"{_counted(count, 'unreadable image')} left out{example}.")
    if count := line.get("num_lost_classes"):
        sentences.append(f"{_counted(count, 'class', 'classes')} without a readable image: not scored.")
    if count := line.get("num_unmatched"):
        names = list(line.get("unmatched_classes", ()))
        of = f" (of {', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
        sentences.append(
            f"{_counted(count, 'query', 'queries')}{of} without an image of the same class to find: not scored."
        )
    return sentences


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def print_worst_classes(rows: Sequence[dict[str, Any]], count: int = 10) -> None:
    """The classes that are found worst, of a list that begins with them."""
    keys = [key for key in rows[0] if key not in ("class", "num_queries")]
    title = f"worst {min(count, len(rows))} of {len(rows)} classes"
    table = _table()
    table.add_column("class")
    table.add_column("queries", justify="right")
    for key in keys:
        table.add_column(score_title(key), justify="right")
    for row in rows[:count]:
        table.add_row(Text(visible(row["class"])), str(row["num_queries"]), *(f"{100 * row[key]:.1f}" for key in keys))
    _print_table(PlainConsole(), title, table)


def print_truncated(sizes: dict[str, dict[str, float]]) -> None:
    """Scores of leading dimensions alone."""
    table = _table()
    names = next(iter(sizes.values()))
    for column in ("dimensions", *map(score_title, names)):
        table.add_column(column, justify="right")
    for size, scores in sizes.items():
        table.add_row(size, *(f"{100 * value:.1f}" for value in scores.values()))
    _print_table(PlainConsole(), "the leading dimensions alone", table)


def print_open_set(thresholds: Sequence[Sequence[float]], fnmr: dict[str, float]) -> None:
    """How similar a match has to be, and the error rates of pairs."""
    console = PlainConsole()
    console.print()
    table = _table()
    for column in ("right among answers", "cosine from", "matches found"):
        table.add_column(column, justify="right")
    known = {precision: (similarity, answered) for precision, similarity, answered in thresholds}
    for precision in (0.5, 0.8, 0.9, 0.95, 0.98, 0.99):
        similarity, answered = known.get(precision, (None, None))
        shown = ("never", "") if similarity is None else (f"{similarity:.3f}", f"{answered:.1%}")
        table.add_row(f"{precision:.0%}", *shown)
    _print_table(console, "thresholds, if one query in two has no match", table)
    console.print()
    table = _table()
    for column in ("false match rate", "false non-match rate"):
        table.add_column(column, justify="right")
    for rate, missed in fnmr.items():
        table.add_row(f"{float(rate):.4g}", f"{missed:.4f}")
    _print_table(console, "pairs of images", table)


def print_answers(answers: "Sequence[Answer]") -> None:
    """Nearest images of each query, nearest first."""
    console = PlainConsole(soft_wrap=True)
    for answer in answers:
        if not answer.hits:
            console.print(Text(visible(answer.query), style="bold"))
            console.print("no match in the index")
            continue
        table = _table()
        table.add_column("", justify="right")
        table.add_column("cosine", justify="right")
        table.add_column("row", justify="right")
        table.add_column("image", overflow="fold")
        for rank, hit in enumerate(answer.hits, 1):
            table.add_row(str(rank), f"{hit.similarity:.4f}", str(hit.row), Text(visible(hit.image)))
        _print_table(console, answer.query, table)


def print_groups(groups: "Sequence[Group]") -> None:
    """Groups of near-duplicates, each with the image to keep first."""
    for number, group in enumerate(groups, 1):
        print(f"group {number}: {len(group.rows)} images")
        for place, (row, image, cosine) in enumerate(zip(group.rows, group.images, group.cosines, strict=True)):
            print(f"  {f'{cosine:.4f}' if place else 'keep  '} {visible(image)} (row {row})")
    redundant = sum(len(group.rows) - 1 for group in groups)
    print(f"{_counted(len(groups), 'group')}, {_counted(redundant, 'redundant image')}")


def print_audit(audit: "Audit", shown: "dict[Problem, list[Doubt]]") -> None:
    """Tables of what to look at, and a sentence with all counts."""
    console = PlainConsole()
    titles = {
        "label": ("labels in doubt, worst first", "nearer to", "by"),
        "two classes": ("near-duplicates in another class", "also in", "cosine"),
        "evaluated": ("near-duplicates of evaluation images", "there", "cosine"),
    }
    for problem, findings in shown.items():
        title, other, score = titles[problem]
        table = _table()
        table.add_column(score, justify="right")
        for column in ("labeled", other, "image"):
            table.add_column(column, overflow="fold")
        for one in findings:
            names = (one.label, one.other, one.image)
            table.add_row(f"{one.score:.3f}", *(Text(visible(name)) for name in names))
        _print_table(console, title, table)
        console.print()
    if count := audit.num_trained_classes:
        print(
            f"warning: Trained classes among these, by name: {count:,}. The model has learned their wrong labels too: "
            f"take its backbone, or a model that was trained on others."
        )
    counts = Counter(one.problem for one in audit.findings)
    parts = [
        f"{counts['label']:,} nearer to another class",
        _counted(counts["two classes"], "pair") + " in two classes",
    ]
    parts += [f"{counts['evaluated']:,} also in the evaluation"] * (len(audit.tables) > 1)
    parts += [f"{audit.num_unreadable:,} unreadable"] * (audit.num_unreadable > 0)
    print(f"{_counted(audit.num_images, 'image')}: {', '.join(parts)}")


def print_suggestions(found: "Suggestions") -> None:
    """A table of what to label, best first, and a sentence with the counts."""
    table = _table()
    table.add_column("stands for", justify="right")
    if found.classes:
        table.add_column("nearest class", overflow="fold")
        table.add_column("cosine", justify="right")
    table.add_column("image", overflow="fold")
    for one in found.suggestions:
        nearest = [Text(visible(one.nearest_class)), f"{one.cosine:.3f}"] if found.classes else []
        table.add_row(f"{one.gain:.1f}", *nearest, Text(visible(one.image)))
    if found.suggestions:
        _print_table(PlainConsole(), "label next, best first", table)
    counts = _counted(len(found.suggestions), "image")
    print(f"{counts} to label of {found.num_images:,}, {found.num_labeled:,} labeled before")


def print_pool_groups(found: "Groups", count: int) -> None:
    """A table of the largest groups, and a sentence with the counts."""
    table = _table()
    table.add_column("images", justify="right")
    if found.classes:
        table.add_column("name", overflow="fold")
        table.add_column("nearest class", overflow="fold")
        table.add_column("cosine", justify="right")
    table.add_column("most typical image", overflow="fold")
    for group in found.groups[:count]:
        known = [Text(visible(group.name or "new")), Text(visible(group.nearest_class)), f"{group.cosine:.3f}"]
        table.add_row(f"{len(group.rows):,}", *(known if found.classes else []), Text(visible(group.images[0])))
    if found.groups:
        _print_table(PlainConsole(), "largest groups", table)
    new = sum(not group.name for group in found.groups)
    kinds = f", {len(found.groups) - new:,} of known classes and {new:,} new" if found.classes else ""
    alone = f"{found.num_alone:,} of {found.num_images:,} images are in none"
    print(f"{_counted(len(found.groups), 'group')}{kinds}; {alone}")
    if found.accuracy is not None:
        old, new = (
            "" if value is None else f"; {name} classes {value:.1%}"
            for name, value in (("known", found.accuracy.old), ("new", found.accuracy.new))
        )
        split = old + new if found.classes else ""
        print(f"accuracy against the labels of the index, one class a group: {found.accuracy.all:.1%}{split}")


def print_plan(plan: dict[str, str]) -> None:
    """What a dry run found out, a line for each part."""
    PlainConsole().print(lines_table(plan))


def print_finding(finding: "Finding") -> None:
    """A line of `doctor`."""
    style = {"ok": "green", "advice": "yellow", "broken": "bold red"}[finding.level]
    console = PlainConsole(soft_wrap=True)
    console.print(Text.assemble((f"{finding.level:6} ", style), (f"{finding.what}: ", "bold"), finding.text))
