"""The library of files through a real server, and through the command line beside it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import ROOT, Server

DEMO = ROOT / "adapters/llama_cpp/demo/demo.gguf"
FILES = "/admin/v1/library/files"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    config = f"library: {{import_dirs: [{folder}]}}\n"
    with Server(tmp_path_factory.mktemp("library"), config=config, ready=False) as server:
        yield server


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def command(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["--data-dir", str(server.data_dir / "state"), "--config", str(server.data_dir / "config.yaml")]
    return subprocess.run(
        [sys.executable, "-m", "gateway", "models", *arguments, *options],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def settled(admin: httpx.Client, identity: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (file := admin.get(f"{FILES}/{identity}").json())["status"] == "verifying":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return dict(file)


def test_a_file_comes_in_is_found_checked_and_deleted(server: Server, admin: httpx.Client, folder: Path) -> None:
    model = folder / "tiny-Demo-Q8_0.gguf"
    model.write_bytes(DEMO.read_bytes())
    made = admin.post(FILES, json={"path": str(model), "how": "copy", "tags": ["lab"]})
    assert made.status_code == 201
    file = settled(admin, made.json()["id"])
    assert (file["status"], file["sha256"]) == ("ready", hashlib.sha256(DEMO.read_bytes()).hexdigest())
    assert file["facts"]["quantisation"] == "Q8_0"
    assert Path(file["path"]).is_relative_to(server.data_dir / "state" / "library")
    for query, count in (("q=demo q8", 1), ("q=lab", 1), ("q=other", 0), ("architecture=llama&status=ready", 1)):
        assert len(admin.get(f"{FILES}?{query}").json()["data"]) == count, query
    found = command(server, "find", "tiny", "q8_0")
    assert file["id"] in found.stdout
    assert "licence" in command(server, "show", file["id"]).stdout
    assert admin.post(f"{FILES}/{file['id']}/verify").json()["status"] == "verifying"
    assert settled(admin, file["id"])["status"] == "ready"
    again = admin.post(FILES, json={"path": str(model), "wait": True}).json()
    assert (again["status"], file["id"] in again["reason"]) == ("error", True)
    assert admin.delete(f"{FILES}/{file['id']}").status_code == 204
    assert admin.get(f"{FILES}/{file['id']}").status_code == 404
    deadline = time.monotonic() + 20
    while Path(file["path"]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    wanted = {"library.import", "library.verify", "library.delete"}
    while not wanted <= {entry["action"] for entry in admin.get("/admin/v1/audit?action=library.").json()["data"]}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_nobody_needs_goes(server: Server, admin: httpx.Client) -> None:
    left = server.data_dir / "state/library" / str(uuid.uuid4())
    left.mkdir()
    (left / ".part").write_bytes(b"12345")
    os.utime(left, (0, 0))
    would = admin.post("/admin/v1/library/collect", json={"dry_run": True}).json()
    assert (would["count"], would["size_bytes"], would["items"][0]["sort"]) == (1, 5, "import")
    assert str(left) in command(server, "gc", "--dry-run").stdout and left.exists()
    assert command(server, "gc").stdout.endswith("1 thing, 5 B, removed\n") and not left.exists()
    assert admin.post("/admin/v1/library/collect", json={}).json()["count"] == 0


def test_what_is_bad_is_refused_with_its_reason(server: Server, admin: httpx.Client, folder: Path) -> None:
    bad, secret = folder / "bad.gguf", server.data_dir / "secret.gguf"
    bad.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 100)
    secret.write_bytes(b"a secret")
    file = admin.post(FILES, json={"path": str(bad), "wait": True}).json()
    assert (file["status"], file["path"]) == ("quarantined", None)
    assert "too many" in file["reason"]
    for path in (str(secret), str(folder / ".." / "none.gguf"), str(folder), "/etc/passwd", "bad.gguf"):
        answer = admin.post(FILES, json={"path": path})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "path")
        assert "secret" not in answer.text.replace(secret.name, "")
    assert admin.post(f"{FILES}/{file['id']}/verify").status_code == 409
    assert admin.get(f"{FILES}/none").status_code == 404


def test_the_command_line_imports_from_anywhere(server: Server, tmp_path: Path) -> None:
    (tmp_path / "one.gguf").write_bytes(DEMO.read_bytes())
    (tmp_path / "two.gguf").write_bytes(b"no model")
    done = command(server, "import", str(tmp_path), "--tag", "cli")
    assert done.returncode == 1
    assert "two.gguf: quarantined: it does not begin with GGUF" in done.stderr
    (path,) = done.stdout.split()
    assert Path(path).read_bytes() == DEMO.read_bytes()
    identity = Path(path).parent.name
    assert command(server, "verify", identity).stdout == "ready\n"
    assert command(server, "delete", identity).returncode == 0
    gone = command(server, "delete", identity)
    assert (gone.returncode, "the library has no file" in gone.stderr) == (1, True)
