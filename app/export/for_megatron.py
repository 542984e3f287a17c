"""Files for Megatron-LM's `pretrain_gpt.py`: arguments of both stages, and a start at a sample of the data.

Written for Megatron-LM core_v0.16 and later. Where the facts are from: ``megatron/training/config/training_config.py``
(``TrainingConfig``, ``SchedulerConfig``, ``CheckpointConfig``: every field is an argument, ``_`` written ``-``),
``megatron/training/arguments.py`` (network size, ``--group-query-attention``, the reset of ``consumed_train_samples``),
``megatron/core/optimizer_param_scheduler.py`` (the schedule), ``megatron/training/checkpointing.py``
(``--pretrained-checkpoint``), ``megatron/training/training.py`` (``--exit-interval`` saves and ends);
Megatron-Bridge ``examples/conversion/convert_checkpoints.py`` (conversion).

Iteration k (from 1) has the rate of (k - 1) B samples, and a warm-up starts at ``--lr-warmup-init``. So that it has the
plan's rate exactly::

    lr_warmup_init = P / w        lr_warmup_samples = (w - 1) B        lr_decay_samples = (T - 1) B        wsd decay = e B

Which sample comes when depends on the number of samples a run asks for and its seed, so both stages ask for the whole run's
(``--train-samples``) and end by ``--exit-interval``; no argument sets where to begin, so `start_at_sample.py` does.
"""

from __future__ import annotations

import shlex

from app.export.plan import Command, Stage, TrainingPlan
from fitting.errors import InputError

VERSION = "Megatron-LM core_v0.16"
FAMILIES = ("llama",)
CONVERSION = (
    "By Megatron-Bridge, run from its checkout; neither it nor pretrain_gpt.py was run where this was written (they need "
    "CUDA). Its export looks for a run_config.yaml, which Megatron-Bridge's own trainer writes and pretrain_gpt.py may not: "
    "then call AutoBridge.export_ckpt yourself. Check with `growthlaw checkpoint show checkpoints/base-hf` before growing. "
    "--vocab-size is padded to a multiple of --make-vocab-size-divisible-by: the bridge cuts it back, and must."
)
NOTES = (
    "Megatron draws its own initial weights (--init-method-std 0.02, not the engine's rule)",
    "samples are counted in sequences; both stages ask for the samples of the whole run so that their order is one, and the "
    "corpus must hold them in one epoch",
    "where a cosine begins without a warm-up, Megatron's first step has the peak rate and its rate is the plan's of up to one "
    "step earlier, equal at the end; every other schedule has the plan's rate at every step",
)
_OFFSET_SCRIPT = '''"""Runs pretrain_gpt.py from a sample of its data: python start_at_sample.py START pretrain_gpt.py ARGS

Megatron-LM sets consumed_train_samples to 0 where no checkpoint of this run is loaded, and has no argument for it. A run
that resumes (iteration above 0) has its own count from its checkpoint, and is left alone.
"""

import runpy
import sys

from megatron.training import get_args, training

start = int(sys.argv[1])
build = training.build_train_valid_test_data_loaders


def build_from_start(*args, **kwargs):
    if get_args().iteration == 0:
        get_args().consumed_train_samples = start
    return build(*args, **kwargs)


training.build_train_valid_test_data_loaders = build_from_start
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
'''


def to_hf(base: Stage) -> tuple[Command, ...]:
    return (
        Command(
            what="Megatron to transformers",
            run="python MEGATRON_BRIDGE/examples/conversion/convert_checkpoints.py export --hf-model hf/base "
            f"--megatron-path {base.checkpoint_dir} --hf-path checkpoints/base-hf",
        ),
    )


def from_hf(grown: Stage) -> tuple[Command, ...]:
    return (
        Command(
            what="transformers to Megatron",
            run="python MEGATRON_BRIDGE/examples/conversion/convert_checkpoints.py import "
            f"--hf-model {grown.start_checkpoint} --megatron-path {_start(grown)}",
        ),
    )


def start_commands() -> tuple[str, str]:
    return ("bash base.sh TOKENIZER_AND_DATA_ARGUMENTS", "bash grown.sh TOKENIZER_AND_DATA_ARGUMENTS")


