"""Random histories of limiter and ledger, each from a seed that replays it."""
