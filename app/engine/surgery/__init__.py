"""Checkpoint surgery: transformers folders grown file by file, a folder in, a deeper or wider folder out.

Read :mod:`app.engine.surgery.grow` first. Whatever copies bytes imports neither torch nor transformers; new values are made
in :mod:`app.engine.surgery.rewrite` by the operators of live training (:mod:`app.engine.operators`).
"""
