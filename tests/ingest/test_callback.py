"""A real Trainer pushes to a real service; a service that is away never stops a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.client import Growthlaw, NoService, Refused

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


def at_steps(**actions: Any) -> Any:
    """A callback that does `step_N` when N steps are done."""
    from transformers import TrainerCallback

    class Act(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            actions.get(f"step_{state.global_step}", lambda: None)()

    return Act()


def logged(run: Any) -> list[tuple[int, str, float]]:
    """What a Trainer logged, as (tokens, metric, value)."""
    names = {
        "loss": "train_loss",
        "eval_loss": "validation_loss",
        "learning_rate": "learning_rate",
        "grad_norm": "grad_norm",
    }
    return [
        (row["step"] * 128, names[name], value)
        for row in run.state.log_history
        if "train_loss" not in row
        for name, value in row.items()
        if name in names
    ]


def pushed(client: Growthlaw, run_id: str) -> list[tuple[int, str, float]]:
    points = client.points(run_id)
    assert [point["seq"] for point in points] == list(range(len(points)))
    return [(point["tokens"], point["metric"], point["value"]) for point in points]


def test_a_service_killed_and_started_again_has_every_point_once(service: Any, tmp_path: Path) -> None:
    import socket

    from app.transformers_callback import GrowthlawCallback

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    service.options = ("--port", str(port))
    service.start()
    callback = GrowthlawCallback(
        cohort="live", name="restart", corpus="noise", tokenizer="ids", client=Growthlaw(f"http://127.0.0.1:{port}")
    )
    run = trainer(tmp_path, callback, max_steps=12, logging_steps=1)
    run.add_callback(at_steps(step_4=service.kill, step_12=service.start))
    run.train()
    client = Growthlaw(f"http://127.0.0.1:{port}")
    assert sorted(pushed(client, callback.run_id or "")) == sorted(logged(run))
    stored = client.run(callback.run_id or "")
    assert (stored["status"], stored["grown_tokens"], stored["wasted_flops"]) == ("finished", 12 * 128, 0.0)


def test_an_answer_that_is_lost_doubles_nothing(live_client: Growthlaw, tmp_path: Path) -> None:
    from app.transformers_callback import GrowthlawCallback

    class Lossy(Growthlaw):
        """Every second answer is lost on its way back: by a broken connection, or a proxy that says 503."""

        calls = 0

        def push_points(self, *args: Any, **others: Any) -> Any:
            done = super().push_points(*args, **others)
            self.calls += 1
            if self.calls % 4 == 1:
                raise NoService("the connection broke")
            if self.calls % 4 == 3:
                raise Refused(503, {"detail": "the database did not answer"})
            return done

    callback = GrowthlawCallback(
        cohort="live", name="lossy", corpus="noise", tokenizer="ids", client=Lossy(live_client.url)
    )
    run = trainer(tmp_path, callback, logging_steps=1)
    run.train()
    assert sorted(pushed(live_client, callback.run_id or "")) == sorted(logged(run))
    assert live_client.run(callback.run_id or "")["status"] == "finished"


def test_a_service_that_comes_after_the_start_has_every_point(live_client: Growthlaw, tmp_path: Path) -> None:
    from app.transformers_callback import GrowthlawCallback

    class Late(Growthlaw):
        calls = 0

        def open_run(self, *args: Any, **others: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                raise NoService("not there yet")
            return super().open_run(*args, **others)

    callback = GrowthlawCallback(
        cohort="live", name="late", corpus="noise", tokenizer="ids", client=Late(live_client.url)
    )
    run = trainer(tmp_path, callback)
    run.train()
    assert sorted(pushed(live_client, callback.run_id or "")) == sorted(logged(run))
    refused = GrowthlawCallback(cohort="no/name", name="x", client=live_client)
    with pytest.raises(Refused, match="cohort"):
        trainer(tmp_path, refused).train()
