"""Runs that were trained elsewhere, read into the canonical table and stored."""
