"""How long a million points take from a file to the database, by the way that the command takes, and the floor beside it.

    python tests/benchmarks/bench_import.py --rows 1000000 --format csv [--database-url postgresql://...]

Prints the seconds of an import through a real service process, those of a dry run, and of the floor: the same rows by
sqlite3's executemany into a table of the same columns. The goal is 30 s for a million points (ratio: import / floor).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from app.client import Growthlaw

OPTIONS = {
    "cohort": "million", "name": "one", "target_params": 4e5, "corpus": "web", "tokenizer": "bpe", "tokens": "step * 4096",
    "columns": [{"column": "loss", "metric": "train_loss"}], "decision_metric": "train_loss", "decision_dataset": "",
}  # fmt: skip


def log_file(num_rows: int, format_name: str) -> tuple[str, bytes]:
    """One run with a training loss at every step."""
    if format_name == "csv":
        lines = "".join(f"{step},{2 + 8 / (step + 10):.6f}\n" for step in range(1, num_rows + 1))
        return "log.csv", f"step,loss\n{lines}".encode()
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"step": range(1, num_rows + 1), "loss": [2 + 8 / (step + 10) for step in range(1, num_rows + 1)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return "log.parquet", buffer.getvalue()


def floor_seconds(num_rows: int, folder: Path) -> float:
    """The same rows by sqlite3 alone, in one transaction, as fast as Python hands them over."""
    rows = [
        ("run_x", seq, "single", seq * 4096, seq * 4096 * 2.4e6, "train_loss", "", 2 + 8 / (seq + 10), "nats", "")
        for seq in range(num_rows)
    ]
    with sqlite3.connect(folder / "floor.sqlite3") as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(
            "CREATE TABLE points (run_id TEXT, seq INTEGER, phase TEXT, tokens BIGINT, compute_flops DOUBLE, metric TEXT,"
            " dataset TEXT, value DOUBLE, unit TEXT, time TEXT, PRIMARY KEY (run_id, seq))"
        )
        began = time.perf_counter()
        connection.executemany("INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
        return time.perf_counter() - began


def cpu_seconds(pid: int) -> float:
    """What a process has computed: on a busy machine it says more than the clock."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measure(num_rows: int, format_name: str, database_url: str | None = None) -> dict[str, Any]:
    """Seconds of a dry run, an import, a second import of the same, and the floor."""
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        environment = os.environ | {"PYTHONPATH": str(root)}
        if database_url:
            environment["GROWTHLAW_DATABASE_URL"] = database_url
        command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(folder / "data")]
        service = subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            service_file = folder / "data" / "service.json"
            while not service_file.exists():
                assert service.poll() is None, "the service did not start"
                time.sleep(0.05)
            client = Growthlaw(json.loads(service_file.read_text())["url"], timeout_seconds=600)
            file = log_file(num_rows, format_name)
            found: dict[str, Any] = {"rows": num_rows, "format": format_name, "megabytes": len(file[1]) / 1e6}
            cpu_before = cpu_seconds(service.pid)
            for name, dry_run in (("dry_run_seconds", True), ("import_seconds", False), ("again_seconds", False)):
                began = time.perf_counter()
                done = client.import_runs(OPTIONS, [file], dry_run=dry_run)
                found[name] = time.perf_counter() - began
                found[name.replace("seconds", "cpu_seconds")] = cpu_seconds(service.pid) - cpu_before
                cpu_before = cpu_seconds(service.pid)
                assert done["runs"][0]["num_points"] == (0 if name == "again_seconds" else num_rows)
            memory = Path(f"/proc/{service.pid}/status").read_text()
            found["service_peak_mb"] = int(memory.split("VmHWM:")[1].split()[0]) / 1024
        finally:
            service.terminate()
            service.wait(timeout=60)
        found["floor_seconds"] = floor_seconds(num_rows, folder)
    found["ratio_to_floor"] = found["import_seconds"] / found["floor_seconds"]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--database-url")
    arguments = parser.parse_args()
    for name, value in measure(arguments.rows, arguments.format, arguments.database_url).items():
        print(f"{name:20}{value:,.2f}" if isinstance(value, float) else f"{name:20}{value}")
