"""Writes the logs beside this file with the real tools, a few rows each: python tests/ingest/make_logs.py TOOL

trainer_state.json    transformers 5.23's Trainer, two evaluation sets (TOOL transformers)
events.out.tfevents.* torch's SummaryWriter with torchtitan 0.3.0's tags, as its TensorBoardLogger calls it (TOOL torchtitan)
metrics.csv           Lightning 2.6's CSVLogger with litgpt 0.5's rows (TOOL litgpt; needs lightning)

megatron.log and results.csv are not made here: Megatron-LM prints on GPUs alone. megatron.log follows the format strings of
Megatron-LM core_v0.16's training_log and evaluate_and_print_results, results.csv the header of nanochat's scaling_laws.sh.
8-layers.wandb.jsonl is what `growthlaw runs import wandb:...` keeps with --save-logs, of what transformers logs to W&B.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from pathlib import Path

LOGS = Path(__file__).parent / "logs"


def transformers() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

    set_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    rows = [{"input_ids": (ids := torch.randint(0, 64, (32,))), "labels": ids} for _ in range(64)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=LlamaForCausalLM(config),
            args=TrainingArguments(
                output_dir=folder, max_steps=12, per_device_train_batch_size=4, logging_steps=2, eval_strategy="steps",
                eval_steps=4, save_strategy="no", report_to="none",
                include_num_input_tokens_seen="all", use_cpu=True, learning_rate=1e-2,
            ),
            train_dataset=rows, eval_dataset={"web": rows[:8], "code": rows[8:16]},
        )  # fmt: skip
        trainer.train()
        trainer.state.save_to_json(str(LOGS / "trainer_state.json"))
        config.save_pretrained(folder)
        shutil.copy(Path(folder) / "config.json", LOGS / "config.json")


def torchtitan() -> None:
    from torch.utils.tensorboard import SummaryWriter

    # A run that is killed behind step 8 and goes on from its checkpoint at step 5: an event file each.
    for first, last in ((1, 8), (6, 12)):
        writer = SummaryWriter(str(LOGS), max_queue=1000)
        for step in range(first, last + 1):
            loss = 4.0 - 0.1 * step + (0.5 if first == 1 and step > 5 else 0.0)
            for tag, value in (
                ("loss_metrics/global_avg_loss", loss),
                ("grad_norm", 1.0),
                ("n_tokens_seen", step * 4096),
            ):
                writer.add_scalar(tag, value, step)
            if step % 4 == 0:
                writer.add_scalar("validation_metrics/loss", loss + 0.05, step)
        writer.close()
    for place, path in enumerate(sorted(LOGS.glob("events.out.tfevents.*.*"))):
        path.rename(LOGS / f"events.out.tfevents.{place + 1}")


def litgpt() -> None:
    from lightning.fabric.loggers import CSVLogger

    with tempfile.TemporaryDirectory() as folder:
        logger = CSVLogger(folder, "x", flush_logs_every_n_steps=1)
        for iteration in range(1, 9):
            loss = 4.0 - 0.1 * iteration
            if iteration % 2 == 0:
                tokens = iteration * 4 * 128
                row = {
                    "loss": loss,
                    "iter": iteration,
                    "step": iteration,
                    "epoch": 0,
                    "iter_time": 0.1,
                    "remaining_time": 1.0,
                }
                row |= {"tokens": tokens, "total_tokens": tokens * 2, "learning_rate": 1e-3}
                logger.log_metrics(row, step=iteration - 1)
            if iteration % 4 == 0:
                logger.log_metrics({"val_loss": loss + 0.05, "val_ppl": math.exp(loss + 0.05)}, step=iteration - 1)
        logger.save()
        shutil.copy(Path(logger.log_dir) / "metrics.csv", LOGS / "metrics.csv")


if __name__ == "__main__":
    {"transformers": transformers, "torchtitan": torchtitan, "litgpt": litgpt}[sys.argv[1]]()
