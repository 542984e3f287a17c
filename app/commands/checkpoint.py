"""`growthlaw checkpoint`: grow, verify and show transformers folders, without a service."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from app.commands.output import emit_json, json_option, print_table, short

if TYPE_CHECKING:
    from app.engine.surgery.plan import Plan

_FOLDER = click.Path(path_type=Path)


@click.group()
def checkpoint() -> None:
    """Grow, verify and show checkpoints: local transformers folders of safetensors."""


@checkpoint.command()
@click.argument("source", metavar="SRC", type=_FOLDER)
@click.argument("target", metavar="DST", type=_FOLDER)
@click.option("--factor", type=float, metavar="G", help="Target layers / base layers: 4 is the paper's choice.")
@click.option("--layers", "num_layers", type=int, metavar="L", help="Target layers, instead of --factor.")
@click.option(
    "--order", default="stack", show_default=True, metavar="ORDER",
    help="stack, interpose, middle:A:B, solar:M, list:0,1,..., or a pattern such as 1-234*7-56.",
)  # fmt: skip
@click.option(
    "--operator", type=click.Choice(["direct", "zero", "random", "learn"]), default="direct", show_default=True,
    help="Copies; copies that start as the identity; random layers under a mask; trained combinations.",
)  # fmt: skip
@click.option("--noise", default=0.0, metavar="A", help="Share of fresh noise in copied weights; the paper tries 0.2.")
@click.option("--seed", default=0, show_default=True, help="Of noise and of random weights.")
@click.option("--width", "width_factor", default=1, metavar="K", help="Grow K times wider instead of deeper.")
@click.option(
    "--mask", default=0.0, show_default=True, metavar="M",
    help="Of --operator random, folded into the weights: 0 keeps the base's function, 1 leaves them as drawn.",
)  # fmt: skip
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), help="Type of the target's weights.")
@click.option("--corpus", type=_FOLDER, metavar="DIR", help="Of --operator learn: a prepared corpus to train maps on.")
@click.option("--learn-steps", default=100, show_default=True, help="Of --operator learn: steps its maps are trained.")
@click.option(
    "--rescale-multipliers", is_flag=True,
    help="Divide residual multipliers that depend on depth (granite) by sqrt(L'/L); they are kept otherwise.",
)  # fmt: skip
@click.option("--checksums", is_flag=True, help="Write the SHA-256 of every tensor, copied ones included.")
@click.option("--base-tokens", type=float, metavar="N", help="Tokens the base was trained on, for growth.json.")
@click.option("--max-shard-bytes", type=float, default=5e9, show_default=True, help="Largest shard to write.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@json_option
def grow(base_tokens: float | None, max_shard_bytes: float, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Grow the checkpoint SRC into the new folder DST, which appears whole or not at all.

    Depth without new values is a copy of bytes between files: no model is loaded, whatever its size.
    """
    from app.engine.surgery.grow import grow as write
    from app.engine.surgery.grow import prepare
    from app.engine.surgery.plan import Request

    request = Request(
        base_tokens=None if base_tokens is None else int(base_tokens), max_shard_bytes=int(max_shard_bytes), **options
    )
    growing = prepare(request)
    plan = growing.plan
    if not as_json:
        _print_plan(plan)
    if not dry_run:
        with _ended_like_interrupted(), _progress_bar("grow", plan.num_bytes) as progress:
            write(growing, progress)
    if as_json:
        emit_json({"written": not dry_run, "target": str(request.target), **_plan_facts(plan)})
    else:
        click.echo("nothing written (--dry-run)" if dry_run else f"{request.target} is complete")


@checkpoint.command("grow-state")
@click.argument("source", metavar="CHECKPOINT", type=_FOLDER)
@click.argument("run_dir", metavar="RUN_DIR", type=_FOLDER)
def grow_state(source: Path, run_dir: Path) -> None:
    """Grow a training checkpoint, weights and optimizer state, into the start of RUN_DIR's grown phase.

    CHECKPOINT lies below the checkpoints/ of the run that trained the base; RUN_DIR holds a spec.json with growth, whose
    operator and optimizer-state policy are used. `python -m app.engine RUN_DIR` then goes on from there.
    """
    from app.engine.operators.state_files import grow_training_checkpoint

    click.echo(f"{grow_training_checkpoint(source, run_dir)} is complete")


@checkpoint.command()
@click.argument("path", metavar="DST", type=_FOLDER)
@click.option(
    "--source", type=_FOLDER, metavar="SRC", help="Compare every copied tensor with this base, byte for byte."
)
@json_option
def verify(path: Path, source: Path | None, as_json: bool) -> None:
    """Prove the grown folder DST against its growth.json; exit 1 with the reasons where it is not what was written."""
    from app.engine.surgery.verify import bytes_to_read
    from app.engine.surgery.verify import verify as check

    with _progress_bar("verify", bytes_to_read(path, with_source=source is not None)) as progress:
        verdict = check(path, source, progress)
    if as_json:
        emit_json({"good": verdict.is_good, "proved": list(verdict.proved), "problems": list(verdict.problems)})
    else:
        for sentence in verdict.proved:
            click.echo(f"proved: {sentence}")
        for sentence in verdict.problems:
            click.echo(f"wrong:  {sentence}", err=True)
    if not verdict.is_good:
        raise click.exceptions.Exit(1)


