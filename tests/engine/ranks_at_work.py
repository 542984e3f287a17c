"""What two ranks do for test_distributed.py, started by torchrun: ``ranks_at_work.py FOLDER``; an assert ends it with 1."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from app.contract import ModelSpec, TrainingSpec
from app.engine.checkpoints import CheckpointFolder, Progress, open_checkpoint
from app.engine.distributed import World, gather_into, put, whole
from app.engine.evaluation import evaluate
from app.engine.launch import Launch
from app.engine.models import build_model, initialize, next_token_loss
from app.engine.optimizer import apply_gradients, build_optimizer, load_optimizer_tensors, optimizer_tensors

# One key-value head of size 4 and a hidden size of 4: some tensors have fewer rows than a third rank would want.
SHAPE = ModelSpec(
    num_layers=2, hidden_size=4, num_heads=1, num_kv_heads=1, intermediate_size=3, vocab_size=17, context_length=8
)
TRAINING = TrainingSpec(tokens=1000, peak_lr=1e-2, batch_sequences=4)


def progress_at(num_steps: int) -> Progress:
    return Progress(
        phase="single", num_steps=num_steps, run_tokens=num_steps, next_seq=1, loss_sum=0.0, grad_norm_sum=0.0,
        num_summed_steps=0, num_high_lines=0, validation_loss_nats=None, elapsed_seconds=0.0,
    )  # fmt: skip


def agree(world: World) -> None:
    """One answer on all ranks, and one error."""
    main, is_main = world.main, world.is_main
    assert main.gather(world.rank) == [0, 1]
    assert main.from_main(lambda: f"from rank {world.rank}") == "from rank 0"
    assert main.any(not is_main)
    assert not main.any(False)
    assert main.together(lambda: world.rank * 10) == [0, 10]

    def fail_on(rank: int) -> int:
        if world.rank == rank:
            raise OSError(28, f"rank {rank} has no space")
        return 1

    with pytest.raises(OSError, match="rank 1 has no space"):
        main.together(lambda: fail_on(1))
    with pytest.raises(OSError, match="rank 0 has no space"):
        main.from_main(lambda: fail_on(0))
    assert float(world.mean(torch.tensor(float(world.rank)))) == 0.5


def train(world: World, folder: Path) -> None:
    """Three steps on two ranks: the loss, the norm and the weights of one process; and checkpoints of both."""
    model = build_model(SHAPE, num_layers=2)
    world.place(model)
    initialize(model, seed=3)
    optimizer = build_optimizer(model, TRAINING)
    alone = build_model(SHAPE, num_layers=2)
    initialize(alone, seed=3)
    alone_optimizer = build_optimizer(alone, TRAINING)
    checkpoints = CheckpointFolder(folder, "fingerprint", world)
    for num_steps in (1, 2, 3):
        batch = torch.randint(0, 17, (4, 9), generator=torch.Generator().manual_seed(num_steps))
        loss = next_token_loss(model, batch[world.share(4)], precision="fp32")
        loss.backward()
        norm = apply_gradients(model, optimizer, learning_rate=1e-2, gradient_clip=0.5)
        want = next_token_loss(alone, batch, precision="fp32")
        want.backward()
        want_norm = apply_gradients(alone, alone_optimizer, learning_rate=1e-2, gradient_clip=0.5)
        torch.testing.assert_close(world.mean(loss.detach()), want.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(norm, want_norm, rtol=1e-5, atol=0)
        # A forward pass without a backward pass must not change what is saved.
        evaluate(model, batch[world.share(4)], batch_sequences=2, precision="fp32")
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        moments = optimizer_tensors(model, optimizer)
        assert moments.keys() == weights.keys()
        assert checkpoints.save(progress_at(num_steps), weights, moments)
        assert not checkpoints.save(progress_at(num_steps), weights, moments)
    gathered = build_model(SHAPE, num_layers=2)
    gather_into(gathered, model)
    for name, parameter in gathered.named_parameters():
        torch.testing.assert_close(parameter, dict(alone.named_parameters())[name], rtol=0, atol=2e-5)
    checkpoints.close()
    assert checkpoints.take_committed() == [progress_at(num_steps).name for num_steps in (1, 2, 3)]
    if world.is_main:
        # What one process must read; written by torch, read by the test, of this very process's numbers.
        tensors = {f"model.{name}": parameter.detach() for name, parameter in gathered.named_parameters()}
        torch.save(tensors, folder / "whole.pt")
    for name, state in optimizer_tensors(model, optimizer).items():
        for key, tensor in state.items():
            value = whole(tensor)
            copy = torch.empty_like(tensor)
            put(copy, value)
            assert torch.equal(whole(copy), value), (name, key)


def restore(world: World, folder: Path) -> None:
    """Read what one process wrote; then what two wrote, after rank 1's file of the newest was torn."""
    if world.is_main:
        newest = folder / "checkpoints" / progress_at(3).name
        stored = open_checkpoint(newest)
        by_one = CheckpointFolder(folder / "one", "fingerprint")
        by_one.save(stored.progress, *stored.read_whole())
        by_one.close()
        torn = folder / "torn" / "checkpoints"
        shutil.copytree(newest.parent, torn)
        of_rank_1 = sorted((torn / newest.name).glob("*.safetensors"))[1]
        of_rank_1.write_bytes(of_rank_1.read_bytes()[:-1])
    world.main.gather(None)
    model = build_model(SHAPE, num_layers=2)
    world.place(model)
    optimizer = build_optimizer(model, TRAINING)
    weights = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    checkpoint, refusals = CheckpointFolder(folder / "one", "fingerprint", world).load_latest(last_seq=0)
    assert checkpoint is not None
    assert refusals == []
    checkpoint.read(weights)
    _, want = checkpoint.read_whole()
    load_optimizer_tensors(model, optimizer, want)
    for name, state in optimizer_tensors(model, optimizer).items():
        for key, tensor in state.items():
            assert torch.equal(whole(tensor), want[name][key]), (name, key)
    expected, _ = checkpoint.read_whole()
    for name, tensor in weights.items():
        assert torch.equal(whole(tensor), expected[name.removeprefix("model.")]), name
    checkpoint, refusals = CheckpointFolder(folder / "torn", "fingerprint", world).load_latest(last_seq=0)
    assert checkpoint is not None
    assert checkpoint.progress.num_steps == 2
    assert len(refusals) == 1
    assert (folder / "torn" / "checkpoints" / f"damaged-{progress_at(3).name}").exists()


def main() -> None:
    torch.set_num_threads(1)
    launch = Launch.from_environment(os.environ)
    assert launch is not None
    world = World(launch, "cpu")
    folder = Path(sys.argv[1])
    agree(world)
    train(world, folder)
    restore(world, folder)
    world.close()


if __name__ == "__main__":
    main()
