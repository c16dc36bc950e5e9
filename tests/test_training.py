"""Whole runs in real processes: two take the steps of one, a stopped run goes on, bad pictures are replaced."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_pictures

ROOT = Path(__file__).parents[1]
KANJI = [
    *("--labeled", "kanji", "--unlabeled", "kanji-more", "--eval", "kanji:train", "--pool-size", "300"),
    *("--labeled-batch-size", "16", "--images-per-class", "2", "--unlabeled-batch-size", "20"),
    *("--label-warmup-steps", "6", "--refresh-every", "8", "--log-every", "1", "--num-workers", "0"),
]


def train(folder: Path, *flags: str, processes: int = 1, command: str = "semi") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # accelerate starts several processes on a CPU only in this way: --cpu, or neither, would silently start one.
        environment["ACCELERATE_USE_CPU"] = "true"
        launch += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
        launch += ["--dynamo_backend", "no", "--num_processes", str(processes), "--main_process_port", str(port)]
    done = subprocess.run(
        [*launch, str(ROOT / "cli.py"), command, *flags, "--output-dir", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode != 0 or f"; {processes} process" in done.stderr
    return done


def lines(folder: Path, key: str = "loss") -> list[dict]:
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if key in line]


TERMS = ["loss", "labeled_loss", "relaxed_contrastive", "self_distillation", "unlabeled_weight", "grad_ratio", "lr"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    done = train(folder, *KANJI, "--max-steps", "30", "--save-every", "12")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(one_process, tmp_path):
    done = train(tmp_path / "run", *KANJI, "--max-steps", "30", processes=2)
    assert done.returncode == 0, done.stderr
    single, double = lines(one_process), lines(tmp_path / "run")
    assert [line["step"] for line in double] == list(range(1, 31))
    for a, b in zip(single, double, strict=True):
        for term in TERMS:
            # Random orthogonal heads keep all distances: at first the divergence of f and g is nothing but rounding.
            rounding = 1e-6 if term == "self_distillation" else 0
            # Ratios of gradient norms are noisier than losses.
            tolerance = 1e-3 if term in ("unlabeled_weight", "grad_ratio") else 1e-4
            assert b[term] == pytest.approx(a[term], rel=tolerance, abs=rounding), (a["step"], term)
    for a, b in zip(lines(one_process, "model"), lines(tmp_path / "run", "model"), strict=True):
        assert (a["step"], a["model"], a["num_queries"]) == (b["step"], b["model"], b["num_queries"])
        assert b["map@r"] == pytest.approx(a["map@r"], abs=2e-3)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_numbers(one_process, tmp_path):
    # As if the run had been killed after step 17: a checkpoint of step 12, log lines beyond it.
    folder = tmp_path / "run"
    shutil.copytree(one_process, folder)
    shutil.rmtree(folder / "model")
    for checkpoint in (folder / "checkpoints").iterdir():
        if checkpoint.name != "step-24":
            shutil.rmtree(checkpoint)
    kept = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 27]
    (folder / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    done = train(folder, *KANJI, "--max-steps", "30", "--save-every", "12", "--resume")
    assert done.returncode == 0, done.stderr
    assert "step-24" in done.stderr
    for a, b in zip(lines(one_process), lines(folder), strict=True):
        assert {term: a[term] for term in TERMS} == {term: b[term] for term in TERMS}
    assert lines(one_process, "model") == lines(folder, "model")
    same = (one_process / "model" / "model.safetensors").read_bytes() == (
        folder / "model/model.safetensors"
    ).read_bytes()
    assert same


@pytest.mark.slow
def test_config_yaml_repeats_the_run(one_process, tmp_path):
    done = train(tmp_path / "again", "--recipe", str(one_process / "config.yaml"), "--max-steps", "30")
    assert done.returncode == 0, done.stderr
    assert [line["loss"] for line in lines(tmp_path / "again")] == [line["loss"] for line in lines(one_process)]


@pytest.mark.slow
def test_checkpoints_hold_nothing_pickled(one_process):
    names = sorted(p.name for p in (one_process / "checkpoints").iterdir())
    assert names == ["step-24", "step-30"]
    for checkpoint in (one_process / "checkpoints").iterdir():
        files = sorted(p.name for p in checkpoint.iterdir())
        assert files == ["modules.safetensors", "optimizer.safetensors", "pool.safetensors", "state.json"]


@pytest.mark.slow
def test_bad_pictures_are_replaced_and_listed_once(tmp_path):
    for name in "abcd":
        write_pictures(tmp_path / "labeled" / name, 6, seed=ord(name))
    loose = write_pictures(tmp_path / "loose", 30)
    loose[4].write_bytes(b"no picture")
    bad_labeled = tmp_path / "labeled" / "b" / "2.png"
    bad_labeled.write_bytes(bad_labeled.read_bytes()[:60])
    flags = ["--labeled", str(tmp_path / "labeled"), "--unlabeled", str(tmp_path / "loose")]
    flags += ["--eval", str(tmp_path / "labeled"), "--backbone", "tiny-resnet", "--labeled-batch-size", "8"]
    flags += ["--images-per-class", "2", "--unlabeled-batch-size", "20", "--max-steps", "6", "--log-every", "1"]
    done = train(tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_images.jsonl").read_text().splitlines()]
    assert sorted(Path(line["image"]).name for line in listed) == ["2.png", "4.png"]
    assert all(line["reason"] for line in listed)
    assert [line["num_queries"] for line in lines(tmp_path / "run", "model")] == [23, 23, 23]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sup", "unsup"])
def test_one_kind_of_pictures_alone(tmp_path, command):
    unused = KANJI.index("--unlabeled" if command == "sup" else "--labeled")
    flags = [*KANJI[:unused], *KANJI[unused + 2 :]]
    done = train(tmp_path / "run", *flags, "--max-steps", "4", command=command)
    assert done.returncode == 0, done.stderr
    for line in lines(tmp_path / "run"):
        assert (line["labeled_loss"] > 0) == (command == "sup")
        assert (line["relaxed_contrastive"] > 0) == (command == "unsup")


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "semi", *flags, "--output-dir", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists():
            text = (folder / "metrics.jsonl").read_text()
            if any(f'"step": {s}, "loss"' in text for s in range(step, step + 4)):
                return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_like_the_undisturbed_run(one_process, tmp_path):
    folder = tmp_path / "run"
    flags = [*KANJI, "--max-steps", "30", "--save-every", "3", "--num-workers", "1"]
    for attempt, step in enumerate((2, 8, 13, 19, 26)):
        running = start(folder, *flags, *(["--resume"] if attempt else []))
        wait_for_step(folder, step)
        running.kill()
        running.communicate()
    done = train(folder, "--resume")  # The run folder knows the rest.
    assert done.returncode == 0, done.stderr
    for a, b in zip(lines(one_process), lines(folder), strict=True):
        assert {term: a[term] for term in TERMS} == {term: b[term] for term in TERMS}
    assert lines(one_process, "model") == lines(folder, "model")
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (one_process, folder)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_before_leaving(tmp_path, number, code):
    folder = tmp_path / "run"
    running = start(folder, *KANJI, "--max-steps", "1000", "--save-every", "0")
    wait_for_step(folder, 7)
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == code
    assert errors.splitlines()[-1].startswith(f"error: stopped by {number.name} after step ")
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert f"after {checkpoint.name.replace('-', ' ')};" in errors
