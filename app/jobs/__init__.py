"""The life of a job: designed, queued, claimed, supervised, tailed, ended. Processes are reached by files and signals."""
