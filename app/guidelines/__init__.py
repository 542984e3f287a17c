"""Guidelines of stored runs that refine themselves: predict, store, fit, compare, promote; every version stays addressable.

The order of one refit, in a process of its own (``python -m app.guidelines COHORT...``):

1. grown runs whose control at equal FLOPs is not there yet wait: a version lists them, but they enter no law and no pair, and
   they are predicted when their control is there;
2. every run that is new is predicted by the active version, by the newest one (the refit without it) and by every rule;
3. the predictions are stored, once for each (run, predictor version), and what was observed beside them;
4. the cohort is fitted anew, holding no lock of the database;
5. active version and refits are compared on the cases that both had not seen, and the new version is stored with the outcome.
"""
