"""What the service costs: `/recommend` over HTTP, its start, its memory.

    python tests/benchmarks/bench_service.py [--rounds 10] [--requests 960] [--starts 5] [--out FILE]

**Overhead.** Three arms answer the same questions:

- `service`: `growthlaw serve` as a process, `POST /recommend`: of a published rule, and of a cohort's fitted guideline;
- `bare`: a FastAPI app with one plain `def` endpoint in a process of its own, under the same server with the same options;
  it takes the same body model and returns the same answer, computed once, through the same response model;
- `direct`: `fitting.recommendation.recommend`, in a loop in this process, of a question built anew each time: one that was
  asked before holds what it has worked out.

The number is service / (bare + direct), seconds a request at 32 kept connections; the goal is at most 1.30. Servers are
pinned to one core and the client, raw HTTP/1.1 on asyncio sockets, to another; `direct` runs on the servers' core while
they idle. A round runs the arms one after the other, every other round backwards, so a machine that drifts drifts for all;
a ratio is of one round, with a bootstrap interval over rounds. Beside wall time stands the CPU time of the answering process,
which other work on the machine disturbs less.

**Start** is from the process's creation to the first 200 of `/readyz`, on a new data directory and then on the same again
(goal 2 s). Beside each stands a floor, taken right after it: an interpreter that imports the libraries which any such
service must import (FLOOR) and ends; the ratio tells a slow service from a slow machine. Both run from bytecode, as what pip
installs does; one start before the first writes it. **Memory** is the resident set after 1000 requests (goal 250 MB).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

# Every arm runs on one core: threads of a BLAS would only fight for it.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import httpx
import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
GOAL_RATIO, GOAL_START_SECONDS, GOAL_MEGABYTES = 1.30, 2.0, 250.0
NUM_CONNECTIONS = 32
NUM_REQUESTS_BEFORE_MEMORY = 1000
START_SECONDS = 300
FLOOR = "import fastapi, uvicorn, pydantic_settings, sqlalchemy.orm, numpy"
QUESTIONS = {
    "published rule": {"target_params": 7e9, "token_budget": 2e12},
    "published rule, with a shape": {
        "target_shape": {
            "num_layers": 32, "hidden_size": 4096, "num_heads": 32, "intermediate_size": 14336, "vocab_size": 128_256,
            "context_length": 8192,
        },
        "token_budget": 2e12,
    },
    "a cohort's fitted guideline": {
        "target_shape": {
            "num_layers": 8, "hidden_size": 48, "num_heads": 3, "intermediate_size": 128, "vocab_size": 1024,
            "context_length": 128,
        },
        "token_budget": 2e6, "guideline": "gl_01m80bpagspgkmme760wxz3zq4",
    },
}  # fmt: skip
# Laws take tens of times as long as a published rule: so many fewer requests.
FEWER_OF_THE_FITTED = 10
GRID_GUIDELINE = ROOT / "tests" / "data" / "grid_guideline" / "guideline.json"


# --- the bare app, in a process of its own -------------------------------------------------------------------


def serve_bare(question: dict[str, Any]) -> None:
    """Serve the answer to `question`, computed once; the first line on stdout is the URL."""
    import uvicorn
    from fastapi import Body, FastAPI

    from app.api.recommend import RecommendBody
    from fitting.recommendation import Recommendation

    answer = direct_answer(question)
    app = FastAPI()

    def recommend(body: Annotated[RecommendBody, Body()]) -> Recommendation:
        return answer

    # The module's annotations are text: FastAPI finds their names only where they are the function's own.
    recommend.__annotations__ = {"body": Annotated[RecommendBody, Body()], "return": Recommendation}
    app.post("/recommend")(recommend)
    app.get("/readyz")(lambda: {"status": "ready"})
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listener])


def guideline_for(question: dict[str, Any]) -> Any:
    """The guideline that answers: the fitted one where the question names it."""
    from app.api.recommend import DEFAULT_GUIDELINE
    from fitting.guideline import Guideline
    from fitting.published import published_guideline

    if "guideline" in question:
        return Guideline.from_json(GRID_GUIDELINE.read_text(encoding="utf-8"))
    return published_guideline(DEFAULT_GUIDELINE)


def direct_answer(question: dict[str, Any]) -> Any:
    from app.api.recommend import RecommendBody
    from fitting.recommendation import recommend

    return recommend(RecommendBody(**question).to_question(None), guideline_for(question))


# --- servers --------------------------------------------------------------------------------------------------


def wait_until_ready(process: subprocess.Popen[Any], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        time.sleep(0.005)
    raise SystemExit(f"{url} was not ready within {START_SECONDS} s")


@contextlib.contextmanager
def server(command: list[str], core: int | None = None) -> Iterator[tuple[psutil.Process, str, float]]:
    """A server while the block runs, on one core if it is named: its process, URL, and seconds to its first 200."""
    pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, preexec_fn=pin,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        url = json.loads(said)["url"] if said.startswith("{") else said
        wait_until_ready(process, url)
        yield psutil.Process(process.pid), url, time.perf_counter() - begun
    finally:
        process.terminate()
        process.wait(timeout=60)


def store_fitted(data_dir: Path) -> None:
    """A database with the guideline of the project's own grid. Its runs are not there, so it is soon put away as its cohort's
    active one, and is asked by its id."""
    from stored_guideline import store_guideline

    from app.opening import open_database
    from app.settings import Settings
    from app.store.cohorts import join_cohort
    from fitting.guideline import Guideline

    data_dir.mkdir(parents=True)
    database = open_database(Settings(data_dir=data_dir))
    with database.write() as session:
        join_cohort(session, "grid", {}, decision_metric="validation_loss", decision_dataset="demo")
    store_guideline(database, Guideline.from_json(GRID_GUIDELINE.read_text(encoding="utf-8")), "grid")
    database.close()


def service_command(data_dir: Path) -> list[str]:
    return [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(data_dir), "--json"]


# --- load -----------------------------------------------------------------------------------------------------


async def _connection(host: str, port: int, request: bytes, tickets: Iterator[int]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    for _ in tickets:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answered {head[:200]!r}")
        (length,) = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(int(length.split(b":")[1]))
    writer.close()


async def load(url: str, question: dict[str, Any], num_requests: int) -> float:
    """Seconds a request at NUM_CONNECTIONS."""
    parts, body = urlsplit(url), json.dumps(question).encode()
    head = f"POST /recommend HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    request = head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body
    tickets = iter(range(num_requests))
    begun = time.perf_counter()
    await asyncio.gather(
        *(_connection(str(parts.hostname), int(parts.port or 0), request, tickets) for _ in range(NUM_CONNECTIONS))
    )
    return (time.perf_counter() - begun) / num_requests


def measure_server(
    process: psutil.Process, url: str, question: dict[str, Any], num_requests: int
) -> tuple[float, float]:
    """Wall and CPU seconds a request."""
    before = sum(process.cpu_times()[:2])
    wall = asyncio.run(load(url, question, num_requests))
    return wall, (sum(process.cpu_times()[:2]) - before) / num_requests


def measure_direct(question: dict[str, Any], num_requests: int, core: int) -> tuple[float, float]:
    """Wall and CPU seconds a call, on the servers' core."""
    from app.api.recommend import RecommendBody
    from app.questions import question_fields
    from fitting.recommendation import question_of, recommend

    guideline = guideline_for(question)
    fields = question_fields(RecommendBody(**question).model_dump(exclude={"guideline", "cohort", "keep"}))
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        for _ in range(num_requests):
            recommend(question_of(fields), guideline)
        return (time.perf_counter() - begun) / num_requests, (time.process_time() - cpu_begun) / num_requests
    finally:
        os.sched_setaffinity(0, here)


