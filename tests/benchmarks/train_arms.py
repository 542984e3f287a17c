"""The arms of `bench_train.py`, each a process of its own: `python train_arms.py ARM JOB.json`.

========  =======================================================================================================
prepare   our initial weights as a transformers folder, and the windows of every step in our order (windows.npy)
plain     a loop of forward, backward, clipping and fused AdamW in torch
trainer   the Hugging Face Trainer
litgpt    litgpt's own `litgpt.pretrain.setup` on its own model of the same shape, as shipped or without torch.compile
========  =======================================================================================================

All read the same windows in the same order with the same batch, rates and number of threads. Each writes the time at the end
of every optimizer step, and its mean training loss over the last quarter of them, as JSON to the job's `out`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


class Clock:
    """Wall and CPU time at the end of every step."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._cpu_times: list[float] = []

    def tick(self) -> None:
        self._times.append(time.monotonic())
        self._cpu_times.append(time.process_time())

    def read(self) -> dict[str, Any]:
        return {"times": self._times, "cpu_times": self._cpu_times}


def prepare(job: dict[str, Any]) -> None:
    """The engine's own initial model and data order, for peers that start where it starts."""
    import numpy as np

    from app.contract import read_spec
    from app.engine.data import open_corpus, train_windows
    from app.engine.models import build_model, initialize

    spec = read_spec(Path(job["run_dir"]))
    model = build_model(spec.model, num_layers=spec.model.num_layers)
    initialize(model, seed=spec.init_seed)
    model.save_pretrained(job["model_dir"])
    stream, context_length = open_corpus(spec).train, spec.model.context_length
    sequences = np.arange(job["num_steps"] * spec.training.batch_sequences, dtype=np.int64)
    indices = train_windows(sequences, num_windows=stream.num_windows(context_length), data_seed=spec.data_seed)
    np.save(job["windows"], stream.windows(indices, context_length).astype(np.int32))


