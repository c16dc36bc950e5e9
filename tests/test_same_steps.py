"""Hardware does not matter: any number of processes and any split of the batch take the same steps.

40 steps, warm-up and two refreshes of the neighbors included; the largest deviations are printed with `pytest -rP`.
"""

import pytest
from conftest import once
from real_runs import KANJI, TERMS, lines, train
from safetensors.torch import load_file

WAYS = {
    "4 processes": (4, ()),
    "3 processes, uneven": (3, ()),
    "parts of 8": (1, ("--micro-batch-size", "8")),
    "2 processes, parts of 5, checkpointed blocks": (2, ("--micro-batch-size", "5", "--gradient-checkpointing")),
}
# Four processes of the larger backbone would take a minute and show what three do.
CASES = [("tiny-resnet", way) for way in WAYS if way != "4 processes"] + [("vit_dropout", way) for way in WAYS]
# The learning rate of large backbones: at 1e-3 the proxies leap, and rounding grows into percents within 40 steps.
STEPS = (
    "--learning-rate",
    "1e-4",
    "--max-steps",
    "40",
    "--label-warmup-steps",
    "10",
    "--refresh-every",
    "12",
    "--save-every",
    "0",
)


@pytest.fixture(scope="module")
def undivided(request, make_backbone, tmp_path_factory):
    backbone = request.param if request.param == "tiny-resnet" else str(make_backbone(request.param))

    def make(folder):
        done = train(folder / "run", *KANJI, *STEPS, "--backbone", backbone)
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, f"undivided-{request.param}", make) / "run", backbone


@pytest.mark.slow
@pytest.mark.parametrize(("undivided", "way"), CASES, indirect=["undivided"])
def test_any_division_takes_the_same_steps(undivided, way, tmp_path):
    whole, backbone = undivided
    processes, flags = WAYS[way]
    divided = tmp_path / "run"
    done = train(divided, *KANJI, *STEPS, "--backbone", backbone, *flags, processes=processes)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(divided)] == list(range(1, 41))
    worst: dict[str, float] = {}
    for a, b in zip(lines(whole), lines(divided), strict=True):
        for term in TERMS:
            # Random orthogonal heads keep all distances: at first the divergence of f and g is nothing but rounding.
            difference = max(abs(a[term] - b[term]) - (1e-6 if term == "self_distillation" else 0), 0)
            worst[term] = max(worst.get(term, 0), difference / max(abs(a[term]), 1e-12))
    change, size = 0.0, 0.0
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        a, b = (load_file(run / "model" / name) for run in (whole, divided))
        change += sum(float((a[key] - b[key]).square().sum()) for key in a)
        size += sum(float(a[key].square().sum()) for key in a)
    print(f"{way}, {backbone}: weights {(change / size) ** 0.5:.1e}, terms {max(worst.values()):.1e}")
    for term, relative in worst.items():
        # Ratios of gradient norms are noisier than losses.
        assert relative < (1e-3 if term in ("unlabeled_weight", "grad_ratio") else 1e-4), term
    assert (change / size) ** 0.5 < 1e-3
    for a, b in zip(lines(whole, "model"), lines(divided, "model"), strict=True):
        assert (a["step"], a["model"], a["num_queries"]) == (b["step"], b["model"], b["num_queries"])
        assert b["map@r"] == pytest.approx(a["map@r"], abs=2e-3)
