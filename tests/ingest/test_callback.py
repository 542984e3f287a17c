"""A real Trainer pushes to a real service; a service that is away never stops a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.client import Growthlaw, NoService

torch = pytest.importorskip("torch")


def trainer(folder: Path, callback: Any, *, max_steps: int = 8, **arguments: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

    set_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    rows = [{"input_ids": (ids := torch.randint(0, 64, (32,))), "labels": ids} for _ in range(64)]
    given = {
        "output_dir": str(folder), "max_steps": max_steps, "per_device_train_batch_size": 4, "logging_steps": 2,
        "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "include_num_input_tokens_seen": "all",
    }  # fmt: skip
    return Trainer(
        model=LlamaForCausalLM(config), args=TrainingArguments(**given | arguments), train_dataset=rows,
        eval_dataset=rows[:8], callbacks=[callback],
    )  # fmt: skip


def stop_behind(step: int) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop = state.global_step >= step

    return Stop()


def test_a_trainer_pushes_live_and_a_resumed_one_goes_on(live_client: Growthlaw, tmp_path: Path) -> None:
    from app.transformers_callback import GrowthlawCallback

    def callback() -> GrowthlawCallback:
        return GrowthlawCallback(cohort="live", name="pushed", corpus="noise", tokenizer="ids", client=live_client)

    first = callback()
    run = trainer(tmp_path, first)
    # Killed behind step 6: the schedule still has two steps to go.
    run.add_callback(stop_behind(6))
    run.train()
    assert first.run_id is not None
    assert live_client.run(first.run_id)["status"] == "running"
    second = callback()
    trainer(tmp_path, second).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert second.run_id == first.run_id
    stored = live_client.run(first.run_id)
    # 8 steps of 4 sequences of 32 tokens; steps 5 and 6 were trained twice.
    assert (stored["status"], stored["grown_tokens"]) == ("finished", 8 * 128)
    assert stored["wasted_flops"] == pytest.approx(stored["compute_flops"] * 2 / 8)
    points = live_client.points(first.run_id, "validation_loss")
    assert [point["tokens"] for point in points] == [4 * 128, 8 * 128]
    assert stored["final_loss"] == points[-1]["value"]


def test_training_goes_on_while_no_service_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.transformers_callback import GrowthlawCallback

    sent: list[dict[str, Any]] = []

    class Away(Growthlaw):
        """A connection that breaks after the run was opened and comes back at the end."""

        def open_run(self, body: Any, *, idempotency_key: str | None = None) -> Any:
            return {"run": {"run_id": "run_x"}, "next_seq": 0}

        def push_points(self, run_id: str, points: Any, *, status: str | None = None, reason: str = "") -> Any:
            if status is None:
                raise NoService("away")
            sent.extend(points)
            return {}

    callback = GrowthlawCallback(cohort="c", name="n", client=Away("http://127.0.0.1:9"), tokens_a_step=128)
    trainer(tmp_path, callback, include_num_input_tokens_seen="no").train()
    assert [point["seq"] for point in sent] == list(range(len(sent)))
    assert sent[-1]["tokens"] == 8 * 128
    uncounted = trainer(
        tmp_path,
        GrowthlawCallback(cohort="c", name="n", client=Away("http://127.0.0.1:9")),
        include_num_input_tokens_seen="no",
    )
    with pytest.raises(ValueError, match="tokens are not counted"):
        uncounted.train()
