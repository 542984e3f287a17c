"""Does a fitted law keep the shape every law must have on the region it will be asked about?

    dS/dlnN < 0        dS/dlnD < 0        S(N, D) > floor(N) > 0

========  ===================================================  ==========
symbol    meaning                                              unit
========  ===================================================  ==========
N, D      sizes and tokens of the region's grid                -
S, floor  loss and its limit for endless data                  nats
========  ===================================================  ==========
"""

from __future__ import annotations

import numpy as np

from fitting.laws.base import Array, ScratchLaw

_GRID = 13


def shape_faults(law: ScratchLaw, params: Array, sizes: tuple[float, float], tokens: tuple[float, float]) -> list[str]:
    """Sentences on where the law with ``params`` (P,) bends the wrong way between the given lowest and highest N and D."""
    size_axis, token_axis = np.geomspace(*sizes, _GRID), np.geomspace(*tokens, _GRID)
    N, D = (axis.ravel() for axis in np.meshgrid(size_axis, token_axis))
    with np.errstate(all="ignore"):
        loss = law.loss(params, N, D)
        by_size, by_tokens = law.slopes(params, N, D)
        floor = law.floor(params, N)
    faults = []
    checks = (
        (np.isfinite(loss) & np.isfinite(by_size) & np.isfinite(by_tokens), "is not finite"),
        (by_size < 0, "rises with size"),
        (by_tokens < 0, "rises with data"),
        ((loss > floor) & (floor > 0), "falls to or below its own floor"),
    )
    for fine, fault in checks:
        if not fine.all():
            first = int(np.argmin(fine))
            faults.append(f"law '{law.name}' {fault}, as at N {N[first]:.2g}, D {D[first]:.2g}")
    return faults
