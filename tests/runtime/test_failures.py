import json

import pytest
import torch

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import BadPicture
from stml_semi.runtime.errors import RunFailed
from stml_semi.runtime.failures import FiniteWatch, check_bad, is_out_of_memory, out_of_memory, report_non_finite
from stml_semi.training.objective import Terms


def terms(**changes: float) -> Terms:
    values = dict.fromkeys(Terms._fields, 1.0) | changes
    return Terms(**{name: torch.tensor(value) for name, value in values.items()})


def test_the_first_bad_step_of_each_term_is_remembered():
    watch = FiniteWatch(torch.device("cpu"))
    watch.look(terms(), 3)
    assert watch.broken() == {}
    watch.look(terms(self_distillation=float("nan")), 4)
    watch.look(terms(self_distillation=float("inf"), labeled_loss=float("nan")), 5)
    watch.look(terms(), 6)
    assert watch.broken() == {"labeled_loss": 5, "self_distillation": 4}


def test_the_error_names_term_step_and_images(tmp_path):
    broken = {"labeled_loss": 5, "self_distillation": 4, "surrogate": 4}
    error = report_non_finite(broken, ["a.png", "b.png"], tmp_path / "non_finite" / "batch.json")
    assert str(error).startswith("self_distillation is not finite from step 4 on")
    content = json.loads((tmp_path / "non_finite" / "batch.json").read_text())
    assert content == {"step": 4, "terms": ["self_distillation"], "images": ["a.png", "b.png"]}


@pytest.mark.parametrize(
    ("rows", "micro", "suggested"), [(304, None, 256), (304, 256, 128), (304, 1000, 256), (3, None, 2), (2, None, 1)]
)
def test_out_of_memory_suggests_the_next_smaller_size(rows, micro, suggested):
    assert f"--micro-batch-size {suggested} " in str(out_of_memory(rows, micro))


def test_out_of_memory_with_single_images_says_something_else():
    assert "--image-size" in str(out_of_memory(304, 1))


def test_out_of_memory_is_recognized():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_one_bad_picture_never_ends_a_run_and_too_many_do():
    config, found = TrainConfig(labeled="x"), [BadPicture("a.png", "is empty")]
    check_bad(config, 1, 5, found)
    check_bad(config, 10, 1000, found)
    check_bad(config, 0, 5, [])
    with pytest.raises(RunFailed, match="11 of 1000 pictures cannot be read, more than --max-bad-fraction 0.01 allows"):
        check_bad(config, 11, 1000, found)
    strict = TrainConfig(labeled="x", on_bad_image="error")
    check_bad(strict, 1, 5, [])  # Listed before, in a run that was resumed.
    with pytest.raises(RunFailed, match="a.png: is empty"):
        check_bad(strict, 1, 5, found)
