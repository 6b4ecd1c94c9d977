"""The options of `gateway bench`, apart from what it does, so that `gateway --help` stays quick."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--model", help="default: the server's first model")
    bench.add_argument("--compare", metavar="URL", help="a second server; runs alternate and ratios are printed")
    bench.add_argument("--compare-model", metavar="MODEL", help="default: the same model")
    bench.add_argument("--compare-key", metavar="KEY", help="API key of the second server")
    bench.add_argument("--api", choices=("chat", "completions"), help="which endpoint (default: chat)")
    bench.add_argument("--requests", type=_count, help="how many at most (default: 32)")
    bench.add_argument(
        "--duration", type=_seconds, dest="duration_s", metavar="SECONDS", help="start none later (default: 120)"
    )
    bench.add_argument(
        "--timeout", type=_seconds, dest="timeout_s", metavar="SECONDS", help="for one request (default: 300)"
    )
    bench.add_argument("--concurrency", type=_count, help="closed loop: how many run at once (default: 4)")
    bench.add_argument(
        "--rate", type=_seconds, dest="rate_per_s", metavar="PER_SECOND", help="open loop: starts per second"
    )
    bench.add_argument("--arrivals", choices=("poisson", "fixed"), help="open loop: spacing (default: poisson)")
    bench.add_argument(
        "--warmup", type=int, dest="warmup_requests", metavar="N", help="unmeasured requests first (default: 1)"
    )
    bench.add_argument("--prompt-words", type=_count, help="words in a prompt (default: 128)")
    bench.add_argument(
        "--shared-prefix", type=int, dest="shared_prefix_tokens", metavar="WORDS", help="words all prompts begin with"
    )
    bench.add_argument("--prompt-file", type=Path, metavar="FILE", help="one prompt per line instead of random words")
    bench.add_argument("--max-tokens", type=_count, help="of each answer (default: 64)")
    bench.add_argument("--temperature", type=float, help="default: 0")
    bench.add_argument("--seed", type=int, help="of prompts and arrivals (default: 1)")
    bench.add_argument("--repetitions", type=_count, help="runs of each server in a comparison (default: 5)")
    bench.add_argument("--json", action="store_true", help="machine-readable output")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError("must be above 0")
    return value
