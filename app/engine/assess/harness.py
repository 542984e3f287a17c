"""Tasks of the LM evaluation harness (EleutherAI's `lm-eval`, the extra ``eval``) on a model that is already loaded.

Its own tasks, or YAML tasks of a folder over local files: then nothing is fetched. A YAML task may name Python functions beside
it (``!function``): a task folder is code that runs as its user, unlike a checkpoint.
"""

from __future__ import annotations

import importlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.engine.assess.checkpoint import CheckpointFolder, LoadedModel
from fitting.errors import InputError

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One metric of one task; ``value`` and ``standard_error`` are None where the harness gives no number."""

    task: str
    metric: str
    value: float | None
    standard_error: float | None
    num_samples: int
    num_fewshot: int


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """Which tasks, and how.

    Attributes:
        names: of the harness's own tasks or of those in ``folder``.
        folder: YAML tasks besides the harness's own.
        num_fewshot: examples shown before each question; None: as the task says.
        limit: questions of each task, from its first; None: all.
        batch_size: requests run at once.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8


def run_tasks(loaded: LoadedModel, folder: CheckpointFolder, request: TaskRequest) -> list[TaskScore]:
    """Scores of every task, by name and metric.

    Raises:
        InputError: the extra is not installed, a task is unknown, or the checkpoint has no tokenizer.
    """
    harness = _import_harness()
    if request.folder is not None and not request.folder.is_dir():
        raise InputError("task_dir", f"{request.folder} is no folder", "give the folder that holds the YAML tasks")
    manager = _open_tasks(harness["lm_eval.tasks"].TaskManager, request)
    language_model = harness["lm_eval.models.huggingface"].HFLM(
        pretrained=loaded.model,
        tokenizer=_load_tokenizer(folder),
        batch_size=request.batch_size,
        max_length=loaded.model.config.get_text_config().max_position_embeddings,
        mixed_precision_dtype="bfloat16" if loaded.precision == "bf16" else None,
    )
    with torch.no_grad():
        answer = harness["lm_eval"].simple_evaluate(
            model=language_model,
            tasks=list(request.names),
            task_manager=manager,
            num_fewshot=request.num_fewshot,
            limit=request.limit,
            log_samples=False,
        )
    return [
        TaskScore(
            task=task,
            metric=metric,
            value=_finite(value),
            standard_error=_finite(error),
            num_samples=answer["n-samples"].get(task, {}).get("effective", 0),
            num_fewshot=answer["n-shot"].get(task, 0),
        )
        for task, scores in answer["results"].items()
        for metric, value, error in _metrics(scores)
    ]


def _open_tasks(manager_class: Any, request: TaskRequest) -> Any:
    """The harness's index of tasks; its own thousands of YAML files are read only where the folder does not have them all."""
    for own_tasks in (False, True) if request.folder else (True,):
        manager = manager_class(
            include_path=str(request.folder) if request.folder else None, include_defaults=own_tasks
        )
        unknown = set(request.names) - set(manager.all_tasks)
        if not unknown:
            return manager
    raise InputError("tasks", f"holds {min(unknown)!r}, which is none", "name tasks of the harness or of task_dir")


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _metrics(scores: dict[str, Any]) -> list[tuple[str, float, Any]]:
    """(metric, value, error) out of keys such as ``acc,none`` and ``acc_stderr,none``."""
    found = []
    for key, value in scores.items():
        name, _, kind = key.partition(",")
        if isinstance(value, (int, float)) and kind and not name.endswith("_stderr"):
            shown = name if kind == "none" else f"{name} ({kind})"
            found.append((shown, float(value), scores.get(f"{name}_stderr,{kind}")))
    return found


def _import_harness() -> dict[str, Any]:
    names = ("lm_eval", "lm_eval.tasks", "lm_eval.models.huggingface")
    try:
        modules = {name: importlib.import_module(name) for name in names}
    except ImportError as error:
        raise InputError(
            "tasks", f"need the LM evaluation harness ({error})", "install it: pip install 'growthlaw[eval]'"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return modules


def _load_tokenizer(folder: CheckpointFolder) -> Any:
    from transformers import AutoTokenizer

    if folder.tokenizer_file is None:
        raise InputError("tasks", f"need a tokenizer, but {folder.path} has no tokenizer.json", "put it there")
    tokenizer = AutoTokenizer.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
    if tokenizer.eos_token is None and END_OF_TEXT in tokenizer.get_vocab():
        # Exports of this engine leave special tokens unnamed; the harness puts this one before a first token.
        tokenizer.eos_token = END_OF_TEXT
    return tokenizer
