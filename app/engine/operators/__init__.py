"""Operators: how a base's weights become the target's. Start reading at `base.py`, then `tensors.py`."""
