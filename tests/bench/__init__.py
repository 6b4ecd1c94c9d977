"""Benches against llama-server on generated models: `python -m tests.bench`."""
