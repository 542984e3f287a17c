"""Exit codes of the exceptions that torch, safetensors and the system really raise."""

import errno
import os

import pytest
import torch
from safetensors import SafetensorError

from app.contract import ExitCode
from app.engine.errors import BadDataError, BadSpecError, DivergedError, explain
from fitting.errors import InputError


def test_the_engines_own() -> None:
    for error, code in (
        (BadSpecError("a"), ExitCode.BAD_SPEC),
        (BadDataError("a"), ExitCode.BAD_DATA),
        (DivergedError("a"), ExitCode.DIVERGED),
    ):
        assert explain(error) == (code, "a")
    assert explain(InputError("noise", "is 2", "use 0"))[0] is ExitCode.BAD_SPEC


def test_torch_out_of_memory_on_the_cpu() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    code, sentence = explain(caught.value)
    assert code is ExitCode.OUT_OF_MEMORY
    assert "lower training.batch_sequences" in sentence


@pytest.mark.parametrize("error", [MemoryError("numpy"), torch.OutOfMemoryError("CUDA out of memory")])
def test_other_out_of_memory(error: Exception) -> None:
    assert explain(error)[0] is ExitCode.OUT_OF_MEMORY


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disks_of_the_system(number: int) -> None:
    assert explain(OSError(number, os.strerror(number)))[0] is ExitCode.NO_SPACE


def test_a_full_disk_as_safetensors_words_it() -> None:
    # Its own type, the system's number in the text; test_process.py meets the real one under a file-size limit.
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert explain(error)[0] is ExitCode.NO_SPACE
    assert explain(SafetensorError("Error: (os error 2)"))[0] is ExitCode.BUG


def test_all_else_is_a_bug() -> None:
    code, sentence = explain(KeyError("x"))
    assert (code, sentence) == (ExitCode.BUG, "KeyError: 'x'")
    assert explain(PermissionError(errno.EACCES, "denied"))[0] is ExitCode.BUG
