"""Growthlaw's regression of growth timing and growth factor: tables in, values out; numpy, scipy and pandas only."""
