"""Durable truth: what has to be the same after a restart."""
