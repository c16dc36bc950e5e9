import errno

import pytest
import torch
from safetensors import SafetensorError

from stml_semi.runtime.distributed import is_lost_process
from stml_semi.runtime.errors import BadInput, RunFailed
from stml_semi.runtime.failures import is_out_of_memory, out_of_memory, writing


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


def test_a_process_that_hangs_is_lost_like_one_that_died():
    text = "[gloo/transport/tcp/unbound_buffer.cc:129] Timed out waiting 1800000ms for send operation to complete"
    assert is_lost_process(RuntimeError(text))
    assert not is_lost_process(RuntimeError("Timed out waiting for the download"))


@pytest.mark.parametrize(
    ("error", "kind", "fix"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), RunFailed, "free some space"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), RunFailed, "free some space"),
        (PermissionError(errno.EACCES, "Permission denied"), BadInput, "choose another path"),
        (OSError(errno.EROFS, "Read-only file system"), BadInput, "choose another path"),
        (OSError(errno.EIO, "Input/output error"), OSError, "Input/output"),
    ],
)
def test_what_cannot_be_written_is_explained(tmp_path, error, kind, fix):
    with pytest.raises(kind, match=fix), writing("--output", tmp_path):
        raise error


def test_only_what_is_about_the_output_is_called_unwritable(tmp_path):
    with pytest.raises(BadInput, match="choose another path"), writing("--output", tmp_path / "out"):
        (tmp_path / "no" / "folder").rename(tmp_path / "out")
    with pytest.raises(BadInput, match="choose another path"), writing("--output", tmp_path / "out"):
        tmp_path.mkdir()
    with pytest.raises(FileNotFoundError), writing("--output", tmp_path / "out"):
        (tmp_path / "data" / "1.png").read_bytes()
    with pytest.raises(ValueError, match="a fault"), writing("--output", tmp_path / "out"):
        raise ValueError("a fault")
