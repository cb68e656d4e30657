"""Other ways to the same answers, each a program of its own: `PYTHONPATH=benchmarks python -m peers.plain_torch`."""
