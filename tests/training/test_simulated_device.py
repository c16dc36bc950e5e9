"""Whole commands on a pretended GPU: nothing mixes devices, and no step makes the host wait.

By hand, with the places of all events: `python tests/helpers/simulated_cuda.py EVENTS.json semi --labeled ...`
"""

import json
import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.real_runs import EMBEDDED, ROOT, TERMS, lines, train
from helpers.shared import once

ALLOWED = {
    "_Compared.of": "once per refresh",
    "> accelerate/optimizer.py": "PyTorch's C++ sees where the pretended scale of fp16 really is",
    "> pytorch_metric_learning/": "losses other than the default",
}

Event = list[Any]  # phase, kind, place, count


@pytest.fixture(scope="module")
def commands(tmp_path_factory, make_backbone) -> Path:
    def make(folder: Path) -> None:
        pictures = pq.read_table(EMBEDDED / "kanji_more.parquet").slice(0, 130)
        pq.write_table(pictures, folder / "pool.parquet")
        _write_shard(folder / "shard.tar", pictures)
        pq.write_table(pq.read_table(EMBEDDED / "kanji_train.parquet").slice(0, 66), folder / "three_kanji.parquet")
        done = _simulate(folder / "events.json", *_commands(folder, str(make_backbone("vit_dropout"))).values())
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]

    return once(tmp_path_factory, "simulated", make)


def _commands(folder: Path, vit: str) -> dict[str, list[str]]:
    small = ["--labeled-batch-size", "16", "--images-per-class", "2"]
    sizes = ["--num-workers", "0", "--no-report", "--log-every", "3", "--max-steps", "10", "--learning-rate", "1e-4"]
    sizes += ["--eval", f"{folder}/three_kanji.parquet", "--eval-every", "5"]
    pool = f"{folder}/pool.parquet"
    unlabeled = ["--refresh-every", "4", "--unlabeled-batch-size", "20"]
    both = ["semi", "--labeled", "kanji", *small, *sizes, *unlabeled, "--label-warmup-steps", "2"]
    semi = [*both, "--unlabeled", pool]
    tuned = [*semi, "--backbone", vit, "--mixed-precision", "bf16", "--lora-rank", "2", "--micro-batch-size", "10"]
    tuned += ["--save-every", "5"]
    unsup = ["unsup", "--unlabeled", pool, "--relations", "batch", "--backbone", "tiny-resnet", *sizes, *unlabeled]
    sup = ["sup", "--labeled", "kanji", "--labeled-loss", "margin", *small, *sizes]
    trained = {
        "semi": semi,
        "tuned": tuned,
        "resumed": [*tuned, "--max-steps", "12", "--resume"],
        "unsup": unsup,
        "fp16": [*semi, "--mixed-precision", "fp16", "--eval-every", "0", "--max-steps", "5", "--deterministic"],
        "sup": sup,
        "stream": [*both, "--unlabeled", f"{folder}/shard.tar", "--pool-size", "100"],
    }
    for name, command in trained.items():
        command += ["--output-dir", f"{folder}/{name.replace('resumed', 'tuned')}"]
    return trained | {
        "evaluate": ["evaluate", "--model", f"{folder}/semi", "--data", f"{folder}/three_kanji.parquet"],
        "embed": ["embed", "--model", f"{folder}/semi", "--data", pool, "--output", f"{folder}/index"],
        "search": ["search", "--index", f"{folder}/index", "--row", "3", "--k", "2"],
        "report": ["report", f"{folder}/semi"],
    }


def _write_shard(path: Path, pictures: pa.Table) -> None:
    with tarfile.open(path, "w") as shard:
        for number, picture in enumerate(pictures["image"].to_pylist()):
            member = tarfile.TarInfo(f"{number:03}.png")
            member.size = len(picture["bytes"])
            shard.addfile(member, BytesIO(picture["bytes"]))


def _simulate(events: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    script = ROOT / "tests" / "helpers" / "simulated_cuda.py"
    arguments = " THEN ".join(" ".join(command) for command in commands).split(" ")
    return subprocess.run(
        [sys.executable, str(script), str(events), *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def events(folder: Path, name: str) -> list[Event]:
    names = list(_commands(folder, ""))
    return every_event(folder)[names.index(name)]


def every_event(folder: Path) -> list[list[Event]]:
    return json.loads((folder / "events.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["semi", "tuned", "resumed", "unsup", "fp16", "sup", "stream"])
def test_no_step_makes_the_host_wait(commands, name):
    happened = events(commands, name)
    waits = [event for event in happened if event[0] == "step" and event[1].startswith("waits")]
    assert [event for event in waits if not any(place in event[2] for place in ALLOWED)] == []
    assert sum(event[3] for event in waits if "_Compared" in event[2]) <= 2 * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate", "embed", "search", "report"])
def test_other_commands_use_the_device(commands, name):
    kinds = {kind for _, kind, _, _ in events(commands, name)}
    # A row of the index as a query needs no model.
    assert (kinds >= {"copies", "waits: to the host"}) == (name != "search")


@pytest.mark.slow
def test_float32_is_not_rounded_on_the_device(commands):
    assert [event for happened in every_event(commands) for event in happened if event[1].startswith("TF32")] == []


@pytest.mark.slow
def test_a_device_computes_the_numbers_of_the_cpu(commands, tmp_path):
    flags = _commands(commands, "")["semi"]
    done = train(tmp_path / "run", *flags[1:-2])
    assert done.returncode == 0, done.stderr
    there, here = lines(commands / "semi"), lines(tmp_path / "run")
    assert [line["step"] for line in there] == [3, 6, 9, 10]
    for a, b in zip(there, here, strict=True):
        assert {term: a[term] for term in TERMS} == pytest.approx({term: b[term] for term in TERMS}, rel=1e-5, abs=1e-6)


LOSSES = """
import sys, torch
from helpers import simulated_cuda as device
device.pretend()
from stml_semi.losses.proxy import LabeledLoss, labeled_losses
for name in labeled_losses():
    torch.manual_seed(0)
    loss = LabeledLoss(name, num_classes=4, embedding_dim=8)
    x, labels = torch.randn(12, 8), torch.arange(12) % 4
    here = loss(x, labels)
    with device.SimulatedDevice():
        torch.manual_seed(0)
        on_device = LabeledLoss(name, num_classes=4, embedding_dim=8).to("cuda")
        there = on_device(x.to("cuda").requires_grad_(), labels.to("cuda"))
        there.backward()
        print(name, float(here), float(there))
"""


def test_every_labeled_loss_runs_on_a_device():
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", LOSSES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pairs = [line.split() for line in done.stdout.splitlines()]
    assert {"proxy_anchor", "margin", "angular", "triplet_margin", "contrastive"} <= {name for name, *_ in pairs}
    for name, here, there in pairs:
        assert float(there) == pytest.approx(float(here), rel=1e-5), name
