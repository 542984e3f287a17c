"""Evaluation of checkpoints: losses on named sets, the loss rise when a layer is dropped, LM evaluation harness tasks."""
