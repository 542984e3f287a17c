"""Rows of trunks and legs, and what a stopped leg is said to have seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.contract import EvaluationSpec, GrowthSpec, MetricLine, ModelSpec, Result, Spec, TrainingSpec, TrunkSpec
from app.corpus.shards import Manifest, read_manifest
from app.guidelines.refine import refine
from app.jobs.design import in_whole_batches, total_flops
from app.jobs.headers import recipe_of, result_columns, run_row
from app.jobs.queue import enqueue_arms
from app.store import guidelines as guideline_store
from app.store import runs as run_store
from app.store.database import Database, sqlite_url

BATCH_TOKENS = 8 * 64


@pytest.fixture(scope="module")
def manifest(tiny_corpus: Path) -> Manifest:
    return read_manifest(tiny_corpus)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(sqlite_url(tmp_path))
    opened.migrate()
    yield opened
    opened.close()


def spec_of(run_id: str, schedule: Any, manifest: Manifest, **changes: Any) -> Spec:
    values: dict[str, Any] = {
        "run_id": run_id, "name": run_id, "cohort": "c", "corpus": "tiny", "corpus_dir": "/tiny",
        "model": ModelSpec(
            num_layers=4, hidden_size=32, num_heads=2, num_kv_heads=2, intermediate_size=64,
            vocab_size=manifest.vocab_size, context_length=64,
        ),
        "training": TrainingSpec(tokens=100 * BATCH_TOKENS, peak_lr=4e-3, schedule=schedule),
        "evaluation": EvaluationSpec(every_tokens=BATCH_TOKENS, num_windows=8),
    }  # fmt: skip
    return Spec(**values | changes)


def result_of(spec: Spec, loss: float | None, status: Any = "finished") -> Result:
    return Result(
        run_id=spec.run_id, status=status, final_loss_nats=loss,
        base_tokens=spec.growth.growth_timing_tokens if spec.growth else 0, final_phase_tokens=spec.training.tokens,
        compute_flops=total_flops(spec), base_flops_per_token=None, target_flops_per_token=1.0, duration_seconds=1.0,
        trunk_id=spec.trunk.trunk_id if spec.trunk else None,
    )  # fmt: skip


def test_a_trunk_shares_the_recipe_of_the_runs_that_leave_it(manifest: Manifest) -> None:
    trunk, leg = spec_of("trunk", "constant", manifest), spec_of("leg", "wsd", manifest)
    assert recipe_of(trunk, manifest) == recipe_of(leg, manifest)
    for other in (spec_of("c", "cosine", manifest), spec_of("p", "power", manifest)):
        assert recipe_of(trunk, manifest) != recipe_of(other, manifest)
    longer_decay = replace(trunk, training=replace(trunk.training, decay_fraction=0.5))
    assert recipe_of(longer_decay, manifest) != recipe_of(leg, manifest)


def test_the_end_of_a_trunk_is_no_final_loss(manifest: Manifest) -> None:
    for schedule, decay_tokens, is_final in (("constant", 0, False), ("wsd", 20 * BATCH_TOKENS, True)):
        spec = spec_of("run", schedule, manifest)
        assert run_row(spec, manifest, None).decay_tokens == pytest.approx(decay_tokens)
        assert result_columns(spec, result_of(spec, 3.0))["is_final"] is is_final
        assert result_columns(spec, result_of(spec, None, "diverged"))["is_final"] is False


def test_a_leg_names_its_trunk(manifest: Manifest) -> None:
    leg = spec_of(
        "leg", "wsd", manifest, trunk=TrunkSpec(trunk_run_dir="/t", trunk_id="trunk", branch_tokens=80 * BATCH_TOKENS)
    )
    row = run_row(leg, manifest, "scratch")
    assert (row.trunk_id, row.parent_run_id, row.control_id) == ("trunk", "trunk", "scratch")
    undivided = run_row(spec_of("whole", "wsd", manifest), manifest, None)
    assert (undivided.trunk_id, undivided.parent_run_id) == ("whole", None)


def test_lengths_are_cut_to_the_batches_that_are_trained(manifest: Manifest) -> None:
    asked = spec_of(
        "run", "constant", manifest,
        training=TrainingSpec(tokens=10_000, peak_lr=1.0, base_batch_sequences=4, schedule="constant"),
        growth=GrowthSpec(num_base_layers=2, growth_timing_tokens=1_000), keep_checkpoints_at_tokens=(9_800, 5_000, 5_100),
    )  # fmt: skip
    cut = in_whole_batches(asked)
    assert cut.growth is not None
    assert (cut.training.tokens, cut.growth.growth_timing_tokens) == (19 * 512, 3 * 256)
    assert cut.keep_checkpoints_at_tokens == (9 * 512, 19 * 512)
    assert in_whole_batches(cut) == cut


def store(database: Database, tmp_path: Path, spec: Spec, manifest: Manifest) -> None:
    enqueue_arms(database, tmp_path / "runs", {"run": spec}, manifest, priority=0, request_key=None, request_hash=None)


def finish(database: Database, spec: Spec, loss: float) -> None:
    with database.write() as session:
        run_store.finish_run(session, spec.run_id, **result_columns(spec, result_of(spec, loss)))


def test_a_cohort_is_fitted_on_final_losses_alone(tmp_path: Path, database: Database, manifest: Manifest) -> None:
    trunk, whole = spec_of("trunk", "constant", manifest), spec_of("whole", "wsd", manifest)
    for spec in (trunk, whole):
        store(database, tmp_path, spec, manifest)
    finish(database, trunk, 3.9)
    assert refine(database, "c").guideline_id is None
    finish(database, whole, 4.0)
    assert refine(database, "c").guideline_id is not None
    with database.read() as session:
        active = guideline_store.active_guideline(session, "c")
    assert active is not None
    assert active.num_runs == 1
    assert '"trunk"' not in active.body.replace('"trunk_id"', "")
    assert '"mid_schedule": 1' in active.body
    assert '"basis": "final"' in active.body


def test_a_stopped_leg_has_seen_its_trunks_base(tmp_path: Path, database: Database, manifest: Manifest) -> None:
    growth = GrowthSpec(num_base_layers=2, growth_timing_tokens=10 * BATCH_TOKENS)
    trunk = spec_of("trunk", "constant", manifest, growth=growth)
    leg = spec_of(
        "leg", "wsd", manifest, growth=growth,
        trunk=TrunkSpec(trunk_run_dir="/t", trunk_id="trunk", branch_tokens=80 * BATCH_TOKENS),
    )  # fmt: skip
    for spec in (trunk, leg):
        store(database, tmp_path, spec, manifest)
    finish(database, trunk, 3.0)

    def stopped() -> tuple[float, float, float | None]:
        with database.write() as session:
            run_store.stop_run(session, "leg", "stopped")
        with database.read() as session:
            row = run_store.get_run(session, "leg")
        assert row is not None
        return row.growth_timing_tokens, row.grown_tokens, row.compute_flops

    assert stopped() == (0, 0, None)  # before it ran
    point = MetricLine(
        seq=1, phase="grown", tokens=85 * BATCH_TOKENS, compute_flops=7e9, metric="train_loss", dataset="tiny/train",
        value=3.0, unit="nats", time="t",
    )  # fmt: skip
    with database.write() as session:
        run_store.add_points(session, "leg", [point])
    assert stopped() == (10 * BATCH_TOKENS, 85 * BATCH_TOKENS, 7e9)
