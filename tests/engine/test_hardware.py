"""Peaks by device name, peak memory against the kernel's own count, healing, and the doctests of their modules."""

import doctest
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.engine import hardware, healing
from app.engine.curve import Curve, Position
from app.engine.hardware import peak_flops, peak_flops_of, peak_memory_bytes
from app.engine.healing import Healing


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.0e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 311.8e12),
        ("NVIDIA A10", 124.9e12),
        ("NVIDIA L40S", 362.1e12),
        ("NVIDIA L4", 121.0e12),
        ("NVIDIA GB200", 2.5e15),
        ("Tesla T4", None),
    ],
)
def test_peaks_are_found_by_the_drivers_names(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_a_cpu_has_no_peak_and_its_memory_is_the_kernels_high_water_mark() -> None:
    assert peak_flops_of(torch.device("cpu")) is None
    before = peak_memory_bytes(torch.device("cpu"))
    held = torch.ones(2**24)  # 64 MiB, touched
    after = peak_memory_bytes(torch.device("cpu"))
    status = Path("/proc/self/status").read_text()
    (kernel,) = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
    assert before <= after == pytest.approx(kernel, rel=0.02)
    assert after >= held.numel() * 4


def test_mfu_is_the_papers_ratio_where_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, float] = {}

    class Metrics:
        def write(self, metric: str, value: float, **_: object) -> None:
            written[metric] = value

    monkeypatch.setattr("app.engine.curve.peak_flops_of", lambda device: 1e15)
    spec = SimpleNamespace(corpus="c", model=SimpleNamespace(vocab_size=512))
    curve = Curve(spec, Metrics(), torch.device("cpu"), num_devices=2)  # type: ignore[arg-type]
    curve.add(torch.tensor(3.0), torch.tensor(1.0), num_tokens=1_000_000)
    curve.write_training_lines(
        Position(phase="grown", tokens=1, compute_flops=1.0), learning_rate=1e-3, flops_per_token=6e9
    )
    assert written["mfu"] == pytest.approx(written["tokens_per_second"] * 6e9 / 2e15, rel=1e-12)
    assert written["train_loss"] == 3.0


def test_healing_is_the_first_return_to_the_level_before() -> None:
    growth = Healing(loss_before_nats=3.0)
    for tokens, loss in ((0, 3.4), (10, 3.6), (20, 3.00009), (30, 3.2), (40, 2.0)):
        growth = growth.after(tokens, loss)
    assert growth.spike_height_nats == pytest.approx(0.4)
    assert growth.healing_tokens == 20
    assert Healing(loss_before_nats=3.0).after(0, 3.0).healing_tokens == 0
    assert Healing(loss_before_nats=3.0).after(0, 3.1).healing_tokens is None


def test_the_examples_in_the_docs_hold() -> None:
    assert doctest.testmod(hardware).attempted > 0
    for module in (hardware, healing):
        assert doctest.testmod(module).failed == 0
