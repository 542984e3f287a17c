"""A config module for torchtitan: one function a stage, and a text loader that begins at an offset.

Written for torchtitan 0.3.0, which has no TOML job files any more: ``--module`` and ``--config`` name a Python function that
returns a ``Trainer.Config`` (``torchtitan/config/manager.py``; up to 0.2 a TOML file filled a JobConfig). Where the facts are
from: ``torchtitan/config/configs.py`` (TrainingConfig), ``components/optimizer/lr_scheduler.py`` (the schedule),
``components/checkpointer/base.py`` and ``dcp.py`` (safetensors in and out), ``models/llama3`` (model and weight names),
``hf_datasets/text_datasets.py`` (the loader).

Its step k has the factor of k / w in the warm-up, as the plan; it holds for one step more than ``total_steps`` asks, so that a
run does not end at 0. ``total_steps`` = T - 1 takes that step back: a wsd stage has the plan's rate at every step and ends on
its floor. Where warm-up and decay fill the whole stage (cosine always), torchtitan fits T - w - 1 steps of decay into the
same place: its rate is then the plan's of up to one step earlier at the start of the decay, and equal at its end.
"""

from __future__ import annotations

from app.export.plan import Command, Stage, TrainingPlan

VERSION = "torchtitan 0.3.0"
FAMILIES = ("llama",)
CONVERSION = (
    "By torchtitan itself: a stage ends with safetensors in transformers' names (last_save_in_hf) and starts from them "
    "(initial_load_in_hf). It writes no config.json, so hf/base/config.json goes beside the weights. The config module was "
    "loaded by torchtitan's own classes where this was written; it was not trained there."
)
NOTES = (
    "torchtitan draws its own initial weights (models/llama3, depth-scaled 0.02, not the engine's rule)",
    "torchtitan's text loader cuts documents itself, a stream for each data-parallel rank: stage two goes on where stage one "
    "ended only with the same data-parallel degree and num_workers = 0; it reads the documents before the offset again to "
    "skip them",
)
_MODULE = "growthlaw_stages"


def to_hf(base: Stage) -> tuple[Command, ...]:
    last = f"{base.checkpoint_dir}/checkpoint/step-{base.num_steps}"
    return (
        Command(
            what="torchtitan's last checkpoint as a transformers folder",
            run=f"mkdir -p checkpoints/base-hf && cp {last}/model*.safetensors* hf/base/config.json checkpoints/base-hf/",
        ),
    )


def from_hf(grown: Stage) -> tuple[Command, ...]:
    del grown  # stage two loads the safetensors itself
    return ()


def start_commands() -> tuple[str, str]:
    run = (
        f"PYTHONPATH=. torchrun --nproc-per-node 8 -m torchtitan.train --module {_MODULE} --config {{}} "
        "--hf_assets_path TOKENIZER --dataloader.dataset NAME"
    )
    return run.format("base"), run.format("grown")


def files(plan: TrainingPlan) -> dict[str, str]:
    """Path below the plan's folder -> content."""
    stages = "\n\n".join(_function(stage) for stage in plan.stages)
    return {f"{_MODULE}.py": f"{_HEAD}\n\n{stages}"}


def _function(stage: Stage) -> str:
    model, schedule, optimizer = stage.model, stage.schedule, stage.optimizer
    adamw = f"{schedule.peak_lr!r}, {(optimizer.beta1, optimizer.beta2)!r}, {optimizer.epsilon!r}, {optimizer.weight_decay!r}"
    cosine = schedule.kind == "cosine"
    # Without a decay the step after the last, which torchtitan still computes, must lie in the hold.
    total_steps = stage.num_steps - (1 if schedule.decay_steps and stage.num_steps > 1 else 0)
    decay_ratio = None if cosine else schedule.decay_steps / total_steps
    start = (
        ""
        if stage.start_checkpoint is None
        else f"""
            initial_load_path=str(HERE / {stage.start_checkpoint!r}),
            initial_load_in_hf=True,"""
    )
    return f'''def {stage.name}() -> Trainer.Config:
    """{stage.num_steps:,} steps of {stage.batch_sequences:,} sequences: {stage.num_tokens:,} tokens."""
    spec = _model_spec(
        flavor="growthlaw-{stage.name}",
        n_layers={model.num_layers},
        dim={model.hidden_size},
        n_heads={model.num_heads},
        n_kv_heads={model.num_kv_heads},
        hidden_dim={model.intermediate_size},
        vocab_size={model.vocab_size},
        seq_len={model.context_length},
        theta={model.rope_theta},
        eps={model.norm_epsilon},
        tied={model.tie_embeddings},
    )
    return Trainer.Config(
        model_spec=spec,
        loss=ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size={model.vocab_size})),
        dump_folder=str(HERE / {stage.checkpoint_dir!r}),
        optimizer=_adamw({adamw}),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps={schedule.warmup_steps},
            total_steps={total_steps},
            decay_ratio={decay_ratio!r},
            decay_type={"cosine" if cosine else "linear"!r},
            min_lr_factor={schedule.final_lr / schedule.peak_lr!r},
        ),
        training=TrainingConfig(
            local_batch_size=1,
            global_batch_size={stage.batch_sequences},
            seq_len={model.context_length},
            steps={stage.num_steps},
            max_norm={optimizer.gradient_clip!r},
        ),
        dataloader=OffsetTextDataLoader.Config(skip_sequences={stage.data_offset.sequences}),
        metrics=MetricsProcessor.Config(log_freq=1, enable_tensorboard=True, save_tb_folder=str(HERE / {stage.run_log!r})),
        checkpoint=CheckpointManager.Config(
            enable=True,
            interval={max(1, stage.num_steps // 10)},
            last_save_model_only=True,
            last_save_in_hf=True,{start}
        ),
    )
'''


