"""The report page: what it says, that it needs no network, that it never fails a run."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers.pages import Page, unfinished
from helpers.pictures import write_pictures
from helpers.real_runs import lines

from stml_semi.data.sources.open_source import open_source
from stml_semi.metrics import QueryScores
from stml_semi.report.charts import chart_keys, draw_map, letter, score_charts, thin, training_charts
from stml_semi.report.page import ReportedRun
from stml_semi.report.pictures import Pictures
from stml_semi.report.retrieval.projection import Projected
from stml_semi.report.retrieval.sample import Retrieval, Searched, _choose_points, choose_rows
from stml_semi.report.retrieval.view import Model, _assess, _by_class
from stml_semi.report.write import report_runs, write_or_explain
from stml_semi.run_folder.folder import RunFolder
from stml_semi.run_folder.recipe import build_config
from stml_semi.run_folder.verdict import verdict


def test_a_small_table_is_looked_at_whole_and_a_large_one_by_classes():
    labels = np.random.default_rng(0).integers(0, 40, 1000)
    assert choose_rows(labels, 1000).complete
    assert choose_rows(labels, 1000).rows.tolist() == list(range(1000))
    part = choose_rows(labels, 300)
    assert not part.complete
    assert 200 < len(part.rows) <= 300
    assert (np.diff(part.rows) > 0).all()
    assert np.bincount(labels[part.rows]).max() <= 15  # A twentieth of the rows.
    assert set(np.bincount(labels[part.rows])) <= {0, *range(10, 16)}
    assert choose_rows(labels, 300).rows.tolist() == part.rows.tolist()


def test_charts_say_their_numbers_and_take_their_colors_from_the_page():
    run = [{"step": step, "labeled_loss": 10 / step, "affinity_p50": 0.1, "lr": 1e-4} for step in range(1, 1001)]
    charts = training_charts([run])
    assert [chart.title for chart in charts] == ["Labeled loss", "Learning rate", "Affinity of pairs"]
    assert "at step 2" in charts[0].text  # The mean of the first parts of a long run.
    assert thin([(line["step"], line["labeled_loss"]) for line in run]).shape == (2, 300)
    scored = [
        {"step": s, "data": "birds", "model": m, "recall@1": 0.5, "map@r": r}
        for s, m, r in ((0, "frozen", 0.25), (9, "student", 0.5))
    ]
    (recall, mean) = score_charts([scored])
    assert recall.text == "Recall@1, %: student from 50 at step 0 to 50 at step 9."
    assert mean.text == "MAP@R, %: student from 25 at step 0 to 50 at step 9."
    assert "B student" in score_charts([scored, scored])[0].text
    plane = np.random.default_rng(0).normal(size=(20, 2))
    drawn = draw_map("here", Projected(plane, ("one", "two"), "a plane"), np.arange(20) < 15, np.arange(20) % 3 - 1)
    parts = re.split(r'id="here-(?:right|wrong)"', drawn)
    assert [part.count("<use ") for part in parts[1:]] == [15, 5]
    for svg in (*(chart.svg for chart in charts), drawn):
        assert "http" not in svg
        assert "#0102" not in svg
        assert "currentColor" in svg
    ticks = re.findall(r">([\d.]+)</text>", charts[1].svg)
    assert "0.0001" in " ".join(ticks) or "0.00010" in " ".join(ticks)  # Small numbers are not cut off.


def test_letters_never_run_out():
    assert [letter(place) for place in (0, 25, 26, 53)] == ["A", "Z", "A2", "B3"]


def test_a_run_without_evaluation_or_even_pictures_gets_the_rest_of_the_page(tmp_path):
    unfinished(tmp_path / "run", str(tmp_path / "gone <b>"))
    page = Page(report_runs([str(tmp_path / "run")], None))
    page.check()
    assert "Steps 20 of 90" in " ".join(page.text.split())
    assert "name labeled images of other classes with --eval" in page.text
    assert "its images cannot be opened (--labeled" in page.text
    assert "gone <b>" in page.text  # As text, not as markup.
    assert "--delta *" in page.text
    assert "Nearest neighbors" not in page.text


def test_what_fewer_dimensions_score_is_told_of_the_exported_model(tmp_path):
    run = unfinished(tmp_path / "run", str(tmp_path / "gone"))
    line = {"step": 90, "data": "birds", "recall@1": 0.6, "r_precision": 0.5, "map@r": 0.4, "num_queries": 9}
    for model, score in (("student", 0.123), ("teacher", 0.456)):
        run.log.write(line | {"model": model, "truncated": {"64": {"recall@1": score, "map@r": 0.1}}})
    page = Page(report_runs([str(run.path)], None))
    page.check()
    assert "The leading dimensions of the embeddings alone" in page.text
    assert "64 12.3 10.0" in " ".join(re.sub(r"<[^>]+>", " ", page.source.split("Dimensions</th>")[1]).split())
    assert "45.6" not in page.text


def test_a_report_of_no_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        report_runs([str(tmp_path)], None)
    unfinished(tmp_path / "run", "kanji")
    with pytest.raises(ValueError, match="named twice"):
        report_runs([str(tmp_path / "run")] * 2, None)
    with pytest.raises(ValueError, match=r"--output .*: is a folder"):
        report_runs([str(tmp_path / "run")], str(tmp_path))
    with pytest.raises(ValueError, match=r"--output .*No such file"):
        report_runs([str(tmp_path / "run")], str(tmp_path / "no" / "page.html"))


def test_a_page_that_cannot_be_written_does_not_fail_the_run(tmp_path):
    run = unfinished(tmp_path / "my run", "kanji")
    run.report.mkdir()
    said = write_or_explain(ReportedRun(run, build_config({"labeled": "kanji"}), None), "cpu")
    assert "the run has finished, but its report could not be written" in said
    assert "Is a directory" in said
    assert f"`stml-semi report '{run.path}'`" in said


def test_run_json_keeps_every_sitting(tmp_path):
    run = RunFolder(tmp_path)
    with run.session({"command": "first"}):
        pass
    with pytest.raises(KeyboardInterrupt), run.session({"command": "killed"}):
        raise KeyboardInterrupt
    with run.session({"command": "last"}):
        pass
    first, killed, last = run.sessions()
    assert [s["command"] for s in (first, killed, last)] == ["first", "killed", "last"]
    assert killed["seconds"] is None
    assert first["seconds"] >= 0
    assert last["seconds"] >= 0


@pytest.mark.slow
def test_the_page_of_a_run_says_what_the_run_measured(finished_run):
    page = Page(finished_run / "report.html")
    page.check()
    for line in lines(finished_run, "model"):
        for key in ("recall@1", "recall@8", "map@r"):
            assert f">{100 * line[key]:.1f}<" in page.source
    scored = re.findall(r"<td[^>]*>([\d.]+)<small>([\d.]+) to ([\d.]+)</small>", page.source)
    assert len(scored) == 2 * 6  # Frozen and trained: recall@1, 2, 4, 8, R-precision, MAP@R.
    assert all(float(low) <= float(mean) <= float(high) for mean, low, high in scored)
    assert "4.png" in page.text
    assert "not an image" in page.text
    assert "Random neighborhoods" in page.text
    assert "--max-bad-fraction 0.1" in page.text
    assert "process: cli.py semi --labeled" in page.text
    run = RunFolder.open(finished_run)
    found = verdict(run.log.lines(), run.claim)
    assert found is not None
    assert found.text.startswith("On classes that were trained on")
    assert found.text in page.text
    assert "Backbone tiny-resnet Date 20" in " ".join(page.text.split())
    # Each of the eight classes has a color on the maps.
    assert page.source.count('<span style="background: var(--series-') == 8
    assert "48 images of all 8 classes" in page.text
    assert "other classes" not in page.text
    # One legend for all curves, in place of one in each.
    assert page.source.count('<span class="line"') == 5
    assert " ".join(page.text.split()).count("student teacher median 90% quantile 99% quantile") == 1
    queries = [values for tag, values in page.tags if tag == "article"]
    assert len(queries) == 48
    marks = [values["class"] for tag, values in page.tags if tag == "li" and values.get("class")]
    assert marks.count("right") + marks.count("wrong") == 48 * 2 * 10
    for said, hits in re.findall(r"(\d+) of 10 right</h4>\s*<ol class=\"hits\">(.*?)</ol>", page.source, re.DOTALL):
        assert hits.count('class="right"') == int(said)
    for name, hits in re.findall(r'data-label="(\w)".*?<ol class="hits">(.*?)</ol>', page.source, re.DOTALL):
        assert hits.count(f"right: {name}") == hits.count('class="right"')
    pictures = json.loads(page.source.split('id="pictures">')[1].split("</script>")[0])
    assert len(pictures) == len(set(pictures)) >= 48
    used = {int(str(values["data-picture"])) for tag, values in page.tags if values.get("data-picture")}
    assert used <= set(range(len(pictures)))


@pytest.mark.slow
def test_runs_side_by_side(finished_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("delta: 1.0", "delta: 0.9"))
    page = Page(report_runs([str(finished_run), str(other)], str(tmp_path / "both.html")))
    page.check()
    assert "2 runs side by side" in page.text
    assert "trained: run A" in page.text
    assert "trained: run B" in page.text
    assert re.search(r"--delta</code> \*</th><td class=\"text\"><strong>1.0</strong></td><td", page.source)
    queries = [query.split("</article>")[0] for query in page.source.split("<article")[1:]]
    assert all(query.count("<h4>") == 3 for query in queries)  # The frozen backbone once.
    # The same model twice: what is compared first is the runs with each other, query by query.
    header = " ".join(page.text.split("Results")[0].split())
    nothing = "(+0.0 points, +0.0 to +0.0)"
    assert f"Run B: no clear difference from run A in recall@1 {nothing} and MAP@R {nothing}." in header
    assert header.index("no clear difference from run A") < header.index("the frozen backbone")
    assert page.text.count("vs. run A") == 1
    assert "run A run B student, median teacher, 90% quantile 99% quantile" in " ".join(page.text.split())


@pytest.mark.slow
def test_an_evaluation_too_large_for_the_page_is_sampled_and_says_so(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr("stml_semi.report.retrieval.sample.MOST_ROWS", 30)
    page = Page(report_runs([str(finished_run)], str(tmp_path / "page.html")))
    page.check()
    assert "a sample of" in page.text
    assert "Scores in percent within the sample" in page.text
    assert "only a sample of the images was embedded again" in page.text


def test_terms_begin_where_they_exist_and_steps_are_whole():
    lines = [{"step": step, "self_distillation": 0.0 if step < 3 else 0.1 * step} for step in range(1, 6)]
    (chart,) = training_charts([lines])
    assert "from 0.3 at step 3 to 0.5 at step 5" in chart.text
    ticks = re.findall(r">\s*(\d[\d.]*)\s*</text>", chart.svg)
    assert {"3", "4", "5"} <= set(ticks)
    assert "3.5" not in ticks


def test_the_hardest_classes_and_what_they_are_taken_for(tmp_path):
    for name in "ab":
        write_pictures(tmp_path / name, 4, seed=ord(name))
    table = open_source(str(tmp_path), flag="--eval", labels="required")
    precision = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.1, 0.2, 0.3, 0.4]).double()
    nothing = torch.zeros(8, 5).double()
    scores = QueryScores(nothing[:, :4], nothing[:, 4], precision, torch.full((8,), 3))
    nearest = np.array([1, 0, 3, 2, 5, 0, 1, 4])  # Two of the second class find the first.
    look = Searched(scores, np.zeros((0, 1), dtype=np.int64), nearest, Projected(np.zeros((0, 2)), ("", ""), ""))
    none = np.arange(0)
    found = Retrieval(np.arange(8), np.array([0, 0, 0, 0, 1, 1, 1, 1]), True, none, none, [look, look])
    pictures = Pictures()
    worst, best = _by_class(table, found, pictures, ["a", "b (U+03B2)"])
    assert (worst.label, worst.num_pictures, worst.taken_for, worst.times) == ("b (U+03B2)", 4, "a", 2)
    assert (worst.before, worst.after) == (pytest.approx(0.25), pytest.approx(0.25))
    assert (worst.picture, worst.neighbor) == (pictures.add(table, 5), pictures.add(table, 0))
    assert (best.label, best.taken_for, best.times, best.picture) == ("a", "", 0, None)


def test_runs_are_compared_query_by_query():
    truth = torch.arange(40) % 8

    def look(precision: torch.Tensor) -> Searched:
        scores = QueryScores(precision[:, None], precision, precision, torch.full((40,), 4))
        return Searched(
            scores,
            np.zeros((0, 1), dtype=np.int64),
            np.zeros(40, dtype=np.int64),
            Projected(np.zeros((0, 2)), ("", ""), ""),
        )

    noise = torch.rand(40, generator=torch.Generator().manual_seed(0)).double() / 2
    looks = [look(noise), look(noise + 0.1), look(noise + 0.3 + 0.01 * truth)]
    models = [Model("frozen", None, None), Model("A", None, 0, 0), Model("B", None, 1, 0)]  # pyright: ignore
    none = np.arange(0)
    frozen, first, other = _assess(models, Retrieval(none, truth.numpy(), True, none, none, looks), (1,))
    assert frozen.versus is None
    assert first.versus is None
    assert other.versus is not None
    mean, low, high = other.versus["map@r"]
    # Far more certain than the scores themselves, which differ from query to query.
    assert 0.21 < low < mean < high < 0.26
    assert mean == pytest.approx(0.235)
    assert other.scores["map@r"].high - other.scores["map@r"].low > 3 * (high - low)


def test_curves_have_one_legend():
    line = {"model": "student", "data": "x", "recall@1": 0.5, "map@r": 0.5}
    run = [line | {"step": step, "model": model} for step in (1, 2) for model in ("student", "teacher")]
    run += [{"step": 1, "labeled_loss": 1.0, "affinity_p50": 0.1, "affinity_p90": 0.5}]
    charts = score_charts([run]) + training_charts([run])
    keys = chart_keys(charts, [""])
    assert [(key.name, key.line) for key in keys] == [
        ("student", "solid"),
        ("teacher", "dashed"),
        ("median", "solid"),
        ("90% quantile", "dashed"),
    ]
    assert len({key.color for key in keys}) == 4
    charts = score_charts([run, run]) + training_charts([run, run])
    assert [key[::2] for key in chart_keys(charts, ["A", "B"])] == [
        ("run A", "solid"),
        ("run B", "solid"),
        ("student, median", "solid"),
        ("teacher, 90% quantile", "dashed"),
    ]
    assert not any("student" in chart.svg for chart in charts)


def test_points_of_the_map_are_whole_classes():
    labels = np.arange(4400) % 200
    points = _choose_points(labels, np.random.default_rng(0))
    assert len(points) == len(set(points)) == 300
    counts = np.bincount(labels[points])
    assert sorted(counts[counts > 0])[1:] == [22] * 13  # All but the class that was cut off.
    assert set(labels[points]) != set(range(14))
    few = _choose_points(np.arange(2000) % 4, np.random.default_rng(0))
    assert len(few) == 300
    assert np.bincount(few % 4).min() > 50
    assert len(_choose_points(np.zeros(40, dtype=np.int64), np.random.default_rng(0))) == 40
