"""The commands of the documentation of administration, pasted into a shell beside a real gateway."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import httpx

from tests.e2e.server import ADMIN_KEY, ROOT, Server
from tests.e2e.test_money import gateway, until

CONFIG = f"""
models:
  - name: demo
    path: {ROOT}/adapters/llama_cpp/demo/demo.gguf
    price: {{input: "10", output: "100"}}
    engine: {{threads: 1}}
"""


def pasted(server: Server) -> str:
    """The examples, with the address and the key of a server in place of those that are made up."""
    script = (ROOT / "gateway/docs/administration.md").read_text().partition("```sh\n")[2].partition("```")[0]
    _, _, commands = script.partition("\n")
    assert script.startswith("export GATEWAY_URL=") and "admin()" in commands
    return f"set -euo pipefail\nexport GATEWAY_URL={server.url} GATEWAY_API_KEY={ADMIN_KEY}\n{commands}"


def test_the_examples_work_as_pasted(tmp_path: Path) -> None:
    with Server(tmp_path / "server", config=CONFIG) as server, server.client() as admin:
        asked = admin.post("/v1/completions", json={"model": "demo", "prompt": "The fox", "max_tokens": 3})
        assert asked.status_code == 200
        # Each call is followed by a line of its own, so that the answers can be told apart.
        script = pasted(server).replace('"$@"\n}', '"$@" -w "\\n"\n}')
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines() if line]
        made = json.loads((tmp_path / "new-key.json").read_text())
        old, changed, rotated = answers[:3]
        assert (old["id"], old["version"], changed["name"], changed["expires_at"]) == (made["id"], 1, "ci-2", None)
        keys = {one["id"]: one["status"] for one in answers[3]["data"]}
        assert keys[made["id"]] == "revoked" and keys[rotated["id"]] == "active"

        def status(key: str) -> int:
            return httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

        until(lambda: status(made["key"]) == 401, "the revoked key is still good")
        assert status(rotated["key"]) == 403, "its scopes are those of the old one: inference"
        body = {"model": "demo", "prompt": "The fox", "max_tokens": 1}
        headers = {"Authorization": f"Bearer {rotated['key']}"}
        assert httpx.post(f"{server.url}/v1/completions", json=body, headers=headers).status_code == 200

        wallets = {one["id"]: one["usd"] for one in admin.get("/admin/v1/wallets").json()["data"]}
        assert wallets == {"lab": "2.25", "trial": "13.25"}
        moving = ("wallets", "transfer", "lab", "0.25", "--to", "trial", "--url", server.url, "--key", ADMIN_KEY)
        assert json.loads(gateway(server, *moving, "--idempotency-key", "back"))["usd"] == "2.0"
        assert json.loads(gateway(server, *moving, "--idempotency-key", "back"))["usd"] == "2.0"
        assert "2.0" in gateway(server, "wallets", "list")
        usage = (tmp_path / "usage.csv").read_text().splitlines()
        assert usage[0].startswith("start,org_id,key_id,requests") and len(usage) == 2
        assert json.loads((tmp_path / "ledger.jsonl").read_text())["model"] == "demo"
        until(lambda: "key.revoke" in audited(admin), "the revocation is not in the audit log")
        assert {"key.create", "key.change", "key.rotate", "wallet.transfer", "ledger.reprice"} <= audited(admin)
        assert ADMIN_KEY not in admin.get("/admin/v1/settings").text


def audited(admin: httpx.Client) -> set[str]:
    return {one["action"] for one in admin.get("/admin/v1/audit?limit=100").json()["data"]}


def test_the_page_and_the_document_are_there_without_a_key(tmp_path: Path) -> None:
    with Server(tmp_path, config=CONFIG) as server:
        page = httpx.get(f"{server.url}/docs")
        assert page.status_code == 200
        for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert httpx.get(f"{server.url}/{path}").status_code == 200
        document = httpx.get(f"{server.url}/openapi.json").json()
        assert "/admin/v1/keys/{id}/rotate" in document["paths"]