def files(plan: TrainingPlan) -> dict[str, str]:
    """Path below the plan's folder -> content."""
    written = {"start_at_sample.py": _OFFSET_SCRIPT}
    for stage in plan.stages:
        lines = " \\\n  ".join(_paired(arguments(plan, stage)))
        written[f"{stage.name}.sh"] = (
            "#!/usr/bin/env bash\n"
            f"# The {stage.name} stage for {VERSION}. MEGATRON is its checkout, NPROC the GPUs of this node; add tokenizer,\n"
            "# data and parallelism arguments: bash " + f"{stage.name}.sh --tokenizer-type ... --data-path ...\n"
            'set -euo pipefail\ncd "$(dirname "$0")"\n'
            'PYTHONPATH="$MEGATRON" torchrun --nproc-per-node "${NPROC:-8}" start_at_sample.py '
            f'{stage.data_offset.sequences} "$MEGATRON/pretrain_gpt.py" \\\n  {lines} \\\n  "$@"\n'
        )
    return written


def arguments(plan: TrainingPlan, stage: Stage) -> list[str]:
    """The stage's arguments for `pretrain_gpt.py`, but for tokenizer, data and parallelism."""
    return [*_model(stage), *_length(plan, stage), *_schedule(stage), *_checkpoints(stage)]


def _model(stage: Stage) -> list[str]:
    model = stage.model
    given = [
        "--num-layers", model.num_layers, "--hidden-size", model.hidden_size, "--ffn-hidden-size", model.intermediate_size,
        "--num-attention-heads", model.num_heads, "--kv-channels", model.head_size,
        "--group-query-attention", "--num-query-groups", model.num_kv_heads,
        "--seq-length", model.context_length, "--max-position-embeddings", model.context_length,
        "--vocab-size", model.vocab_size, "--normalization", "RMSNorm", "--norm-epsilon", model.norm_epsilon,
        "--position-embedding-type", "rope", "--rotary-base", round(model.rope_theta),
        "--swiglu", "--disable-bias-linear", "--attention-dropout", 0.0, "--hidden-dropout", 0.0,
    ]  # fmt: skip
    if not model.tie_embeddings:
        given.append("--untie-embeddings-and-output-weights")
    return [str(value) for value in given]


def _length(plan: TrainingPlan, stage: Stage) -> list[str]:
    num_samples = sum(one.num_steps * one.batch_sequences for one in plan.stages)
    optimizer = stage.optimizer
    given = [
        "--micro-batch-size", 1, "--global-batch-size", stage.batch_sequences,
        "--train-samples", num_samples, "--exit-interval", stage.num_steps,
        "--optimizer", "adam", "--weight-decay", optimizer.weight_decay,
        "--adam-beta1", optimizer.beta1, "--adam-beta2", optimizer.beta2, "--adam-eps", optimizer.epsilon,
        "--clip-grad", optimizer.gradient_clip, "--bf16",
    ]  # fmt: skip
    return [str(value) for value in given]


def _schedule(stage: Stage) -> list[str]:
    schedule, batch, T = stage.schedule, stage.batch_sequences, stage.num_steps
    if max(schedule.warmup_steps, 1) >= T:
        raise InputError(
            "num_steps", f"of the {stage.name} stage is {T}, but Megatron's decay must reach past its warm-up of "
            f"{schedule.warmup_steps} steps", "use a smaller batch or a shorter warm-up",
        )  # fmt: skip
    given = ["--lr", schedule.peak_lr, "--min-lr", schedule.final_lr, "--lr-decay-samples", (T - 1) * batch]
    if schedule.warmup_steps:
        given += [
            "--lr-warmup-init", schedule.peak_lr / schedule.warmup_steps,
            "--lr-warmup-samples", (schedule.warmup_steps - 1) * batch,
        ]  # fmt: skip
    if schedule.kind == "wsd":
        given += ["--lr-decay-style", "WSD", "--lr-wsd-decay-style", "linear"]
        given += ["--lr-wsd-decay-samples", schedule.decay_steps * batch]
    else:
        given += ["--lr-decay-style", schedule.kind]
    return [str(value) for value in given]


def _checkpoints(stage: Stage) -> list[str]:
    given = ["--save", stage.checkpoint_dir, "--load", stage.checkpoint_dir]
    given += ["--save-interval", str(max(1, stage.num_steps // 10)), "--log-interval", "1"]
    given += ["--tensorboard-dir", stage.run_log]
    if stage.start_checkpoint is not None:
        # Weights alone, and only while the stage has no checkpoint of its own; Megatron then drops optimizer and iteration.
        given += ["--pretrained-checkpoint", _start(stage)]
    return given


def _start(grown: Stage) -> str:
    return f"{grown.start_checkpoint}-megatron"


def _paired(given: list[str]) -> list[str]:
    """One line a flag, with its values."""
    lines: list[str] = []
    for value in map(shlex.quote, given):
        if value.startswith("--"):
            lines.append(value)
        else:
            lines[-1] += f" {value}"
    return lines
