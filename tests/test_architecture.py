"""The shape of the code, held by a test: who may import whom, how large things get, which names stay out."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
BANNED_NAMES = ("Manager", "Service", "Repository", "Helper", "Util", "Utils", "Base")

# What each part of the gateway may import of the gateway. A part is a top-level module or folder.
GATEWAY_EDGES = {
    "cli": {
        "app",
        "audit",
        "auth",
        "bench",
        "bench_report",
        "catalog",
        "chat",
        "cli_audit",
        "cli_bench",
        "cli_guardrails",
        "cli_keys",
        "cli_models",
        "cli_money",
        "cli_people",
        "cli_served",
        "cli_sessions",
        "cli_upkeep",
        "command",
        "config",
        "config_limits",
        "doctor",
        "engines",
        "errors",
        "kept_sessions",
        "ledger",
        "limits",
        "logs",
        "model_files",
        "state",
        "stores",
        "usage",
        "yaml_lines",
        "cli_pool",
        "cli_pull",
        "cli_datasets",
    },
    "command": {"audit", "auth", "config", "errors", "logs", "moments", "state", "stores"},
    "cli_guardrails": {"chat", "command"},
    "cli_keys": {"auth", "cli_money", "cli_notes", "command", "usage"},
    "cli_notes": {"auth", "catalog", "command", "config", "prices", "served"},
    "cli_people": {"auth", "cli_log_ins", "cli_money", "cli_notes", "command", "usage"},
    "cli_served": {
        "audit",
        "auth",
        "command",
        "config",
        "config_limits",
        "config_providers",
        "errors",
        "known_prices",
        "ledger",
        "prices",
        "served",
        "yaml_lines",
    },
    "cli_log_ins": {"auth", "command", "config"},
    "cli_upkeep": {"audit", "auth", "command", "limits", "state", "stores"},
    "cli_bench": set(),
    "cli_money": {"moments"},
    "moments": set(),
    "cli_sessions": set(),
    "usage": {
        "audit",
        "auth",
        "catalog",
        "chat",
        "config",
        "config_limits",
        "errors",
        "ledger",
        "limits",
        "served",
        "state",
    },
    "app": {
        "alerts",
        "api",
        "audit",
        "auth",
        "banner",
        "cache",
        "catalog",
        "config",
        "engines",
        "errors",
        "gauges",
        "hubs",
        "guardrails",
        "idempotency",
        "inference",
        "ledger",
        "limits",
        "library",
        "logs",
        "memory",
        "metering",
        "networks",
        "passthrough",
        "regularly",
        "retention",
        "remotes",
        "sessions",
        "state",
        "stores",
        "telemetry",
        "routing",
        "config_providers",
        "served",
    },
    "api": {
        "audit",
        "auth",
        "cache",
        "catalog",
        "config",
        "config_auth",
        "config_guardrails",
        "config_limits",
        "errors",
        "guardrails",
        "idempotency",
        "inference",
        "ledger",
        "library",
        "limits",
        "logs",
        "metering",
        "networks",
        "passthrough",
        "moments",
        "secret",
        "public_network",
        "sessions",
        "telemetry",
        "routing",
        "streams",
        "served",
        "config_providers",
        "prices",
    },
    "audit": {"errors", "state"},
    "cli_audit": {"audit", "cli_money", "command", "state", "stores"},
    "cache": {"auth", "catalog", "config_cache", "errors", "limits", "metering", "state", "streams", "telemetry"},
    "inference": {"auth", "cache", "catalog", "errors", "guardrails", "metering", "streams", "telemetry", "watching"},
    "watching": {"guardrails", "metering"},
    "guardrails": {"auth", "catalog", "config_guardrails", "errors", "public_network", "secret", "telemetry"},
    "config_guardrails": {"config_limits", "secret"},
    "streams": {"catalog", "errors", "ledger", "metering", "telemetry"},
    "metering": {"auth", "catalog", "errors", "ledger", "limits", "telemetry", "terms"},
    "terms": {"auth", "catalog", "ledger", "limits"},
    "catalog": {"auth", "errors", "prices"},
    "limits": {"auth", "catalog", "config_limits", "errors", "state"},
    "ledger": {"catalog", "errors", "limits", "state"},
    "auth": {"config", "config_auth", "config_limits", "config_people", "errors", "networks", "secret", "state"},
    "alerts": {"config_money", "errors", "ledger", "limits", "public_network", "secret", "state", "telemetry"},
    "regularly": set(),
    "retention": {"audit", "config_money", "ledger", "limits", "regularly", "state"},
    "sessions": {"auth", "catalog", "errors"},
    "idempotency": {"config", "errors", "ledger", "limits", "state"},
    "routing": {"catalog", "config_providers", "config_routing"},
    "library": {"routing", "secret", "state"},
    "cli_models": {"audit", "cli_links", "hubs", "command", "library", "model_files", "state"},
    "cli_links": {"audit", "command", "hubs", "library", "model_files", "state"},
    "engines": {"config"},
    "memory": set(),
    "prices": {"config_limits", "config_models", "config_providers", "known_prices"},
    "known_prices": {"config_limits"},
    "remotes": {"config", "config_providers", "config_routing", "routing"},
    "served": {"auth", "config", "config_limits", "config_providers", "errors", "remotes", "secret", "state"},
    "passthrough": {"auth", "catalog", "errors", "guardrails", "metering"},
    "banner": {"config"},
    "model_files": {"config", "library"},
    "canary": {
        "auth",
        "catalog",
        "config_limits",
        "errors",
        "inference",
        "limits",
        "metering",
        "state",
        "telemetry",
    },
    "doctor": {
        "audit",
        "auth",
        "canary",
        "config",
        "config_providers",
        "ledger",
        "library",
        "limits",
        "logs",
        "model_files",
        "remotes",
        "state",
        "stores",
        "prices",
        "served",
    },
    "stores": {"config", "state"},
    "state": set(),
    "config": {
        "config_auth",
        "config_cache",
        "config_guardrails",
        "config_limits",
        "config_models",
        "config_money",
        "config_providers",
        "config_people",
        "config_pool",
        "networks",
        "schema",
        "secret",
        "yaml_lines",
        "config_library",
    },
    "config_cache": {"config_limits", "secret"},
    "config_providers": {"config_cache", "config_limits", "config_models", "config_routing", "secret"},
    "config_routing": {"config_limits"},
    "config_models": {"config_cache", "config_limits"},
    "config_library": {"config_auth", "config_limits", "config_models", "secret"},
    "cli_datasets": {"audit", "chat", "cli_links", "command", "library", "model_files", "state"},
    "cli_pool": {"chat", "command", "model_files"},
    "cli_pull": {"cli_datasets", "command", "config", "hubs", "library", "state", "stores"},
    "hubs": {"config", "library", "secret", "state"},
    "config_auth": {"config_limits"},
    "config_pool": {"config_limits"},
    "config_people": {"config_auth", "config_limits", "secret"},
    "config_limits": set(),
    "networks": set(),
    "public_network": set(),
    "config_money": {"config_limits", "secret"},
    "schema": set(),
    "secret": set(),
    "yaml_lines": set(),
    "errors": {"state"},
    "telemetry": {"scrape"},
    "scrape": set(),
    "gauges": {"audit", "auth", "ledger", "routing", "telemetry"},
    "logs": {"config"},
    "chat": {"bench", "logs"},
    "kept_sessions": {"chat", "model_files"},
    "bench": {"bench_report"},
    "bench_report": set(),
}
# Foreign packages that only the named places may import.
CONFINED = {
    "httpcore": ("gateway/api/remote_images.py", "gateway/public_network.py", "gateway/alerts", "gateway/guardrails"),
    "starlette": ("gateway/api", "gateway/app/"),
    "uvicorn": ("gateway/api", "gateway/app/"),
    "httptools": ("gateway/api", "gateway/app/", "adapters/connection.py"),
    "aiosqlite": ("gateway/state",),
    "asyncpg": ("gateway/state",),
    "redis": ("gateway/state",),
    "sqlite3": ("gateway/state", "gateway/doctor.py"),
    "re2": ("gateway/guardrails", "gateway/config_guardrails.py"),
    "jwt": ("gateway/auth",),
    "huggingface_hub": ("gateway/library",),
    "pyarrow": ("gateway/library/parquet.py",),
    "llguidance": ("adapters/llama_cpp/grammar.py", "adapters/llama_cpp/vetting.py"),
    "llama_cpp": ("adapters/llama_cpp/native.py", "adapters/llama_cpp/batch.py", "adapters/llama_cpp/vision.py"),
    "jinja2": ("adapters/llama_cpp/templates.py", "adapters/llama_cpp/sandbox.py"),
    "torch": ("adapters/llama_cpp/demo",),
}
# The half of the engine that lives in the worker process. The gateway process must never load it.
WORKER_SIDE = {
    "arrays",
    "native",
    "backends",
    "batch",
    "scheduler",
    "sequence",
    "thoughts",
    "guidance",
    "sessions",
    "tiers",
    "kept",
    "keeping",
    "buffers",
    "matching",
    "pacing",
    "planning",
    "sealed",
    "store",
    "weights",
    "checkpoints",
    "explain",
    "sampling",
    "embedder",
    "preparation",
    "prompts",
    "lease",
    "boundaries",
    "loading",
    "lora",
    "worker",
    "confine",
    "grammar",
    "gbnf",
    "schema",
    "vetting",
    "eyesight",
    "images",
    "looking",
    "pictures",
    "vision",
    "trial",
}
GATEWAY_SIDE = {
    "__init__",
    "process",
    "queue",
    "pool",
    "asleep",
    "records",
    "messages",
    "resident",
    "residency",
    "forecast",
    "arrivals",
    "link",
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def statements(path: Path) -> tuple[ast.stmt, ...]:
    """All statements of a file at whatever depth; expressions are not looked into, which takes most of the time."""
    found, waiting = [], list[ast.AST](parsed(path).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.stmt):
            found.append(node)
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
    return tuple(found)


def imports(path: Path) -> Iterator[str]:
    """Dotted names a file imports; `from a.b import c` gives `a.b.c`."""
    for node in statements(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part(dotted: str) -> str:
    return dotted.split(".")[1]


def test_adapters_know_nothing_of_the_gateway() -> None:
    assert not [
        relative(path) for path in sources("adapters") for name in imports(path) if name.split(".")[0] == "gateway"
    ]


def test_gateway_edges() -> None:
    wrong = []
    for path in sources("gateway"):
        own = path.relative_to(ROOT / "gateway").parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):
            continue
        allowed = GATEWAY_EDGES[own] | {own}
        wrong += [
            f"{relative(path)} imports {name}"
            for name in imports(path)
            if name.startswith("gateway.") and part(name) not in allowed and name != "gateway.__version__"
        ]
    assert not wrong


def test_adapters_are_used_where_the_design_says() -> None:
    wrong = []
    for path in sources("gateway"):
        place = relative(path)
        for name in imports(path):
            if name.startswith("adapters.dialects") and not place.startswith("gateway/api/"):
                wrong.append(f"{place} imports {name}")
            if name.startswith("adapters.open_") and not place.startswith("gateway/app/"):
                wrong.append(f"{place} imports {name}")
    assert not wrong


def test_foreign_packages_stay_where_they_belong() -> None:
    wrong = []
    for path in sources("gateway", "adapters"):
        for name in imports(path):
            places = CONFINED.get(name.split(".")[0])
            if places and not relative(path).startswith(places):
                wrong.append(f"{relative(path)} imports {name}")
    assert not wrong


def test_the_gateway_process_never_loads_the_worker_side() -> None:
    folder = ROOT / "adapters/llama_cpp"
    wrong = [
        f"{path.name} imports {name}"
        for path in (folder / f"{name}.py" for name in GATEWAY_SIDE)
        for name in imports(path)
        if name.startswith("adapters.llama_cpp.") and name.split(".")[2] in WORKER_SIDE
    ]
    assert not wrong
    code = "import gateway.app, sys; print('llama_cpp' in sys.modules or 'llguidance' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "False"


@pytest.mark.parametrize("folder", ("gateway", "adapters", "tests"))
def test_files_and_functions_stay_small(folder: str) -> None:
    wrong = []
    for path in sources(folder):
        lines = len(path.read_text().splitlines())
        if lines > FILE_LINES_MAX:
            wrong.append(f"{relative(path)} has {lines} lines")
        for node in statements(path):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines > FUNCTION_LINES_MAX:
                wrong.append(f"{relative(path)}: {node.name} has {lines} lines")
            if isinstance(node, ast.ClassDef) and node.name.endswith(BANNED_NAMES):
                wrong.append(f"{relative(path)}: {node.name} is no name")
    assert not wrong


def test_modules_say_what_they_are_and_hold_no_mutable_state() -> None:
    wrong = []
    for path in sources("gateway", "adapters"):
        tree = parsed(path)
        if tree.body and not ast.get_docstring(tree):
            wrong.append(f"{relative(path)} does not open with one line of doc")
        for node in tree.body:
            names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
            value = getattr(node, "value", None)
            mutable = isinstance(value, ast.List | ast.Set | ast.ListComp | ast.SetComp)
            if mutable and names != ["__all__"]:
                wrong.append(f"{relative(path)}:{node.lineno}: {names} can be changed by anyone")
    assert not wrong


def test_import_does_nothing() -> None:
    """Importing starts no thread, opens no socket or file, and reads no setting."""
    modules = [
        relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in sources("gateway", "adapters")
    ]
    modules = [name for name in modules if not name.endswith("__main__") and ".demo." not in name]
    code = f"""
import sys, threading, os
import llama_cpp, numpy  # foreign packages may do as they like
before = threading.active_count(), set(os.listdir("/proc/self/fd"))
def audit(event, args):
    if event.startswith(("socket.", "subprocess.")) or event == "os.putenv":
        raise SystemExit(f"{{event}} {{args}}")
sys.addaudithook(audit)
for name in {modules!r}:
    __import__(name)
assert threading.active_count() == before[0]
print("ok")
"""
    result = subprocess.run([sys.executable, "-c", code], text=True, cwd=ROOT, capture_output=True)
    assert result.stdout.strip() == "ok", result.stderr
