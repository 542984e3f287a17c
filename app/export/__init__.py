"""A growth for a trainer of one's own: both stages, the growth between them, and when to look at what, as files.

Pure: values in, files out; no torch, no service. `plan.py` is the plan, `stages.py` makes it of a spec,
`from_recommendation.py` makes that spec of an answer, `for_*.py` write one trainer's files each, `build.py` puts them
together.
"""

from __future__ import annotations

from app.export.build import TRAINERS, build_plan, plan_files
from app.export.from_recommendation import Question, Wishes, design_question, question_of
from app.export.hf_config import hf_config, target_of
from app.export.plan import PLAN_VERSION, TrainingPlan, plan_from_json
from app.export.writing import write_files

__all__ = [
    "PLAN_VERSION", "TRAINERS", "Question", "TrainingPlan", "Wishes", "build_plan", "design_question", "hf_config",
    "plan_files", "plan_from_json", "question_of", "target_of", "write_files",
]  # fmt: skip
