"""Writes `app/api/examples.json` anew: what a real service answers, with a real tiny run behind it.

    python tests/api/record_examples.py        # from the checkout, with it and tests/ on PYTHONPATH; a minute or two

Long lists and texts are cut short, and the machine's own paths and name are replaced; nothing else is touched.
"""

from __future__ import annotations

import json
import lzma
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from stored_cohort import COHORT, SHAPE, store_fitted_cohort

from app.bundled import bundled_dir
from app.contract import CorpusSpec
from app.corpus.prepare import prepare_corpus
from app.main import create_app
from app.settings import Settings

FILE = Path(__file__).parents[2] / "app" / "api" / "examples.json"
LONGEST_LIST, LONGEST_TEXT = 2, 300
ENDED = ("succeeded", "failed", "cancelled")
DESIGN: dict[str, Any] = {
    "name": "pilot", "cohort": "demo", "corpus": "demo", "growth_factor": 2, "growth_timing_tokens": 20_480,
    "token_budget": 51_200, "controls": ["scratch"],
    "target_model": {
        "num_layers": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "context_length": 64,
    },
    "training": {"peak_lr": 4e-3, "batch_sequences": 8, "warmup_tokens": 5_120},
    "num_validation_windows": 16, "checkpoint_every_tokens": 8_192,
}  # fmt: skip
SINGLE: dict[str, Any] = {
    "name": "single", "cohort": "demo", "corpus": "demo", "model": DESIGN["target_model"],
    "training": {"tokens": 4_096_000, "peak_lr": 4e-3, "batch_sequences": 8, "warmup_tokens": 5_120},
    "num_validation_windows": 16,
}  # fmt: skip
LOG = "step,tokens,val\n1,1000000,4.0\n2,2000000,3.5\n"


