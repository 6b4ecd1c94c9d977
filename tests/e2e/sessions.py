"""What the tests of durable conversations share: servers, tenants, conversations."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests.e2e.server import ROOT, Server

DEMO = ROOT / "adapters/llama_cpp/demo/demo.gguf"
SYSTEM = "You are a helpful assistant. " + " ".join(
    f"Rule {number}: answer question {number} in {number + 2} short words, kindly and in full sentences."
    for number in range(12)
)
QUESTIONS = ("What is the capital of France?", "Tell me a short story about a fox.", "What is 7 + 5?")
Answer = dict[str, Any]


def config(*models: Path, engine: str = "", model: str = "", top: str = "") -> str:
    """A configuration with one thread per engine; further settings of the engines and of the models, and sections."""
    rows = "".join(
        f"  - {{name: {path.stem}, path: {path}, engine: {{threads: 1, {engine}}}, {model}}}\n" for path in models
    )
    return f"{top}\nmodels:\n{rows}"


def tenant(server: Server, name: str) -> httpx.Client:
    """A client of a tenant of its own."""
    command = [sys.executable, "-m", "gateway", "keys", "create", name, "--tenant", name, "--json"]
    command += ["--config", str(server.data_dir / "config.yaml"), "--data-dir", str(server.data_dir / "state")]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, timeout=60)
    return server.client(json.loads(made.stdout)["key"])


class Talk:
    """A conversation of a client with a model, under a key or without one."""

    def __init__(self, client: httpx.Client, key: str | None, *, model: str = "demo", system: str = SYSTEM) -> None:
        self._client = client
        self._fields = {"model": model, "max_tokens": 24, "temperature": 0}
        if key is not None:
            self._fields["prompt_cache_key"] = key
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}]

    def say(self, text: str, headers: dict[str, str] | None = None) -> Answer:
        """The whole answer; what it says is the next turn of the conversation."""
        self.messages.append({"role": "user", "content": text})
        body = self._fields | {"messages": self.messages}
        answer = self._client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        whole: Answer = answer.json()
        self.messages.append({"role": "assistant", "content": whole["choices"][0]["message"]["content"]})
        return whole

    def replies(self, questions: Iterable[str] = QUESTIONS) -> list[str]:
        return [reply(self.say(question)) for question in questions]


def reply(answer: Answer) -> str:
    return str(answer["choices"][0]["message"]["content"])


def cached(answer: Answer) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def prompt_tokens(answer: Answer) -> int:
    return int(answer["usage"]["prompt_tokens"])


def shown(client: httpx.Client, key: str) -> dict[str, Any]:
    answer = client.get(f"/v1/sessions/{quote(key, safe='')}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def mann_whitney_less(left: list[float], right: list[float]) -> float:
    """The probability of `left` being as small as it is beside `right` if both were drawn from the same distribution.

    One-sided Mann-Whitney U test in its normal approximation, with ranks shared between ties (Mann & Whitney 1947).
    """
    pooled = sorted(left + right)
    rank = {value: pooled.index(value) + (pooled.count(value) + 1) / 2 for value in pooled}
    m, n = len(left), len(right)
    statistic = sum(rank[value] for value in left) - m * (m + 1) / 2
    ties = sum(count**3 - count for count in (pooled.count(value) for value in set(pooled)))
    variance = m * n / 12 * (m + n + 1 - ties / ((m + n) * (m + n - 1)))
    deviation = (statistic + 0.5 - m * n / 2) / math.sqrt(variance)
    return 0.5 * math.erfc(-deviation / math.sqrt(2))
