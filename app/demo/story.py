"""The demo from top to bottom, every step over HTTP."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.client import Growthlaw
from app.commands.output import short
from app.demo.conclusion import result_of, words
from app.demo.curves import curve_of, plot_curves, speedup_of
from app.demo.design import COHORT, CORPUS, VOCAB_SIZE, DemoDesign
from app.demo.live import watch
from app.service_process import bundled_corpus_job

PLOT_FILE = "demo-curves.png"
REFIT_SECONDS = 120.0


def run_demo(client: Growthlaw, design: DemoDesign, data_dir: Path, console: Console) -> dict[str, Any]:
    """Tell the story on `console`; returns the result line."""
    started = time.monotonic()
    console.print(f"Growthlaw service at {client.url}, data in {data_dir}", highlight=False)

    console.rule("1  corpus", align="left")
    prepare_corpus(client, console)

    console.rule("2  what the published rule says", align="left")
    before = client.recommend(guideline="published:gstack", **design.question())
    _print_answer(before, console)

    console.rule("3  growth and two controls at equal FLOPs", align="left")
    runs = train_arms(client, design, console)

    console.rule("4  store, refit, ask again", align="left")
    guideline = _wait_for_guideline(client, {run["run_id"] for run in runs.values()})
    after = client.recommend(cohort=COHORT, guideline=guideline["id"], **design.question())
    _print_side_by_side(before, after, console)
    console.print("What these runs cannot identify:")
    for sentence in guideline["body"]["cannot_identify"]:
        console.print(f"  - {sentence}", highlight=False)

    console.rule("5  result", align="left")
    curves = {role: curve_of(role, client.points(run["run_id"], "validation_loss")) for role, run in runs.items()}
    result = result_of(runs, speedup_of(curves))
    plot_path = (data_dir / PLOT_FILE).resolve()
    title = (
        f"8-layer target, {short(design.token_budget)} token budget, g = 4 at d = {short(design.growth_timing_tokens)}"
    )
    plot_curves(curves, title, plot_path)
    _print_result(result, console)
    console.print(f"\nCurves: {data_dir / PLOT_FILE}", highlight=False, soft_wrap=True)
    console.print(
        f"Look at it all: growthlaw serve --data-dir {data_dir}   then http://127.0.0.1:8000/, "
        "growthlaw runs list, growthlaw jobs list",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return result | {
        "decision_before": before["decision"],
        "decision_after": after["decision"],
        "guideline_id": guideline["id"],
        "plot": str(plot_path),
        "seconds": round(time.monotonic() - started, 1),
    }


def prepare_corpus(client: Growthlaw, console: Console) -> None:
    """Have the bundled corpus prepared, unless the data directory holds it."""
    job = bundled_corpus_job(client, CORPUS, VOCAB_SIZE)
    if job is not None:
        watch(client, {"corpus": job["id"]}, console)
    (corpus,) = (corpus for corpus in client.corpora() if corpus["name"] == CORPUS)
    train, validation = corpus["train"], corpus["validation"]
    console.print(
        f"{corpus['origin']}: {train['num_documents'] + validation['num_documents']:,} documents, "
        f"{(train['num_bytes'] + validation['num_bytes']) / 1e6:.1f} MB -> byte-level BPE of {corpus['vocab_size']} -> "
        f"{train['num_tokens']:,} train and {validation['num_tokens']:,} held-out validation tokens",
        highlight=False,
    )


def train_arms(client: Growthlaw, design: DemoDesign, console: Console) -> dict[str, dict[str, Any]]:
    """Start the arms, or take up those an earlier demo started, and wait; returns role -> stored run."""
    body = design.grow_body()
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
    attempt = 0
    while True:
        growth = client.grow(body, idempotency_key=f"demo-{digest}-{attempt}")
        jobs = {arm["role"]: arm["job"] for arm in growth["arms"]}
        states = {job["state"] for job in jobs.values()}
        if not states & {"failed", "cancelled"}:
            break
        attempt += 1
    console.print(
        f"budget {short(design.token_budget)} tokens of the target = {growth['budget_flops']:.3e} FLOPs an arm; "
        f"g = 4 after d = {short(design.growth_timing_tokens)} base tokens; one run a core",
        highlight=False,
    )
    if states == {"succeeded"}:
        console.print("These arms are stored already: shown from the store. Another --data-dir trains them anew.")
    for job in jobs.values():
        if job["state"] == "paused":
            client.resume(job["id"])
    watch(client, {role: job["id"] for role, job in jobs.items()}, console)
    return {role: client.run(job["run_id"]) for role, job in jobs.items()}


def _wait_for_guideline(client: Growthlaw, run_ids: set[str]) -> dict[str, Any]:
    """The cohort's active guideline once it rests on these runs."""
    deadline = time.monotonic() + REFIT_SECONDS
    while time.monotonic() < deadline:
        for summary in client.guidelines(cohort=COHORT)["data"]:
            if summary["is_active"]:
                guideline = client.guideline(summary["id"])
                if run_ids <= set(guideline["body"]["run_ids"]):
                    return guideline
        time.sleep(0.2)
    raise TimeoutError(
        f"no guideline of the runs after {REFIT_SECONDS:.0f} s; the service's log in the data directory tells why"
    )


