"""A real gateway whose model plays a script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.e2e.server import ADMIN_KEY, ROOT, Server, free_port

CONFIG = """
models:
  - name: canned
    script: canned.yaml
    aliases: [gpt-4o]
    price: {input: "1", output: "1000"}
"""
SCRIPT = """
answers:
  - text: Hello! How can I help?
    gap_s: 0.01
  - {match: liar, text: Hello, usage: {prompt_tokens: -3, completion_tokens: 100000}}
  - {match: broken, text: This breaks off, error: {code: engine_failed, after_chunks: 2}}
"""


def test_the_sdk_gets_what_the_script_says(tmp_path: Path) -> None:
    (tmp_path / "canned.yaml").write_text(SCRIPT)
    with (
        Server(tmp_path, config=CONFIG) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client,
    ):

        def say(text: str) -> str:
            stream = client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": text}], stream=True
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

        assert say("hi") == "Hello! How can I help?"
        with pytest.raises(openai.APIError):
            say("broken")
        assert say("liar") == "Hello"
        with server.client() as plain:
            used = plain.get("/v1/usage/me").json()["data"][0]
    # What was sent of the broken answer is paid, and reported usage where it can be true.
    assert used["requests"] == 3
    assert used["completion_tokens"] == 5 + 2 + 100_000


def test_a_script_that_cannot_be_played_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "canned.yaml").write_text("answers: [{say: hello}]")
    (tmp_path / "config.yaml").write_text(CONFIG)
    for command in (["serve", "--port", str(free_port())], ["check"]):
        arguments = [*command, "--config", str(tmp_path / "config.yaml"), "--data-dir", str(tmp_path / "state")]
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments], cwd=ROOT, check=False, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "canned.yaml: no script: Object contains unknown field `say`" in done.stderr
        assert "Traceback" not in done.stderr
