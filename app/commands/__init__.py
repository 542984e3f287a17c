"""The verbs of the `growthlaw` command, one module each."""
