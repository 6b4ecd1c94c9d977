"""The wire formats: one file per dialect, each of pure functions between bytes and the canonical types."""
