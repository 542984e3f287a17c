"""Corpora: documents in, a tokenizer and memory-mapped token shards out. No torch: the service and the CLI use it."""
