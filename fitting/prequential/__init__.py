"""Prequential scores: every pair is predicted before it is fitted, and versions of a guideline are compared on such pairs."""
