"""The stacking engine: one process trains a base, grows it and trains the target, from a spec to an export.

``python -m app.engine RUN_DIR`` reads `spec.json` and talks by files alone (:mod:`app.contract`). It knows no
web, no database and no scheduler. Read :mod:`app.engine.run` first: it is the story of a run from top to bottom.
"""
