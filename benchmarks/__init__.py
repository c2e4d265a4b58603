"""Speed and memory, one JSON line last: ``python -m benchmarks.NAME [--case CASE | --list]``."""
