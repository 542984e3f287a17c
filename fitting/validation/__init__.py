"""Validation of growth laws: folds, scores with intervals, and nested weights."""
