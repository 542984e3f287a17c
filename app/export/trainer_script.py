"""Trains one stage of the plan beside this file with transformers' Trainer: python train.py base|grown --data TOKENS.bin

TOKENS.bin holds token ids in a row, uint16 or uint32 (--dtype), or is a .npy of them; a stage reads windows of one context
length in order from its offset on, each with the token after it. The learning rate is the plan's own, step by step. Stop it
and start it again: it goes on from its last checkpoint. Under torchrun the batch is shared among the processes; --per-device
sets how many sequences one holds at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

HERE = Path(__file__).resolve().parent


class Windows(Dataset):
    """Windows of ``context_length`` tokens, from sequence ``first`` of the file on."""

    def __init__(self, path: Path, dtype: str, first: int, num_windows: int, context_length: int) -> None:
        tokens = np.load(path, mmap_mode="r") if path.suffix == ".npy" else np.memmap(path, dtype=dtype, mode="r")
        needed = (first + num_windows) * context_length
        if len(tokens) < needed:
            raise SystemExit(
                f"--data {path} holds {len(tokens):,} tokens, but the stage reads up to {needed:,}; give more"
            )
        self.tokens, self.first, self.num_windows, self.context_length = tokens, first, num_windows, context_length

    def __len__(self) -> int:
        return self.num_windows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = (self.first + index) * self.context_length
        ids = torch.from_numpy(self.tokens[start : start + self.context_length].astype(np.int64))
        return {"input_ids": ids, "labels": ids}  # the model shifts the labels itself


def rate_factor(step: int, schedule: dict[str, Any]) -> float:
    """Learning rate of ``step`` (1 is the first) over the peak; after the last step its own."""
    if step <= schedule["warmup_steps"]:
        return step / schedule["warmup_steps"]
    decayed = step - schedule["warmup_steps"] - schedule["hold_steps"]
    if decayed <= 0 or schedule["kind"] == "constant":
        return 1.0
    share = min(1.0, decayed / schedule["decay_steps"])
    left = 1 - share if schedule["kind"] == "wsd" else (1 + math.cos(math.pi * share)) / 2
    floor = schedule["final_lr"] / schedule["peak_lr"]
    return floor + (1 - floor) * left


class StageTrainer(Trainer):
    """Trainer with the plan's learning rate: LambdaLR counts from 0, the plan from 1."""

    schedule: dict[str, Any]
    lr_scheduler: Any

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda done: rate_factor(done + 1, self.schedule)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler


class RateLog(TrainerCallback):
    """Appends step, tokens and the rate of every optimizer step to ``path``."""

    def __init__(self, path: Path, batch_tokens: int) -> None:
        self.path, self.batch_tokens = path, batch_tokens

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            step = state.global_step + 1
            row = {"step": step, "tokens": step * self.batch_tokens, "lr": kwargs["optimizer"].param_groups[0]["lr"]}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["base", "grown"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dtype", choices=["uint16", "uint32"], default="uint16")
    parser.add_argument(
        "--per-device", type=int, help="sequences that one device holds at a time; all its share if left out"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()

    stage = json.loads((HERE / "plan.json").read_text(encoding="utf-8"))[options.stage]
    arguments = json.loads((HERE / f"{options.stage}.training_arguments.json").read_text(encoding="utf-8"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    per_device = options.per_device or max(1, stage["batch_sequences"] // world)
    accumulation, rest = divmod(stage["batch_sequences"], world * per_device)
    if rest or not accumulation:
        raise SystemExit(
            f"--per-device {per_device} x {world} processes does not divide the batch of {stage['batch_sequences']} sequences"
        )
    arguments |= {
        "output_dir": str(HERE / stage["checkpoint_dir"]),
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "seed": options.seed,
        "use_cpu": options.cpu,
    }
    if torch.cuda.is_available() and not options.cpu:
        arguments["bf16"] = True
    training = TrainingArguments(**arguments)
    if training.n_gpu > 1:
        raise SystemExit(f"one process sees {training.n_gpu} GPUs; start one process a GPU with torchrun")

    start = stage["start_checkpoint"]
    torch.manual_seed(options.seed)
    if start is None:
        config = AutoConfig.from_pretrained(HERE / f"{options.stage}.config.json")
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(HERE / start, dtype=torch.float32)
    num_layers = model.config.num_hidden_layers
    if num_layers != stage["model"]["num_layers"]:
        raise SystemExit(f"{start} has {num_layers} layers, but the stage trains {stage['model']['num_layers']}")

    logs = HERE / stage["run_log"]
    logs.mkdir(parents=True, exist_ok=True)
    trainer = StageTrainer(
        model=model,
        args=training,
        train_dataset=Windows(
            options.data,
            options.dtype,
            stage["data_offset"]["sequences"],
            stage["num_steps"] * stage["batch_sequences"],
            stage["model"]["context_length"],
        ),
        callbacks=[RateLog(logs / "rates.jsonl", stage["batch_tokens"])],
    )
    trainer.schedule = stage["schedule"]
    output = Path(training.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)) if output.is_dir() else None)
    trainer.save_model(str(HERE / ("checkpoints/base-hf" if options.stage == "base" else "checkpoints/final")))
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(logs / "trainer_state.json"))


if __name__ == "__main__":
    main()
