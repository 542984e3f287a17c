"""Guidelines of stored runs: refitted when a run ends, kept version by version, one a cohort active."""
