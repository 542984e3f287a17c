"""Joining a cohort: all its runs share one recipe, or their losses could not be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.store import runs as run_store
from app.store.tables import CohortRow


class CohortMismatch(ValueError):
    """A run's recipe differs from its cohort's, so its loss could not be compared with the others'."""


def join_cohort(
    session: Session, name: str, recipe: Mapping[str, Any], *, decision_metric: str, decision_dataset: str
) -> None:
    """Make the cohort where there is none of this name; else hold its recipe against this one.

    Raises:
        CohortMismatch: the cohort holds usable runs of another recipe; the message names the fields that differ.
    """
    text = json.dumps(recipe, sort_keys=True)
    recipe_hash = hashlib.sha256(text.encode()).hexdigest()
    cohort = run_store.get_cohort(session, name)
    if cohort is None:
        run_store.add_cohort(
            session,
            CohortRow(
                name=name,
                recipe=text,
                recipe_hash=recipe_hash,
                decision_metric=decision_metric,
                decision_dataset=decision_dataset,
            ),
        )
    elif cohort.recipe_hash != recipe_hash and not run_store.has_usable_runs(session, name):
        # Nothing that could be compared was ever trained under the old recipe: a mended design may replace it.
        cohort.recipe, cohort.recipe_hash = text, recipe_hash
        cohort.decision_metric, cohort.decision_dataset = decision_metric, decision_dataset
    elif cohort.recipe_hash != recipe_hash:
        known = json.loads(cohort.recipe)
        differences = ", ".join(
            f"{field} {recipe.get(field)!r} against {known.get(field)!r}"
            for field in sorted(known.keys() | recipe.keys())
            if known.get(field) != recipe.get(field)
        )
        raise CohortMismatch(
            f"cohort {name!r} holds runs of another recipe ({differences}), and losses are compared only within "
            "one; give these runs another cohort name, or the cohort's recipe"
        )