_HEAD = '''"""The two stages of the plan beside this file, for torchtitan 0.3.0: --module growthlaw_stages --config base | grown

Flags override, as ever: --training.local_batch_size, --parallelism..., --dataloader.dataset. Not the ones the plan fixes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig
from torchtitan.config import TrainingConfig
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models import llama3
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.trainer import Trainer

HERE = Path(__file__).resolve().parent


class OffsetTextDataLoader(HuggingFaceTextDataLoader):
    """The text loader from sequence ``skip_sequences`` of the whole run on, shared evenly among the data-parallel ranks."""

    @dataclass(kw_only=True, slots=True)
    class Config(HuggingFaceTextDataLoader.Config):
        skip_sequences: int = 0

    def __init__(self, config, *, dp_world_size, **others):
        super().__init__(config, dp_world_size=dp_world_size, **others)
        own, rest = divmod(config.skip_sequences, dp_world_size)
        if rest:
            raise ValueError(f"{dp_world_size} data-parallel ranks do not share {config.skip_sequences} sequences evenly")
        if own and config.num_workers:
            raise ValueError("num_workers must be 0 where sequences are skipped: each worker would begin at the start")
        # The dataset keeps its own place; a checkpoint of this stage overwrites it when the stage resumes.
        windows = iter(self.dataset)
        for _ in range(own):
            next(windows)
        if own:
            self.dataset.load_state_dict(self.dataset.state_dict())


def _adamw(lr, betas, eps, weight_decay):
    """AdamW that leaves norm gains undecayed."""
    def group(pattern, decay):
        kwargs = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": decay}
        return ParamGroupConfig(pattern=pattern, optimizer_name="AdamW", optimizer_kwargs=kwargs)

    return OptimizersContainer.Config(param_groups=[group(r".*norm.*", 0.0), group(r".*", weight_decay)])


def _model_spec(*, flavor, n_layers, dim, n_heads, n_kv_heads, hidden_dim, vocab_size, seq_len, theta, eps, tied):
    rope = ComplexRoPE.Config(dim=dim // n_heads, max_seq_len=seq_len, theta=theta)
    layers = llama3._build_llama3_layers(
        n_layers=n_layers, dim=dim, n_heads=n_heads, n_kv_heads=n_kv_heads, hidden_dim=hidden_dim, rope=rope,
        attn_backend="flex",
    )
    norms = [norm for layer in layers for norm in (layer.attention_norm, layer.ffn_norm)]
    norms.append(RMSNorm.Config(normalized_shape=dim, param_init=llama3._NORM_INIT))
    for norm in norms:
        norm.eps = eps
    model = llama3.Llama3Model.Config(
        dim=dim,
        vocab_size=vocab_size,
        enable_weight_tying=tied,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size, embedding_dim=dim,
            param_init=llama3._EMBEDDING_SKIP_INIT if tied else llama3._EMBEDDING_INIT,
        ),
        norm=norms[-1],
        lm_head=Linear.Config(in_features=dim, out_features=vocab_size, param_init=llama3._output_linear_init(dim)),
        layers=layers,
    )
    return replace(llama3.model_registry("debugmodel"), flavor=flavor, model=model)

'''
