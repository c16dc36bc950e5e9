import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stml_semi.data.batches.pool import Calibrated, KnownImages, PoolTable
from stml_semi.losses.evidence import Weights
from stml_semi.run_folder.checkpoint import (
    TrainState,
    _digest,
    list_checkpoints,
    load_checkpoint,
    read_module,
    read_pool,
    save_checkpoint,
)
from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import BadInput


def make_state(seed: int) -> TrainState:
    torch.manual_seed(seed)
    modules: dict[str, nn.Module] = {"embedder": nn.Linear(3, 2), "teacher": nn.BatchNorm1d(2)}
    return TrainState(modules, torch.optim.AdamW(modules["embedder"].parameters(), fused=True))


def learn(state: TrainState) -> None:
    model = state.modules["embedder"]
    model(torch.ones(4, 3)).square().sum().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()


def test_moments_lie_in_memory_like_their_parameters(tmp_path):
    def convolution() -> TrainState:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return TrainState({"embedder": model}, torch.optim.AdamW(model.parameters(), fused=True))

    def step(state: TrainState) -> None:
        state.optimizer.zero_grad()
        state.modules["embedder"](torch.arange(75.0).view(1, 3, 5, 5)).square().mean().backward()
        state.optimizer.step()

    first, second = convolution(), convolution()
    step(first)
    load_checkpoint(save_checkpoint(tmp_path, 1, first, None, keep=1), second)
    step(first)
    step(second)
    weights = [state.modules["embedder"].state_dict()["weight"] for state in (first, second)]
    assert torch.equal(*weights)


LISTS = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]])
TABLE = PoolTable(3, np.array([4, 7, 9]), LISTS[:, 1:], LISTS, 0.1 + 0.2)


def test_restores_everything_bit_by_bit(tmp_path):
    first, second = make_state(0), make_state(1)
    for _ in range(3):
        learn(first)
    path = save_checkpoint(tmp_path, 12, first, TABLE, keep=2)
    restored = load_checkpoint(path, second)
    assert restored.step == 12
    assert restored.table is not None
    assert restored.table.refresh == 3
    np.testing.assert_array_equal(restored.table.rows, TABLE.rows)
    np.testing.assert_array_equal(restored.table.neighbors, TABLE.neighbors)
    np.testing.assert_array_equal(restored.table.compared, TABLE.compared)
    assert restored.table.sigma == TABLE.sigma
    for _ in range(3):
        learn(first)
        learn(second)
    for name, module in first.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, second.modules[name].state_dict()[key]), (name, key)


def test_what_relations_are_calibrated_with_is_kept_bit_by_bit(tmp_path):
    state = make_state(0)
    weights = Weights(-(0.1 + 0.2), 1 / 3, 2 / 3)
    unit, similarity = torch.randn(3, 2) / 3, torch.rand(3)
    path = save_checkpoint(
        tmp_path, 12, state, TABLE._replace(calibrated=Calibrated(weights, 0.7 / 3, unit, similarity)), keep=2
    )
    for table in (load_checkpoint(path, state).table, read_pool(path)):
        assert table is not None
        assert table.calibrated is not None
        assert table.calibrated[:2] == (weights, 0.7 / 3)
        assert torch.equal(table.calibrated.unit, unit)
        assert torch.equal(table.calibrated.similarity, similarity)


def test_what_is_known_of_a_larger_table_is_kept_bit_by_bit(tmp_path):
    state = make_state(0)
    known = KnownImages(np.array([4, 5, 7, 9]), torch.randn(4, 2), torch.randn(3, 2))
    path = save_checkpoint(tmp_path, 12, state, TABLE._replace(known=known), keep=2)
    for table in (load_checkpoint(path, state).table, read_pool(path)):
        assert table is not None
        assert table.known is not None
        np.testing.assert_array_equal(table.known.rows, known.rows)
        assert torch.equal(table.known.embeddings, known.embeddings)
        assert torch.equal(table.known.basis, known.basis)


def test_the_pool_of_a_checkpoint_from_before_calibration_is_read(tmp_path):
    path = save_checkpoint(tmp_path, 12, make_state(0), TABLE, keep=2)
    summary = json.loads((path / "state.json").read_text())
    del summary["pool_calibration"]
    summary["self"] = _digest(summary)
    (path / "state.json").write_text(json.dumps(summary))
    table = read_pool(path)
    assert table is not None
    assert table.calibrated is None


def test_the_last_ones_stay_in_numeric_order(tmp_path):
    state = make_state(0)
    for step in (5, 9, 10, 100):
        save_checkpoint(tmp_path, step, state, None, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-10", "step-100"]


@pytest.mark.parametrize("file", ["modules.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["torn", "changed", "missing"])
def test_a_damaged_checkpoint_is_refused_and_the_previous_one_named(tmp_path, file, damage):
    state = make_state(0)
    learn(state)
    save_checkpoint(tmp_path, 1, state, None, keep=2)
    path = save_checkpoint(tmp_path, 2, state, None, keep=2)
    content = bytearray((path / file).read_bytes())
    if damage == "missing":
        (path / file).unlink()
    elif damage == "torn":
        (path / file).write_bytes(content[: len(content) // 2])
    elif file == "state.json":
        (path / file).write_text(json.dumps({"step": 2}))
    else:
        content[-1] ^= 1
        (path / file).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + r".*delete it to use step-1"):
        load_checkpoint(path, state)


@pytest.mark.parametrize("file", ["modules.safetensors", "pool.safetensors", "state.json"])
def test_every_reader_finds_a_flipped_bit(tmp_path, file):
    state = make_state(0)
    path = save_checkpoint(tmp_path, 3, state, TABLE, keep=1)
    assert read_module(path, "embedder.").keys() == {"weight", "bias"}
    content = bytearray((path / file).read_bytes())
    places = [content.rindex(b"0.3")] if file == "state.json" else [len(content) // 2, len(content) - 1]
    for place in places:
        content[place] ^= 1
        (path / file).write_bytes(content)
        readers: list[Callable[[], object]] = [lambda: load_checkpoint(path, make_state(1))]
        if file != "pool.safetensors":
            readers.append(lambda: read_module(path, "teacher."))
        if file != "modules.safetensors":
            readers.append(lambda: read_pool(path))
        for read in readers:
            with pytest.raises(BadInput, match=f"step-3 cannot be read .{file} is not what was written"):
                read()


def test_another_model_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 2, make_state(0), None, keep=2)
    other = TrainState({"embedder": nn.Linear(5, 2), "teacher": nn.BatchNorm1d(2)}, make_state(0).optimizer)
    with pytest.raises(ValueError, match="is of another model or loss"):
        load_checkpoint(path, other)


def test_a_failed_save_leaves_earlier_checkpoints_and_no_rubbish(tmp_path, monkeypatch):
    state = make_state(0)
    save_checkpoint(tmp_path, 1, state, None, keep=1)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stml_semi.run_folder.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, state, None, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_what_may_not_be_read_is_neither_deleted_nor_no_run(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, writes=False)
    for file in (run.config_file, run.log.metrics):
        file.write_text("")
    assert run.is_run()
    checkpoint = save_checkpoint(run.checkpoints, 1, make_state(0), None, keep=1)

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput, match="cannot be read .Permission denied.; check the path and its permissions"):
        RunFolder.open(tmp_path)
    with pytest.raises(BadInput, match="may not be read; make it readable with chmod") as said:
        read_module(checkpoint, "embedder.")
    assert "delete" not in str(said.value)
    with pytest.raises(BadInput, match="cannot be read .File name too long"):
        RunFolder("n" * 300, writes=False).is_run()
