"""`growthlaw checkpoint` as people run it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from raw_checkpoints import write_llama

ROOT = Path(__file__).parents[3]


def growthlaw(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", "checkpoint", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "base", 2, max_window_layers=3)


def test_dry_run_tells_the_plan_and_writes_nothing(tmp_path: Path, base: Path) -> None:
    told = growthlaw("grow", base, tmp_path / "grown", "--layers", "8", "--dry-run")
    assert told.returncode == 0, told.stderr
    for words in (
        "3 layers to 8, connection rate 0.714",
        "layers from: 0 1 2 0 1 2 1 2",
        "config.json: num_hidden_layers: 3 -> 8",
        "bytes copied between files in 1 shard;",
        "bytes free",
        "a partial stack",
        "nothing written",
    ):
        assert words in told.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_grow_verify_and_show_speak_json(tmp_path: Path, base: Path) -> None:
    target = tmp_path / "grown"
    done = growthlaw("grow", base, target, "--factor", "2", "--json", "--checksums", "--base-tokens", "1e9")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    facts = json.loads(line)
    assert facts["written"]
    assert facts["layers"] == [0, 1, 2, 0, 1, 2]
    assert facts["config_changes"]["num_hidden_layers"] == [3, 6]
    assert facts["num_bytes"] == sum(path.stat().st_size for path in target.glob("*.safetensors"))
    verdict = json.loads(growthlaw("verify", target, "--source", base, "--json").stdout)
    assert verdict["good"]
    assert len(verdict["proved"]) == 4
    shown = json.loads(growthlaw("show", target, "--json").stdout)
    assert shown["num_layers"] == 6
    assert shown["growth_history"][0]["base_tokens"] == 10**9
    text = growthlaw("show", target).stdout
    assert "direct in depth, order stack, 3 to 6 layers, after 1B tokens, from base" in text
    assert "40x16" in text


def test_verify_exits_1_with_the_reasons(tmp_path: Path, base: Path) -> None:
    target = tmp_path / "grown"
    assert growthlaw("grow", base, target, "--factor", "2").returncode == 0
    (target / "config.json").write_text((target / "config.json").read_text() + " ")
    wrong = growthlaw("verify", target)
    assert wrong.returncode == 1
    assert "config.json" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("grow", "nowhere", "grown", "--factor", "2"), "is no folder"),
        (("grow", "base", "base", "--factor", "2"), "exists already"),
        (("grow", "base", "grown", "--width", "2", "--layers", "6"), "one after the other"),
        (("show", "nowhere"), "is no folder"),
        (("verify", "base"), "growth.json is missing"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = growthlaw(*arguments)
    assert failed.returncode == 1
    assert words in failed.stderr
    assert "Traceback" not in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_byte_copy_holds_no_tensor_and_loads_no_torch(tmp_path: Path) -> None:
    """200 MB in, 270 MB out, in a process that never holds 100 MB. The source is a file with a hole."""
    base = write_llama(tmp_path / "base", vocab_size=40)
    tensor_bytes = 2**26
    header = {}
    size = 0
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        header[name] = {"dtype": "F32", "shape": [tensor_bytes // 4], "data_offsets": [size, size + tensor_bytes]}
        size += tensor_bytes
    text = json.dumps(header).encode()
    with open(base / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    config = json.loads((base / "config.json").read_text()) | {"num_hidden_layers": 1}
    (base / "config.json").write_text(json.dumps(config))
    code = (
        "import sys, app.cli\n"
        "try:\n app.cli.main()\nexcept SystemExit as ended:\n assert not ended.code, ended.code\n"
        "heavy = [name for name in ('torch', 'transformers', 'numpy') if name in sys.modules]\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]\n"
        "print(heavy, peak)"
    )
    grown = tmp_path / "grown"
    ran = subprocess.run(
        [sys.executable, "-c", code, "checkpoint", "grow", str(base), str(grown), "--factor", "2", "--json"],
        capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (grown / "model.safetensors").stat().st_size > 4 * tensor_bytes
    heavy, peak_kib = ran.stdout.splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]"
    assert int(peak_kib) * 1024 < 100e6
