"""Exports of finished checkpoints to any fsspec URL: where they may go, and a process that takes them there."""
