"""A consistent copy of a service's data while it runs, and putting it back.

A backup is a folder that appears whole or not at all:

==========================================  =================================================================
``growthlaw.sqlite3``, or                   the database, by SQLite's online backup
``growthlaw.pgdump``                        or by `pg_dump` (custom format)
``runs/RUN/...``                            every run's small files: spec, metrics, events, result, log
``runs/RUN/checkpoints/``, ``exports/``     only with `--with-runs`: they are large
``corpora/NAME/...``                        manifest and tokenizer; token shards only with `--with-corpora`
``backup.json``                             what it is, of when, and each file's size and SHA-256
==========================================  =================================================================

The database is copied first. Files of runs only grow, so each holds at least what the database says was read of it.
"""
