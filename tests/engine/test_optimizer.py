"""AdamW against the paper's algorithm in plain float64, and its state by name."""

import numpy as np
import pytest
import torch

from app.contract import TrainingSpec
from app.engine.optimizer import apply_gradients, build_optimizer, load_optimizer_tensors, optimizer_tensors

TRAINING = TrainingSpec(tokens=10_000, peak_lr=1e-2, weight_decay=0.1, gradient_clip=1.0, batch_sequences=1)


class Affine(torch.nn.Module):
    """A matrix and a gain: one of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.nn.Parameter(torch.randn(3, 4, generator=generator))
        self.gain = torch.nn.Parameter(torch.randn(4, generator=generator))


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(3, 4, generator=generator), torch.randn(4, generator=generator)]


def take_steps(model: Affine, optimizer: torch.optim.AdamW, steps: range) -> list[float]:
    norms = []
    for step in steps:
        model.matrix.grad, model.gain.grad = gradients(step)
        norms.append(float(apply_gradients(model, optimizer, learning_rate=1e-2 / (1 + step), gradient_clip=1.0)))
    return norms


def test_updates_follow_the_paper() -> None:
    model = Affine()
    weights = [p.detach().double().numpy().copy() for p in (model.matrix, model.gain)]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    norms = take_steps(model, build_optimizer(model, TRAINING), range(5))
    for step in range(5):
        grads = [g.double().numpy() for g in gradients(step)]
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        assert norms[step] == pytest.approx(norm, rel=1e-6)
        for i, decay in enumerate((0.1, 0.0)):  # the matrix decays, the gain does not
            g = grads[i] / max(1.0, norm)
            m = 0.9 * moments[i][0] + 0.1 * g
            v = 0.95 * moments[i][1] + 0.05 * g**2
            moments[i] = (m, v)
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
            weights[i] -= 1e-2 / (1 + step) * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay * weights[i])
    np.testing.assert_allclose(model.matrix.detach().numpy(), weights[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.gain.detach().numpy(), weights[1], rtol=1e-5, atol=1e-6)


def test_state_put_back_goes_on_bit_for_bit() -> None:
    model = Affine()
    optimizer = build_optimizer(model, TRAINING)
    assert optimizer_tensors(model, optimizer) == {}
    take_steps(model, optimizer, range(3))
    other = Affine()
    other.load_state_dict(model.state_dict())
    restored = build_optimizer(other, TRAINING)
    load_optimizer_tensors(other, restored, optimizer_tensors(model, optimizer))
    take_steps(model, optimizer, range(3, 6))
    take_steps(other, restored, range(3, 6))
    assert torch.equal(model.matrix, other.matrix)
    assert torch.equal(model.gain, other.gain)
