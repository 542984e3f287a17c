"""Readers of other tools' run logs: bytes in, rows of step and named numbers out. Data only: nothing in a log is ever run.

==================  ==============================  ================================================================
module              format                          where the shape is from
==================  ==============================  ================================================================
trainer_state       ``transformers``                transformers 5.23, ``TrainerState.log_history``
megatron            ``megatron``                    Megatron-LM core_v0.16, ``training_log``, ``evaluate_and_print_results``
tensorboard         ``tensorboard``                 event files; tags of torchtitan 0.3.0 and Megatron-LM
lightning           ``lightning``                   litgpt 0.5, ``pretrain.py`` through Lightning's CSVLogger
nanochat            ``nanochat``                    nanochat's ``results.csv``, a row a run
tables              ``csv``, ``jsonl``, ``parquet``  any, with a column map
==================  ==============================  ================================================================
"""