def _print_answer(answer: dict[str, Any], console: Console) -> None:
    told = answer["by_accounting"]["charged"]
    console.print(f"{answer['guideline']['name']}: [bold]{answer['decision']}[/bold]")
    console.print(told["reason"], highlight=False)


def _print_side_by_side(before: dict[str, Any], after: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for answer in (before, after):
        table.add_column(f"{answer['guideline']['name']}, version {answer['guideline']['version']}", overflow="fold")
    for label, *cells in zip(ANSWER_ROWS, _cells(before), _cells(after), strict=True):
        table.add_row(label, *cells)
    console.print(table)
    # What cannot be identified follows as a list of its own.
    for warning in after["warnings"]:
        if not warning.startswith("These runs cannot identify"):
            console.print(f"  ! {warning}", highlight=False)


ANSWER_ROWS = ("decision", "grow", "grown - scratch", "best fixed size", "chance growth helps", "support", "basis")


def _cells(answer: dict[str, Any]) -> tuple[str, ...]:
    """One answer's cells under :data:`ANSWER_ROWS`."""
    expected = answer["expected"]
    timing, chance = answer["growth_timing_tokens"], expected["chance_growth_helps"]
    return (
        answer["decision"],
        f"x{answer['growth_factor']:g} after {short(timing)} tokens" if timing else "-",
        _delta(expected),
        _best_fixed(answer),
        "not given" if chance is None else f"{chance:.0%}",
        answer["support"]["grade"],
        expected["basis"],
    )


def _delta(expected: dict[str, Any]) -> str:
    if expected["delta_nats"] is None:
        return "not given"
    low, high = expected["delta_interval"]
    return f"{expected['delta_nats']:+.3f} nats (80% interval {low:+.3f} to {high:+.3f})"


def _best_fixed(answer: dict[str, Any]) -> str:
    best = answer["best_fixed_size"]
    if best is None or best["expected_loss_nats"] is None:
        return "not given"
    return f"{best['num_layers']} layers, {best['expected_loss_nats']:.3f} nats"


def _print_result(result: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("arm")
    table.add_column("final validation loss", justify="right")
    table.add_column("training FLOPs", justify="right")
    for role, label in (("scratch", "target from scratch"), ("grown", "grown"), ("base_only", "base alone")):
        table.add_row(label, f"{result[f'{role}_loss']:.4f}", f"{result['compute_flops'][role]:.4e}")
    console.print(table)
    speedup = result["speedup_lower_bound"]
    console.print(
        f"equal FLOPs: {'yes' if result['flops_equal'] else 'NO'}; speedup at scratch's final loss: "
        + (f"at least {speedup:.1%}" if speedup is not None else "none, the grown run never stays under it"),
        highlight=False,
    )
    for sentence in words(result):
        console.print(f"- {sentence}", highlight=False)
