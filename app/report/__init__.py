"""The report on a grid of growth runs as a page of Markdown with figures; all numbers come from `fitting.grid_report`."""
