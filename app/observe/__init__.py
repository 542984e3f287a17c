"""What an operator sees of a running service: its metrics, its request lines, its logs."""
