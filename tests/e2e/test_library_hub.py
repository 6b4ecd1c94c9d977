"""Links into folders of others, and a hub, through a real server and the command line beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ROOT, Server
from tests.hub import Hub

DEMO = ROOT / "adapters/llama_cpp/demo/demo.gguf"
FILES = "/admin/v1/library/files"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("others")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    with Hub({"demo-Q8_0.gguf": DEMO.read_bytes()}) as hub:
        library = f"{{import_dirs: [{DEMO.parent}], link_dirs: [{folder}], endpoint: '{hub.endpoint}'}}"
        with Server(tmp_path_factory.mktemp("hub"), config=f"library: {library}\n", ready=False) as server:
            yield server


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def file_id(admin: httpx.Client) -> str:
    made = admin.post(FILES, json={"path": str(DEMO), "how": "link", "wait": True}).json()
    assert made["status"] == "ready"
    return str(made["id"])


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


def test_links(server: Server, admin: httpx.Client, folder: Path, file_id: str) -> None:
    path = folder / "theirs.gguf"
    link = admin.post(f"{FILES}/{file_id}/links", json={"path": str(path)})
    assert (link.status_code, path.read_bytes() == DEMO.read_bytes()) == (201, True)
    assert admin.delete(f"{FILES}/{file_id}").status_code == 409
    outside = admin.post(f"{FILES}/{file_id}/links", json={"path": str(server.data_dir / "x.gguf")})
    assert (outside.status_code, outside.json()["error"]["param"]) == (400, "path")
    path.unlink()
    assert admin.post("/admin/v1/library/links/repair").json() == {"ok": 1, "repaired": 1, "broken": 0, "foreign": 0}
    assert path.exists()
    assert str(path) in command(server, "links").stdout
    (listed,) = admin.get(f"/admin/v1/library/links?file_id={file_id}").json()["data"]
    assert (listed["id"], listed["status"]) == (link.json()["id"], "ok")
    assert command(server, "unlink", listed["id"]).returncode == 0
    assert not path.exists()
    done = command(server, "link", file_id, str(folder / "again.gguf"), "--how", "copy")
    assert done.returncode == 0, done.stderr
    assert not (folder / "again.gguf").is_symlink()
    (listed,) = admin.get("/admin/v1/library/links").json()["data"]
    assert admin.delete(f"/admin/v1/library/links/{listed['id']}").status_code == 204
    assert list(folder.iterdir()) == []


def test_the_hub(server: Server, admin: httpx.Client, file_id: str) -> None:
    (found,) = admin.get("/admin/v1/library/hub?q=org").json()["data"]
    assert (found["repo"], found["downloads"]) == ("org/model", 12)
    offers = admin.get("/admin/v1/library/hub/org/model").json()
    (offer,) = offers["offers"]
    assert (offer["quantisation"], offer["fit"]["fits"], offers["facts"]["context_tokens"]) == ("Q8_0", True, 2048)
    looked = admin.post(f"{FILES}/{file_id}/lookup", json={"repo": "org/model"}).json()
    assert looked["matches"][0]["verified"]
    assert (looked["file"]["repo"], looked["file"]["repo_file"]) == ("org/model", "demo-Q8_0.gguf")
    assert admin.get("/admin/v1/library/hub/org/none").status_code == 404
    hardware = admin.get("/admin/v1/library/hardware").json()
    assert hardware["build"]["backends"] and hardware["disks"][0]["free_bytes"] > 0
    bad = admin.get("/admin/v1/library/hub/a..b/c")
    assert bad.status_code == 400
    assert "org/model" in command(server, "search", "model").stdout
    assert "Q8_0" in command(server, "offers", "org/model").stdout
    assert "yes" in command(server, "lookup", file_id, "--repo", "org/model").stdout
