"""LangChain and LlamaIndex against the running gateway."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.e2e.server import ADMIN_KEY, ROOT, Server


def test_langchain_chat(server: Server) -> None:
    llm = ChatOpenAI(model="demo", base_url=f"{server.url}/v1", api_key=ADMIN_KEY, temperature=0)  # type: ignore[arg-type]
    question = [HumanMessage("What is the capital of France?")]
    answer = llm.invoke(question)
    assert "Paris" in str(answer.content)
    assert answer.usage_metadata is not None and answer.usage_metadata["input_tokens"] > 0
    assert "Paris" in "".join(str(chunk.content) for chunk in llm.stream(question))


def test_langchain_embeddings(server: Server) -> None:
    embeddings = OpenAIEmbeddings(
        model="team/embedder",
        base_url=f"{server.url}/v1",
        api_key=ADMIN_KEY,  # type: ignore[arg-type]
        check_embedding_ctx_length=False,
    )
    assert len(embeddings.embed_documents(["one", "two"])) == 2


def test_llama_index(server: Server) -> None:
    """It still needs the previous major version of the SDK, so it has an environment of its own."""
    python = ROOT / ".venv/llama-index/bin/python"
    if not python.exists():
        pytest.fail("LlamaIndex is not installed; run: make .venv/llama-index/.ready")
    script = Path(__file__).parent / "llama_index" / "client.py"
    output = subprocess.run(
        [str(python), str(script), f"{server.url}/v1", ADMIN_KEY],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    chat, stream = output.stdout.splitlines()[-2:]
    assert "Paris" in chat and "Paris" in stream
