"""What can end a run early, and the exit code and sentence each cause gets.

::

    Exception
    ├── BadSpecError (ValueError)   64  a field asks for something this run or machine cannot do
    ├── fitting's InputError        64  a growth operator cannot do what was asked of it
    ├── BadDataError (ValueError)   65  the corpus is missing, empty, short or damaged
    └── DivergedError               70  the loss left the range a language model can have

Running out of memory (71) or of disk (73), and a partner process that is gone (74), are recognized in the exceptions of
torch, safetensors and the system.
Everything else is a bug (1) and keeps its traceback.
"""

from __future__ import annotations

from app.contract import NO_SPACE_ERRNOS, ExitCode
from fitting.errors import InputError


class BadSpecError(ValueError):
    """A field of the spec that only the engine can judge; the message names field, limit and mend."""


class BadDataError(ValueError):
    """A corpus that cannot be trained on; the message names file, limit and mend."""


class DivergedError(Exception):
    """Training left the range a language model can be in; the last checkpoint is the last good one."""


def explain(error: BaseException) -> tuple[ExitCode, str]:
    """Exit code and one clear sentence for an exception that ended the run.

    >>> explain(BadDataError("train-00000.bin is missing"))[0].name
    'BAD_DATA'
    """
    text = " ".join(str(error).split())
    if isinstance(error, (BadSpecError, InputError)):
        return ExitCode.BAD_SPEC, text
    if isinstance(error, BadDataError):
        return ExitCode.BAD_DATA, text
    if isinstance(error, DivergedError):
        return ExitCode.DIVERGED, text
    if _is_no_space(error):
        return ExitCode.NO_SPACE, (
            f"no space left for the run's files ({text}); what was written before is whole: free space and resume"
        )
    if _is_out_of_memory(error):
        return ExitCode.OUT_OF_MEMORY, (
            f"out of memory ({text}); lower training.batch_sequences or model.context_length, or use a larger machine"
        )
    if _is_lost_process(text):
        return ExitCode.LOST_PROCESS, (
            f"another process of this run is gone ({text}); its own log says why: resume from the last checkpoint"
        )
    return ExitCode.BUG, f"{type(error).__name__}: {text}"


def _is_no_space(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in NO_SPACE_ERRNOS
    # safetensors wraps the system's error in a type of its own, with the number in the text.
    return any(f"os error {number}" in str(error).lower() for number in NO_SPACE_ERRNOS)


def _is_lost_process(text: str) -> bool:
    # What gloo and nccl raise in the processes that are left; the exceptions' types are too wide to tell.
    return any(
        sign in text
        for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")
    )


def _is_out_of_memory(error: BaseException) -> bool:
    # By name, so that this module needs no torch: the CPU allocator raises a plain RuntimeError.
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in text
        or "not enough memory" in text
    )