class Recorder:
    """Calls routes and keeps what they answer."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.examples: dict[str, dict[str, Any]] = {}

    def call(self, method: str, route: str, *, body: Any = None, expected: int = 200, **others: Any) -> Any:
        """Call `route`, its {placeholders} filled from `others`; the rest of them are query parameters."""
        names = re.findall(r"\{(\w+)\}", route)
        query = {name: value for name, value in others.items() if name not in names}
        path = route.format(**{name: others[name] for name in names})
        answer = self.client.request(method, path, params=query, **({} if body is None else {"json": body}))
        assert answer.status_code == expected, (method, path, answer.status_code, answer.text)
        known = self.examples.setdefault(f"{method} {route}", {})
        if expected >= 400:
            known["problem"] = answer.json()
        else:
            known["response"] = answer.json()
            if body is not None:
                known["request"] = body
        return answer.json()

    def wait(self, job_id: str, *states: str) -> None:
        deadline = time.monotonic() + 300
        while self.client.get(f"/jobs/{job_id}").json()["state"] not in states:
            assert time.monotonic() < deadline, self.client.get(f"/jobs/{job_id}").text
            time.sleep(0.1)


def record(recorder: Recorder, exports: str) -> None:
    """Go through every route."""
    call = recorder.call
    question = {"target_shape": SHAPE, "token_budget": 4e6, "cohort": COHORT}
    answer = call("POST", "/recommend", body=question | {"keep": True})
    call("POST", "/recommend", body={"target_params": -1, "token_budget": 2e12}, expected=422)
    call("POST", "/recommend/batch", body={"questions": [question, {"target_params": -1, "token_budget": 2e12}]})
    shape = {("num_target_layers" if name == "num_layers" else name): value for name, value in SHAPE.items()}
    call(
        "GET", "/surface", **shape, token_budget=4e6, cohort=COHORT, growth_factors=[2, 4], num_timings=3, num_budgets=3
    )
    call("GET", "/recommendations")
    call("GET", "/recommendations/{recommendation_id}", recommendation_id=answer["id"])
    call("GET", "/recommendations/{recommendation_id}", recommendation_id="rec_none", expected=404)

    growth = call("POST", "/grow", body=DESIGN | {"recommendation_id": answer["id"]}, expected=202)
    grown = growth["arms"][0]["job"]
    for arm in growth["arms"]:
        recorder.wait(arm["job"]["id"], *ENDED)
    call("POST", "/grow", body=DESIGN | {"corpus": "nowhere"}, expected=422)
    call("GET", "/jobs/{job_id}", job_id=grown["id"])
    call("GET", "/jobs/{job_id}", job_id="job_none", expected=404)
    call("GET", "/jobs/{job_id}/prediction", job_id=grown["id"])
    call("GET", "/jobs/{job_id}/logs", job_id=grown["id"], max_bytes=300)
    call("POST", "/jobs/{job_id}/export", job_id=grown["id"], body={"url": f"{exports}/pilot"}, expected=202)
    call("POST", "/jobs/{job_id}/pause", job_id=grown["id"], expected=409)
    single = call("POST", "/jobs", body=SINGLE, expected=202)
    recorder.wait(single["id"], "running")
    call("GET", "/workers")
    call("GET", "/jobs")
    call("POST", "/jobs/{job_id}/pause", job_id=single["id"])
    recorder.wait(single["id"], "paused")
    call("GET", "/jobs/{job_id}/checkpoints", job_id=single["id"])
    call("POST", "/jobs/{job_id}/resume", job_id=single["id"])
    call("POST", "/jobs/{job_id}/cancel", job_id=single["id"])
    recorder.wait(single["id"], "cancelled")
    call("POST", "/jobs/{job_id}/retry", job_id=single["id"])
    recorder.client.post(f"/jobs/{single['id']}/cancel")
    recorder.wait(single["id"], "cancelled")

    call("GET", "/corpora")
    call("GET", "/corpora/{name}", name="demo")
    corpus = call("POST", "/corpora", body={"name": "another", "vocab_size": 1024}, expected=202)
    recorder.client.post(f"/jobs/{corpus['id']}/cancel")
    recorder.wait(corpus["id"], "cancelled")

    call("GET", "/runs", cohort="demo")
    call("GET", "/runs/{run_id}", run_id=grown["run_id"])
    call("GET", "/runs/{run_id}/points", run_id=grown["run_id"], metric="validation_loss")
    call("GET", "/runs/{run_id}/metrics", run_id=grown["run_id"])
    control = growth["arms"][1]["job"]["run_id"]
    call("GET", "/runs/{run_id}/curve", run_id=grown["run_id"], against=control)
    call("POST", "/runs/import", body={"bundled": True}, dry_run=True)
    header = {"cohort": "mine", "name": "8-layers", "target_params": 4e5, "corpus": "web", "tokenizer": "bpe-1024"}
    opened = call("POST", "/runs", body=header | {"decision_dataset": "validation"})["run"]
    points = [{"seq": 0, "tokens": 2_000_000, "metric": "validation_loss", "dataset": "validation", "value": 3.9}]
    call("POST", "/runs/{run_id}/points", run_id=opened["run_id"], body={"points": points, "status": "finished"})
    call(
        "PATCH", "/runs/{run_id}", run_id=opened["run_id"], body={"is_final": False, "why": "stopped before its decay"}
    )
    call("DELETE", "/runs/{run_id}", run_id=opened["run_id"], why="trained on the wrong data")
    call("GET", "/runs/{run_id}", run_id=opened["run_id"], expected=410)
    call("GET", "/cohorts")
    call("GET", "/cohorts/{cohort}/refinement", cohort=COHORT)
    guidelines = call("GET", "/guidelines", cohort=COHORT)
    first = guidelines["data"][0]["id"]
    call("GET", "/guidelines/{guideline_id}", guideline_id=first)
    call("GET", "/guidelines/{guideline_id}/evidence", guideline_id=first)
    call("GET", "/guidelines/{guideline_id}/diff/{other_id}", guideline_id=first, other_id=first)
    call("POST", "/guidelines/{guideline_id}/activate", guideline_id=first, body={"pinned": False})
    refit = call("POST", "/guidelines/refit", body={"cohort": COHORT}, expected=202)
    call("GET", "/guidelines/refits")
    call("GET", "/guidelines/refits/{refit_id}", refit_id=refit["id"])
    call("POST", "/plan", body={"cohort": COHORT, "flops_budget": 2e13, "max_steps": 2})
    mapping = {"cohort": "mine", "tokens": "step * 1024 * 4096", "decision_dataset": "c4"}
    call("PUT", "/mappings/{name}", name="our-runs", body=mapping)
    call("GET", "/mappings")
    call("GET", "/mappings/{name}", name="our-runs")
    call("DELETE", "/mappings/{name}", name="nothing", expected=404)
    call("POST", "/keys", body={"name": "planner", "scope": "plan"}, expected=201)
    call("GET", "/keys")
    call("DELETE", "/keys/{name_or_id}", name_or_id="planner")
    call("GET", "/audit", limit=2)
    call("GET", "/healthz")
    call("GET", "/readyz")


def shortened(value: Any, replacements: dict[str, str]) -> Any:
    """The value with its lists and texts cut."""
    if isinstance(value, dict):
        return {name: shortened(item, replacements) for name, item in value.items()}
    if isinstance(value, list):
        return [shortened(item, replacements) for item in value[:LONGEST_LIST]]
    if isinstance(value, str):
        for old, new in replacements.items():
            value = value.replace(old, new)
        value = re.sub(r"(glk_key_\w{4}|glk_\w{4})\w{20,}", r"\1...", value)
        return value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + " [...]"
    return value


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder).resolve() / "data"
        documents = data.parent / "documents.jsonl"
        with lzma.open(bundled_dir("corpus") / "validation.jsonl.xz", "rb") as file:
            documents.write_bytes(file.read())
        prepare_corpus(
            CorpusSpec(
                run_id="examples", name="demo", corpus_dir=str(data / "corpora" / "demo"), sources=(str(documents),),
                vocab_size=512,
            )
        )  # fmt: skip
        exports = f"file://{data.parent}/exports"
        settings = Settings(data_dir=data, num_slots=1, export_urls=(exports,))
        with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
            store_fitted_cohort(client.app.state.service.database)  # type: ignore[attr-defined]
            recorder = Recorder(client)
            record(recorder, exports)
        replacements = {str(data.parent): "/srv/growthlaw", socket.gethostname(): "gpu01"}
        examples = shortened(recorder.examples, replacements)
    FILE.write_text(json.dumps(examples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
