"""Whole runs in real processes: a stopped run goes on, failures speak, bad images are replaced."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from helpers.pictures import write_pictures
from helpers.real_runs import KANJI, ROOT, TERMS, cli, kanji, lines, start, train, wait_for_step
from helpers.shared import once
from safetensors.torch import load_file

from stml_semi.config import TrainConfig
from stml_semi.runtime.errors import BadInput
from stml_semi.training.setup import check_alike


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    def make(folder):
        done = train(folder / "run", *KANJI, "--max-steps", "30", "--save-every", "12")
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "one", make) / "run"


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


APART = """
import os, sys
from pathlib import Path
own = Path(os.environ["RANK"])
own.mkdir(exist_ok=True)
os.chdir(own)
sys.path.insert(0, sys.argv.pop(1))
from stml_semi.cli.app import main
main()
"""


@pytest.mark.slow
def test_machines_need_not_share_the_run_folder(one_process, tmp_path):
    """Two processes in folders of their own; the run goes on from a checkpoint that one of them has."""
    (tmp_path / "apart.py").write_text(APART)
    shutil.copytree(one_process, tmp_path / "0" / "run")
    (tmp_path / "0/run/bad_images.jsonl").write_text('{"image": "x.png", "reason": "torn"}\n')
    flags = ["semi", *kanji(), "--max-steps", "33", "--save-every", "12", "--resume", "--no-report"]
    running = cli(*(str(ROOT), *flags, "--output-dir", "run"), processes=2, script=tmp_path / "apart.py", cwd=tmp_path)
    _, errors = running.communicate(timeout=400)
    assert running.returncode == 0, errors
    after = lines(tmp_path / "0" / "run")
    assert [line["step"] for line in after] == list(range(1, 34))
    assert [line["bad_images"] for line in after][-3:] == [1, 1, 1]
    assert not list((tmp_path / "1").rglob("*step*"))


def test_machines_are_given_the_same_flags(monkeypatch):
    config = TrainConfig(labeled="x", learning_rate=1e-4, num_workers=3, output_dir="here")
    others = {"num_workers": 5, "output_dir": "there"}
    monkeypatch.setattr("stml_semi.training.setup.from_main", lambda step: step().model_copy(update=others))
    check_alike(config)
    others["learning_rate"] = 1e-3
    with pytest.raises(BadInput, match=r"--learning-rate is 0.0001 in process 0, but 0.001 in process 0: give all"):
        check_alike(config)
    others["learning_rate"] = "auto"  # The number follows, and is compared again.
    check_alike(config)
    with pytest.raises(BadInput, match=r"--learning-rate is 0.0001 in process 0, but auto"):
        check_alike(config, resolved=True)


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
    loose[4].write_bytes(b"no image")
    bad_labeled = tmp_path / "labeled" / "b" / "2.png"
    bad_labeled.write_bytes(bad_labeled.read_bytes()[:60])
    flags = ["--labeled", str(tmp_path / "labeled"), "--unlabeled", str(tmp_path / "loose")]
    flags += ["--eval", str(tmp_path / "labeled"), "--backbone", "tiny-resnet", "--labeled-batch-size", "8"]
    flags += ["--images-per-class", "2", "--unlabeled-batch-size", "20", "--max-steps", "6", "--log-every", "1"]
    refused = train(tmp_path / "refused", *flags)
    assert refused.returncode == 1
    assert "2 of 78 images cannot be read, more than --max-bad-fraction 0.01 allows" in refused.stderr
    strict = train(tmp_path / "strict", *flags, "--on-bad-image", "error")
    assert strict.returncode == 1
    assert "2.png" in strict.stderr.splitlines()[-1]
    flags += ["--max-bad-fraction", "0.05", "--relevance", "0.9"]
    done = train(tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    assert "2 unreadable" in done.stderr
    assert lines(tmp_path / "run")[-1]["bad_images"] == 2
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_images.jsonl").read_text().splitlines()]
    assert sorted(Path(line["image"]).name for line in listed) == ["2.png", "4.png"]
    assert all(line["reason"] for line in listed)
    assert [line["num_queries"] for line in lines(tmp_path / "run", "model")] == [23, 23, 23]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sup", "unsup"])
def test_one_kind_of_pictures_alone(tmp_path, command):
    unused = KANJI.index("--unlabeled" if command == "sup" else "--labeled")
    flags = [*KANJI[:unused], *KANJI[unused + 2 :]]
    done = train(tmp_path / "run", *flags, "--backbone", "tiny-resnet", "--max-steps", "4", command=command)
    assert done.returncode == 0, done.stderr
    for line in lines(tmp_path / "run"):
        assert (line["labeled_loss"] > 0) == (command == "sup")
        assert (line["relaxed_contrastive"] > 0) == (command == "unsup")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_like_the_undisturbed_run(one_process, tmp_path):
    folder = tmp_path / "run"
    flags = [*KANJI, "--max-steps", "30", "--save-every", "3", "--num-workers", "1"]
    for attempt, step in enumerate((2, 13, 26)):
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


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_with_one_message(tmp_path):
    folder = tmp_path / "run"
    running = start(folder, *KANJI, "--max-steps", "1000", processes=2)
    wait_for_step(folder, 3)
    (victim,) = [
        process
        for process in psutil.Process(running.pid).children(recursive=True)
        if process.environ().get("RANK") == "1"
    ]
    victim.kill()
    _, errors = running.communicate(timeout=60)
    assert running.returncode != 0
    ours = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1
    assert ours[0].startswith("error: another process of this run died or no longer answers")
    assert "stml_semi" not in errors.split("error: ")[1].split("torch.distributed.elastic")[0]


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoints_that_were_written(one_process, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(one_process, folder)
    shutil.rmtree(folder / "checkpoints" / "step-30")
    # No file may grow beyond 1 MB: the log goes on, a checkpoint does not fit.
    limited = ["bash", "-c", 'ulimit -f 1024; exec "$@"', "limited", sys.executable, str(ROOT / "cli.py"), "semi"]
    done = subprocess.run(
        [*limited, "--resume", "latest", "--output-dir", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the disk is full: free some space")
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-24"]
    done = train(folder, "--resume")
    assert done.returncode == 0, done.stderr
    assert lines(one_process, "model") == lines(folder, "model")


@pytest.mark.slow
def test_low_rank_updates_of_the_last_block_are_merged_on_export(make_backbone, tmp_path):
    folder, backbone = tmp_path / "run", make_backbone("vit_dropout")
    flags = ["--backbone", str(backbone), "--lora-rank", "4", "--train-layers", "last:1", "--layer-decay", "0.8"]
    flags += ["--gradient-checkpointing", "--max-steps", "12", "--learning-rate", "0.01", "--save-every", "6"]
    done = train(folder, *KANJI, *flags, processes=2)
    assert done.returncode == 0, done.stderr
    before, after = (load_file(place / "model.safetensors") for place in (backbone, folder / "model"))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert not [name for name in changed if "layer.1" not in name and "pooler" not in name]
    assert after.keys() <= before.keys()
