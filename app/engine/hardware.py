"""What the machine could do at best, and how much memory a run took.

    MFU = tokens per second x FLOPs per token / (devices x peak)        (PaLM, arXiv 2204.02311, appendix B)

with the FLOPs of ``fitting.flops`` (attention in full, recomputation not counted) and the device's dense bf16 peak,
whatever precision the run has. Peaks are of NVIDIA's data sheets, without sparsity; a device that is not listed, a CPU
among them, has no MFU rather than a guessed one.
"""

from __future__ import annotations

import resource

import torch

# Dense bf16 tensor-core FLOPs a second by a part of the name the driver gives; the first that fits counts.
PEAK_BF16_FLOPS = (
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("GH200", 989.4e12),
    ("H200 NVL", 835.5e12),
    ("H200", 989.4e12),
    ("H100 PCIe", 756.0e12),
    ("H100 NVL", 835.5e12),
    ("H100", 989.4e12),
    ("H800", 989.4e12),
    ("A100", 311.8e12),
    ("A800", 311.8e12),
    ("L40S", 362.1e12),
    ("L40", 181.1e12),
    ("A40", 149.7e12),
    ("RTX A6000", 154.8e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71.2e12),
    ("A10G", 70.0e12),
    ("A10", 124.9e12),
    ("L4", 121.0e12),
)


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOPs a second of a device by its name; None where it is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("AMD EPYC")
    (989400000000000.0, None)
    """
    return next((peak for part, peak in PEAK_BF16_FLOPS if part in device_name), None)


def peak_flops_of(device: torch.device) -> float | None:
    """:func:`peak_flops` of a device that is there."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that tensors took on a CUDA device so far, elsewhere the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