def plain(job: dict[str, Any]) -> dict[str, Any]:
    """The least that trains the same model: what a careful user would write in an afternoon."""
    import numpy as np
    import torch

    device = torch.device(job["device"])
    model = _model(job)
    forward = torch.compile(model) if job["compile"] else model
    optimizer = _optimizer(model, job)
    windows, clock, losses = np.load(job["windows"], mmap_mode="r"), Clock(), []
    batch, micro = job["batch_sequences"], job["micro_batch_sequences"]
    for step in range(job["num_steps"]):
        total = torch.zeros((), device=device)
        for start in range(step * batch, (step + 1) * batch, micro):
            part = torch.from_numpy(windows[start : start + micro].astype(np.int64)).to(device, non_blocking=True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=job["precision"] == "bf16"):
                logits = forward(input_ids=part[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())
            loss = loss * (len(part) / batch)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job["gradient_clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        if device.type == "cuda" and step + 1 in (job["num_skipped"], job["num_steps"]):
            torch.cuda.synchronize()
        clock.tick()
    return clock.read() | {"loss": float(torch.stack(losses[-job["num_steps"] // 4 :]).mean())}


def trainer(job: dict[str, Any]) -> dict[str, Any]:
    """`transformers.Trainer` without reports or checkpoints, logging as rarely as our engine."""
    import numpy as np
    import torch
    from torch.optim.lr_scheduler import LambdaLR
    from torch.utils.data import Dataset, SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    windows = np.load(job["windows"], mmap_mode="r")

    class Windows(Dataset):  # type: ignore[misc,type-arg]
        def __len__(self) -> int:
            return len(windows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            window = torch.from_numpy(windows[index].astype(np.int64))
            # shift_labels: the model's own loss would otherwise drop the last target of every window.
            return {"input_ids": window[:-1], "labels": window[1:], "shift_labels": window[1:]}

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    clock = Clock()

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if job["device"] == "cuda" and state.global_step in (job["num_skipped"], job["num_steps"]):
                torch.cuda.synchronize()
            clock.tick()

    model = _model(job)
    model.config.use_cache = False
    optimizer = _optimizer(model, job)
    arguments = TrainingArguments(
        output_dir=str(Path(job["out"]).with_suffix(".trainer")),
        per_device_train_batch_size=job["micro_batch_sequences"],
        gradient_accumulation_steps=job["batch_sequences"] // job["micro_batch_sequences"],
        max_steps=job["num_steps"],
        max_grad_norm=job["gradient_clip"],
        logging_steps=job["num_steps"] // 4,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=job["device"] == "cpu",
        bf16=job["precision"] == "bf16",
        torch_compile=job["compile"],
        dataloader_pin_memory=job["device"] == "cuda",
    )
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    run = InOrder(
        model=model, args=arguments, train_dataset=Windows(), optimizers=(optimizer, scheduler), callbacks=[Ticks()]
    )
    # Every window has as many targets, so the mean over a micro batch is the mean over its tokens.
    run.model_accepts_loss_kwargs = False
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    return clock.read() | {"loss": losses[-1]}


def litgpt(job: dict[str, Any]) -> dict[str, Any]:
    """litgpt's own pretraining; the time of a step is when its loop asks for the next step's first batch."""
    import litgpt.pretrain as pretrain
    import numpy as np
    import torch
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.data import DataModule
    from torch.utils.data import DataLoader, Dataset

    windows, shape = np.load(job["windows"], mmap_mode="r"), job["shape"]
    accumulated = job["batch_sequences"] // job["micro_batch_sequences"]
    asked = Clock()
    training = False

    class Windows(Dataset):  # type: ignore[misc,type-arg]
        def __len__(self) -> int:
            return len(windows)

        def __getitem__(self, index: int) -> Any:
            if training and index % job["batch_sequences"] == 0:
                if job["device"] == "cuda" and index // job["batch_sequences"] == job["num_skipped"]:
                    torch.cuda.synchronize()
                asked.tick()
            return torch.from_numpy(windows[index].astype(np.int64))

    class Data(DataModule):  # type: ignore[misc]
        def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
            self.batch_size = batch_size

        def train_dataloader(self) -> Any:
            return DataLoader(Windows(), batch_size=self.batch_size, shuffle=False)

        val_dataloader = train_dataloader

    fit = pretrain.fit

    def timed_fit(*args: Any, **kwargs: Any) -> None:
        nonlocal training
        validate = pretrain.validate

        def untimed(*inner: Any, **named: Any) -> Any:
            nonlocal training
            training = False
            found = validate(*inner, **named)
            training = True
            return found

        pretrain.validate = untimed
        fit(*args, **kwargs)
        if job["device"] == "cuda":
            torch.cuda.synchronize()
        asked.tick()

    pretrain.fit = timed_fit
    pretrain.save_checkpoint = lambda *_, **__: None
    torch.set_num_threads(job["num_threads"])
    pretrain.setup(
        "same-shape",
        model_config=Config(
            name="same-shape", block_size=shape["context_length"], vocab_size=shape["vocab_size"],
            padded_vocab_size=shape["vocab_size"], n_layer=shape["num_layers"], n_head=shape["num_heads"],
            n_query_groups=shape["num_kv_heads"], n_embd=shape["hidden_size"], rotary_percentage=1.0,
            parallel_residual=False, bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
            intermediate_size=shape["intermediate_size"],
        ),
        out_dir=Path(job["out"]).with_suffix(".litgpt"),
        precision="32-true" if job["precision"] == "fp32" else "bf16-mixed",
        data=Data(),
        train=TrainArgs(
            save_interval=None, log_interval=max(1, job["num_steps"] // 4), global_batch_size=job["batch_sequences"],
            micro_batch_size=job["micro_batch_sequences"], lr_warmup_steps=0, max_norm=job["gradient_clip"],
            max_tokens=job["num_steps"] * job["batch_sequences"] * shape["context_length"], tie_embeddings=False,
        ),
        eval=EvalArgs(interval=10**9, max_iters=1, initial_validation=False, final_validation=False),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": job["peak_lr"], "betas": (job["beta1"], job["beta2"]), "weight_decay": job["weight_decay"]},
        },
        devices=1,
        logger_name="csv",
    )  # fmt: skip
    assert accumulated * job["micro_batch_sequences"] == job["batch_sequences"]
    # asked[k] is when step k began: its successor's beginning is its end.
    return {name: ticks[1 : job["num_steps"]] + ticks[-1:] for name, ticks in asked.read().items()} | {"loss": None}


def _model(job: dict[str, Any]) -> Any:
    """The prepared model on its device, in memory of its own: a file's mapping is badly aligned and would be a handicap."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["model_dir"], dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return model.to(job["device"]).train()


def _optimizer(model: Any, job: dict[str, Any]) -> Any:
    """AdamW as the engine builds it: fused, decay on matrices alone."""
    import torch

    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": job["weight_decay"]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=job["peak_lr"],
        betas=(job["beta1"], job["beta2"]),
        fused=True,
    )


def main() -> None:
    arm, job_file = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    if arm == "prepare":
        sys.path.insert(0, str(Path(__file__).parents[2]))
        prepare(job)
        return
    import torch

    torch.set_num_threads(job["num_threads"])
    found = {"plain": plain, "trainer": trainer, "litgpt": litgpt}[arm](job)
    import importlib.metadata as metadata

    packages = {"plain": ("torch", "transformers"), "trainer": ("torch", "transformers", "accelerate")}
    found["versions"] = {name: metadata.version(name) for name in packages.get(arm, ("torch", "litgpt", "lightning"))}
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