@checkpoint.command()
@click.argument("path", metavar="PATH", type=_FOLDER)
@json_option
def show(path: Path, as_json: bool) -> None:
    """Layers, parameters, shapes, FLOPs a token, shards and growth history of the checkpoint PATH."""
    from app.engine.surgery.show import describe

    facts = describe(path)
    if as_json:
        emit_json(facts)
        return
    shape = facts["shape"]
    flops = facts["flops_per_token"]
    what = "packed elements" if facts["params_are_elements_of_packed_weights"] else "parameters"
    click.echo(f"{facts['name']}: {facts['model_type']}, {facts['num_layers']} layers")
    click.echo(
        f"{what}: {short(facts['total_params'])} in all, {short(facts['non_embedding_params'])} non-embedding, "
        f"{short(facts['embedding_params'])} embedding, head "
        + ("tied to it" if facts["is_tied"] else short(facts["head_params"]))
    )
    click.echo("shape: " + ", ".join(f"{name} {value}" for name, value in shape.items()))
    click.echo(f"FLOPs a token: {short(flops)} ({facts['flops_convention']})")
    click.echo("types: " + ", ".join(f"{name} {short(count)}" for name, count in facts["dtypes"].items()))
    print_table(("shard", "bytes"), [(name, f"{size:,}") for name, size in facts["shards"].items()])
    tensors = [(name, dtype, "x".join(map(str, dims)) or "-") for name, (dtype, dims) in facts["tensor_shapes"].items()]
    print_table(("tensor (of layers: the first)", "type", "shape"), tensors)
    for growth in facts["growth_history"]:
        click.echo("grown: " + _growth_sentence(growth))
    if not facts["growth_history"]:
        click.echo("grown: never, as far as a growth.json tells")


def _growth_sentence(growth: dict[str, Any]) -> str:
    tokens = growth.get("base_tokens")
    by = f"{growth.get('operator')} in {growth.get('direction')}"
    if growth.get("direction") == "depth":
        by += f", order {growth.get('order')}, {growth.get('num_base_layers')} to {growth.get('num_target_layers')} layers"
    else:
        by += f", {growth.get('width_factor')} times wider"
    noise = f", noise {growth['noise']:g} (seed {growth.get('seed')})" if growth.get("noise") else ""
    seen = "" if tokens is None else f", after {short(tokens)} tokens"
    return f"{by}{noise}{seen}, from {growth.get('source', {}).get('name')}"


def _plan_facts(plan: Plan) -> dict[str, Any]:
    return {
        "layers": None if plan.layers is None else list(plan.layers),
        "connection_rate": plan.connection_rate,
        "config_changes": {name: list(change) for name, change in plan.config_changes().items()},
        "num_tensors": sum(len(shard.tensors) for shard in plan.shards),
        "num_bytes": plan.num_bytes,
        "shards": {shard.name: shard.num_bytes for shard in plan.shards},
        "free_bytes": plan.free_bytes,
        "is_byte_copy": plan.request.is_byte_copy,
        "multipliers": plan.multipliers(),
        "warnings": list(plan.warnings),
    }


def _print_plan(plan: Plan) -> None:
    request = plan.request
    if plan.layers is None:
        click.echo(f"{request.operator} growth in width, {request.width_factor} times")
    else:
        click.echo(
            f"{request.operator} growth in depth, order {request.order}: {plan.num_base_layers} layers to "
            f"{len(plan.layers)}, connection rate {plan.connection_rate:.3f}"
        )
        click.echo("layers from: " + " ".join(map(str, plan.layers)))
    for name, (before, after) in plan.config_changes().items():
        click.echo(f"config.json: {name}: {_shortened(before)} -> {_shortened(after)}")
    for name, told in plan.multipliers().items():
        click.echo(f"multiplier:  {name}: {told}")
    how = "copied between files" if request.is_byte_copy else "written"
    click.echo(
        f"{sum(len(shard.tensors) for shard in plan.shards)} tensors, {plan.num_bytes:,} bytes {how} in {len(plan.shards)} "
        f"shard{'s' if len(plan.shards) > 1 else ''}; {plan.free_bytes:,} bytes free"
    )
    for warning in plan.warnings:
        click.echo(f"warning: {warning}")


def _shortened(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


@contextmanager
def _progress_bar(what: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar in bytes on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=num_bytes)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Being told to end, or losing the terminal, cleans up just as Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
