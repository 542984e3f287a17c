"""A scheduler of a few lines for faults that a real one does not show on demand: jobs are processes, its state a folder.

    python simple_scheduler.py STATE submit SCRIPT NAME | find NAME | poll ID | signal NUMBER ID | nodes

STATE/mode says how it behaves: `away` (it cannot be reached), `hang` (it never answers), `flood` (it never stops
answering), `garbage` (it does its work, and prints something else), `refuse` (no job is taken); empty: well.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

WRAPPER = 'bash "$1" & trap : TERM; while :; do wait; [ -z "$(jobs -r)" ] && break; done; mv "$2/pid" "$2/ended"'


def main(state: Path, verb: str, *arguments: str) -> int:
    with open(state / "calls", "a", encoding="utf-8") as calls:
        calls.write(f"{verb} {' '.join(arguments)}\n")
    mode = (state / "mode").read_text() if (state / "mode").exists() else ""
    if mode == "away":
        print("cannot reach the scheduler", file=sys.stderr)
        return 2
    if mode == "hang":
        # A child of its own, which must not be left behind either.
        subprocess.run(["sleep", "1000"], check=False)
    while mode == "flood":
        print("x" * 100_000)
    if mode == "refuse" and verb == "submit":
        print("no such queue", file=sys.stderr)
        return 1
    output = globals()[verb](state, *arguments)
    print("%!@ welcome\tto the machine" if mode == "garbage" else output)
    return 0


def submit(state: Path, script: str, name: str) -> str:
    number = str(len(list(state.glob("job-*"))) + 1)
    job = state / f"job-{number}"
    job.mkdir()
    (job / "name").write_text(name)
    environment = os.environ | {"SIMPLE_ID": number}
    with open(job / "output", "wb") as output:
        started = subprocess.Popen(
            ["bash", "-c", WRAPPER, "wrapper", script, str(job)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment,
        )  # fmt: skip
    (job / "pid").write_text(str(started.pid))
    return f"job {number}"


def find(state: Path, name: str) -> str:
    jobs = [job for job in sorted(state.glob("job-*")) if (job / "name").read_text() == name]
    return "\n".join(f"job {job.name[4:]}" for job in jobs if (job / "pid").exists())


def poll(state: Path, number: str) -> str:
    job = state / f"job-{number}"
    if not job.exists() or (job / "forgotten").exists():
        return "no such job"
    if (job / "word").exists():
        return (job / "word").read_text()
    return "state=R" if (job / "pid").exists() else "state=E"


def signal_job(state: Path, number: str, signum: str) -> str:
    pid = state / f"job-{number}" / "pid"
    if pid.exists():
        os.killpg(int(pid.read_text()), int(signum))
        if int(signum) == signal.SIGKILL:
            time.sleep(0.05)
            pid.rename(pid.with_name("ended"))
    return ""


def nodes(state: Path) -> str:
    return "a 2 0 up\nb 4 8 up\nc 4 8 up\nd 2 0 down\n"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
