"""``python -m app.ray_worker.tied PARENT_PID MODULE RUN_DIR``: become MODULE, and die when the parent dies.

Ray ends a job, or loses a node, with SIGKILL, which the process that started the engine cannot pass on. The kernel can
(``prctl(2)``, PR_SET_PDEATHSIG, kept across exec), so that no rank trains on alone with a GPU that Ray has given away.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    # One that died before this line would never be noticed.
    if os.getppid() != parent_pid:
        sys.exit(128 + signal.SIGKILL)
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main(int(sys.argv[1]), [sys.executable, "-P", "-m", *sys.argv[2:]])
