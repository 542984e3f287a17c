"""The file contract between the service and the engine.

A run is a directory. The service writes `spec.json` and starts ``python -m app.engine RUN_DIR`` (or
``python -m app.corpus RUN_DIR``, ``python -m app.uploads RUN_DIR``); that process appends `metrics.jsonl` and
`events.jsonl`, keeps `checkpoints/`, and ends with `result.json` and an exit code. Nothing else passes between them, so any
scheduler that can run a command on a shared file system can run a growth job.

========================  =====================================================================
file                      what it holds
========================  =====================================================================
``spec.json``             one :class:`Spec`, written once by the service
``metrics.jsonl``         one :class:`MetricLine` a line, append-only, ``seq`` strictly monotone
``events.jsonl``          one :class:`EventLine` a line, append-only: started, checkpoint, growing, growth...
``checkpoints/``          what a restart needs, written beside and renamed
``exports/NAME/``         transformers folders (``base`` where a run grows, ``final`` always)
``result.json``           one :class:`Result`, written once at the very end
``engine.log``            whatever the process prints
========================  =====================================================================

Beside the run directories the service keeps ``.growthlaw-probe``, by which a worker elsewhere sees that it looks at the
same directory as the service.

After a restart the engine appends only lines whose ``seq`` is not in the file yet, so a reader that
stores rows by (run id, seq) sees every point exactly once.
"""

from __future__ import annotations

from pathlib import Path

from app.contract.checks import (
    CONTRACT_VERSION,
    ENGINE_NUMERICS_VERSION,
    LARGEST_NUMBER,
    MAX_SEED,
    NAME_PATTERN,
    SpecError,
)
from app.contract.corpora import CorpusSpec
from app.contract.legs import FREE_FIELDS, check_leg
from app.contract.lines import NO_SPACE_ERRNOS, EventLine, ExitCode, MetricLine, Phase, Result, RunStatus
from app.contract.specs import EvaluationSpec, GrowthSpec, ModelSpec, Spec
from app.contract.training import TrainingSpec, TrunkSpec
from app.contract.uploads import UploadSpec
from app.records import from_dict, read_json

__all__ = [
    "CHECKPOINTS_DIR",
    "CONTRACT_VERSION",
    "ENGINE_NUMERICS_VERSION",
    "EVENTS_FILE",
    "EXPORTS_DIR",
    "FREE_FIELDS",
    "LARGEST_NUMBER",
    "LOG_FILE",
    "MAX_SEED",
    "METRICS_FILE",
    "NAME_PATTERN",
    "NO_SPACE_ERRNOS",
    "PROBE_FILE",
    "RESULT_FILE",
    "SPEC_FILE",
    "CorpusSpec",
    "EvaluationSpec",
    "EventLine",
    "ExitCode",
    "GrowthSpec",
    "MetricLine",
    "ModelSpec",
    "Phase",
    "Result",
    "RunStatus",
    "Spec",
    "SpecError",
    "TrainingSpec",
    "TrunkSpec",
    "UploadSpec",
    "check_leg",
    "read_corpus_spec",
    "read_result",
    "read_spec",
    "read_upload_spec",
]

SPEC_FILE = "spec.json"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
RESULT_FILE = "result.json"
LOG_FILE = "engine.log"
CHECKPOINTS_DIR = "checkpoints"
EXPORTS_DIR = "exports"
PROBE_FILE = ".growthlaw-probe"


def read_corpus_spec(run_dir: Path) -> CorpusSpec:
    """The corpus preparation's spec, checked; errors as :func:`read_spec`."""
    return from_dict(CorpusSpec, read_json(run_dir / SPEC_FILE))


def read_upload_spec(run_dir: Path) -> UploadSpec:
    """The export's spec, checked; errors as :func:`read_spec`."""
    return from_dict(UploadSpec, read_json(run_dir / SPEC_FILE))


def read_spec(run_dir: Path) -> Spec:
    """The run's spec, checked.

    Raises:
        ValueError: the file is missing, is not JSON, or a field is wrong.
    """
    return from_dict(Spec, read_json(run_dir / SPEC_FILE))


def read_result(run_dir: Path) -> Result | None:
    """The run's result, None while it has none."""
    path = run_dir / RESULT_FILE
    return from_dict(Result, read_json(path)) if path.exists() else None
