"""Files for `transformers.Trainer`, and what its own schedules do.

Written for transformers 5.23 (accelerate 1.15). Where the facts are from: ``transformers/training_args.py`` (the arguments'
names; ``warmup_steps``, ``lr_scheduler_type``, ``lr_scheduler_kwargs``, ``train_sampling_strategy``) and
``transformers/optimization.py`` (``get_wsd_schedule``, ``get_cosine_with_min_lr_schedule_with_warmup``,
``get_constant_schedule_with_warmup``).

Trainer takes step k (from 1) at the factor of k - 1, so its own warm-up starts at 0 and lags one step. `train.py` sets the
plan's rate itself and is exact; the arguments name the nearest built-in schedule for those who keep their own script. In
``warmup_stable_decay`` the floor also lifts the start of the warm-up; its hold is one step shorter here, so that the decay
is exact.

Trainer knows no offset into the data and shuffles unless ``train_sampling_strategy`` is ``sequential``; `train.py` reads the
windows in order from the stage's offset on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.export.hf_config import hf_config
from app.export.plan import Command, Stage, TrainingPlan

VERSION = "transformers 5.23"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
CONVERSION = "None: the trainer's own format is the one that grows. Both stages and the growth were run here."
NOTES = (
    "Trainer's built-in schedules lag the plan by one step in the warm-up (its first step has the rate of step 0); train.py "
    "sets the plan's rate exactly",
)


def to_hf(base: Stage) -> tuple[Command, ...]:
    del base  # train.py saves the stage's end there itself
    return ()


def from_hf(grown: Stage) -> tuple[Command, ...]:
    del grown
    return ()


def start_commands() -> tuple[str, str]:
    return ("python train.py base --data TOKENS.bin", "python train.py grown --data TOKENS.bin")


def files(plan: TrainingPlan) -> dict[str, str]:
    """Path below the plan's folder -> content."""
    written = {"train.py": Path(__file__).with_name("trainer_script.py").read_text(encoding="utf-8")}
    for stage in plan.stages:
        written[f"{stage.name}.training_arguments.json"] = json.dumps(training_arguments(stage), indent=1) + "\n"
        written[f"{stage.name}.config.json"] = json.dumps(hf_config(stage.model), indent=1) + "\n"
    return written


def training_arguments(stage: Stage) -> dict[str, Any]:
    """Keyword arguments of ``TrainingArguments`` on one device; `train.py` shares the batch among more."""
    optimizer, schedule = stage.optimizer, stage.schedule
    return {
        "output_dir": stage.checkpoint_dir,
        "max_steps": stage.num_steps,
        "per_device_train_batch_size": stage.batch_sequences,
        "gradient_accumulation_steps": 1,
        "learning_rate": schedule.peak_lr,
        "warmup_steps": schedule.warmup_steps,
        **_builtin_schedule(stage),
        "optim": "adamw_torch",
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.epsilon,
        "max_grad_norm": optimizer.gradient_clip,
        "train_sampling_strategy": "sequential",
        "dataloader_drop_last": True,
        "include_num_input_tokens_seen": "all",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": max(1, stage.num_steps // 10),
        "save_total_limit": 2,
        "report_to": "none",
    }


def _builtin_schedule(stage: Stage) -> dict[str, Any]:
    schedule = stage.schedule
    floor = schedule.final_lr / schedule.peak_lr
    if schedule.kind == "constant":
        return {"lr_scheduler_type": "constant_with_warmup"}
    if schedule.kind == "cosine":
        return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": floor}}
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {
            "num_stable_steps": max(0, schedule.hold_steps - 1),
            "num_decay_steps": schedule.decay_steps,
            "warmup_type": "linear",
            "decay_type": "linear",
            "min_lr_ratio": floor,
        },
    }