def interval(values: np.ndarray) -> list[float]:
    """The median, and the 90% bootstrap interval of the median over rounds."""
    draws = np.random.default_rng(0).choice(values, size=(2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.05, 0.95])
    return [round(float(number), 4) for number in (np.median(values), low, high)]


def overhead(
    question: dict[str, Any], options: argparse.Namespace, folder: Path, cores: tuple[int, int]
) -> dict[str, Any]:
    """The three arms, round by round."""
    server_core, client_core = cores
    os.sched_setaffinity(0, {client_core})
    bare_command = [sys.executable, str(Path(__file__)), "--bare", json.dumps(question)]
    num_requests = options.requests
    if "guideline" in question:
        store_fitted(folder / "service")
        num_requests = max(NUM_CONNECTIONS, num_requests // FEWER_OF_THE_FITTED)
    with (
        server(service_command(folder / "service"), server_core) as (service, service_url, _),
        server(bare_command, server_core) as (bare, bare_url, _),
    ):
        arms = {
            "service": lambda count: measure_server(service, service_url, question, count),
            "bare": lambda count: measure_server(bare, bare_url, question, count),
            "direct": lambda count: measure_direct(question, count, server_core),
        }
        for measure in arms.values():
            measure(min(num_requests, NUM_CONNECTIONS * 3))  # warm: first imports, pools, caches
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for place in range(options.rounds):
            for name in arms if place % 2 == 0 else reversed(arms):
                seconds[name].append(arms[name](num_requests))
    found: dict[str, Any] = {}
    for column, clock in enumerate(("wall", "cpu")):
        each = {name: np.array(rounds)[:, column] for name, rounds in seconds.items()}
        found[clock] = {
            "milliseconds_a_request": {name: round(float(np.median(values)) * 1e3, 4) for name, values in each.items()},
            "ratio_median_low_high": interval(each["service"] / (each["bare"] + each["direct"])),
        }
    return found


def floor() -> tuple[float, float]:
    """Wall and CPU seconds of an interpreter that imports FLOOR."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", FLOOR], cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it is gone: nobody need wait for it again
    if process.returncode:
        raise SystemExit(f"python -c {FLOOR!r} ended with {process.returncode}")
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime


def starts(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds to ready, on a new directory and again; the floor beside it; memory after requests. All cores."""
    with server(service_command(folder / "first")):
        floor()
    found: dict[str, list[float]] = {
        name: []
        for name in (
            "new_seconds", "again_seconds", "again_cpu_seconds", "floor_seconds", "floor_cpu_seconds", "ratio_to_floor",
            "cpu_ratio_to_floor", "megabytes",
        )
    }  # fmt: skip
    for place in range(options.starts):
        data_dir = folder / f"start-{place}"
        for name in ("new_seconds", "again_seconds"):
            with server(service_command(data_dir)) as (process, url, seconds):
                found[name].append(round(seconds, 3))
                if name == "again_seconds":
                    found["again_cpu_seconds"].append(round(sum(process.cpu_times()[:2]), 3))
                    asyncio.run(load(url, QUESTIONS["published rule"], NUM_REQUESTS_BEFORE_MEMORY))
                    found["megabytes"].append(round(process.memory_info().rss / 1e6, 1))
        floor_seconds, floor_cpu_seconds = floor()
        found["floor_seconds"].append(round(floor_seconds, 3))
        found["floor_cpu_seconds"].append(round(floor_cpu_seconds, 3))
        found["ratio_to_floor"].append(round(found["again_seconds"][-1] / floor_seconds, 3))
        found["cpu_ratio_to_floor"].append(round(found["again_cpu_seconds"][-1] / floor_cpu_seconds, 3))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=960, help="of an arm in a round")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        serve_bare(json.loads(options.bare))
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this benchmark pins servers and client to two cores, and this process may use one")
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="growthlaw-bench-") as name:
        folder = Path(name)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        # First, because what follows narrows the cores of this process.
        result: dict[str, Any] = {"start": starts(options, folder)}
        result["recommend"] = {
            label: overhead(question, options, folder / str(place), (cores[0], cores[1]))
            for place, (label, question) in enumerate(QUESTIONS.items())
        }
    wall, cpu = (
        max(one[clock]["ratio_median_low_high"][0] for one in result["recommend"].values()) for clock in ("wall", "cpu")
    )
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "goals": {"ratio": GOAL_RATIO, "start_seconds": GOAL_START_SECONDS, "megabytes": GOAL_MEGABYTES},
        "num_connections": NUM_CONNECTIONS,
        "num_rounds": options.rounds,
        "num_requests_a_round": options.requests,
        "machine": {
            "cpus": len(cores),
            "machine": platform.machine(),
            "load_average_1_5_15_before": [round(one, 2) for one in load_before],
            "load_average_1_5_15_after": [round(one, 2) for one in os.getloadavg()],
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("fastapi", "pydantic", "uvicorn", "starlette", "sqlalchemy")},
        **result,
    }  # fmt: skip
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text)
    start, ratio = (float(np.median(result["start"][name])) for name in ("again_seconds", "ratio_to_floor"))
    memory = max(result["start"]["megabytes"])
    print(f"overhead {wall:.2f} (goal {GOAL_RATIO}; by CPU time {cpu:.2f}), start {start:.2f} s (goal {GOAL_START_SECONDS}), "
          f"{ratio:.2f} times its floor, {memory:.0f} MB (goal {GOAL_MEGABYTES:.0f})")  # fmt: skip


if __name__ == "__main__":
    main()
