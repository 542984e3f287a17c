"""What runs inside a Ray cluster on behalf of a service: it starts the engine where Ray says, and passes on its end.

The engine knows nothing of Ray, and the service does not import this package: they meet in the run directory and in the
command ``python -m app.ray_worker RUN_DIR``.
"""
