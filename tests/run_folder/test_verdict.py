"""What a run was worth, in words."""

from typing import Any

import pytest

from stml_semi.data.claims import TRAINED
from stml_semi.run_folder.verdict import OVER_FROZEN, verdict

FROZEN = {"step": 0, "model": "frozen", "data": "x", "map@r": 0.4, "recall@1": 0.5}


def lines(recall: tuple[float, float, float], map_at_r: tuple[float, float, float]) -> list[dict[str, Any]]:
    gain = {"recall@1": list(recall), "map@r": list(map_at_r)}
    student = {"step": 9, "model": "student", "data": "x", "map@r": 0.5, "recall@1": 0.6, OVER_FROZEN: gain}
    return [FROZEN, student, student | {"model": "teacher", OVER_FROZEN: {"recall@1": [0, 0, 0], "map@r": [0, 0, 0]}}]


@pytest.mark.parametrize(
    ("recall", "map_at_r", "level", "text"),
    [
        (
            (0.038, 0.031, 0.047),
            (0.12, 0.11, 0.13),
            "better",
            "Better than the frozen backbone by 3.8 points of recall@1 (3.1 to 4.7) and 12.0 points of MAP@R (11.0 to "
            "13.0).",
        ),
        (
            (0.003, -0.005, 0.011),
            (-0.0, -0.01, 0.01),
            "unclear",
            "No clear difference from the frozen backbone in recall@1 (+0.3 points, -0.5 to +1.1) and MAP@R (+0.0 "
            "points, -1.0 to +1.0).",
        ),
        (
            (0.003, -0.005, 0.011),
            (0.02, 0.01, 0.03),
            "better",
            "Better than the frozen backbone by 2.0 points of MAP@R (1.0 to 3.0); no clear difference in recall@1 "
            "(+0.3 points, -0.5 to +1.1).",
        ),
    ],
)
def test_the_sentence_follows_from_the_intervals(recall, map_at_r, level, text):
    assert verdict(lines(recall, map_at_r), "") == (text, level)


@pytest.mark.parametrize(
    ("more", "advice"),
    [
        ({"labeled_loss": 2.0}, "or --validation-classes 0.2, which exports the frozen backbone"),
        ({"split": "validation", "model": "frozen"}, "or keep more --validation-classes"),
        ({"labeled_loss": 0.0}, "or fewer --max-steps."),  # Of unlabeled images alone no classes can be kept.
    ],
)
def test_worse_comes_with_advice_that_fits(more, advice):
    found = verdict([{"step": 5, **more}, *lines((-0.05, -0.06, -0.04), (0.02, 0.01, 0.03))], "")
    assert found is not None
    assert found.level == "worse"
    assert "Better than the frozen backbone by 2.0 points of MAP@R" in found.text
    assert "worse than the frozen backbone by 5.0 points of recall@1 (4.0 to 6.0): try a lower" in found.text
    assert advice in found.text


def test_trained_classes_are_called_that():
    found = verdict(lines((0.04, 0.03, 0.05), (0.1, 0.1, 0.1)), f"20 of its 20 classes {TRAINED}")
    assert found is not None
    assert found.text.startswith("On classes that were trained on, which says nothing of new ones: better than")


def test_what_was_not_measured_has_no_verdict():
    assert verdict([], "") is None
    assert verdict([FROZEN], "") is None
    assert verdict([FROZEN, {k: v for k, v in lines((0, 0, 0), (0, 0, 0))[1].items() if k != OVER_FROZEN}], "") is None
