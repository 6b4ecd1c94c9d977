"""What the gateway adds to a request, beside nginx as a plain proxy: `python -m tests.bench.datapath`.

Both stand in front of the same mock provider, one after the other in changing order, each on one core of its own; the
mock and the load generator, in C, have the others. `bare` is a gateway without keys, `governed` one with keys, rate
limits, a budget and the ledger. With `--only nginx,bare,litellm` LiteLLM's proxy is in the same run, installed into an
environment of its own under `~/.cache`. Printed are medians over the repetitions and of the ratios to nginx, and no
verdict.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.bench.processes import free_port, machine_to_itself, server_process

HERE = Path(__file__).parent
CHUNKS, CHUNK_MS, CHUNK_BYTES = 100, 10, 100

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; client_max_body_size 64m; client_body_buffer_size 4m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream mock {{ server 127.0.0.1:{mock}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
    location /health {{ return 200; }}
  }}
}}
"""
GATEWAY = """
auth: {{enabled: {auth}}}
log: {{level: {level}}}
providers: [{{name: mock, kind: openai-compatible, base_url: "http://127.0.0.1:{mock}/v1", connections_max: 4096}}]
routes:
  - name: public
    groups: [[{{provider: mock, model: mock, price: {{input: "0.15", output: "0.60"}}}}]]
"""
LITELLM = "1.106.2"
LITELLM_CONFIG = """
model_list:
  - model_name: public
    litellm_params: {{model: openai/mock, api_base: "http://127.0.0.1:{mock}/v1", api_key: none}}
general_settings: {{master_key: "{key}"}}
"""
LIMITS = """
limits:
  rules:
    - scope: key
      requests_per_minute: 1000000000
      tokens_per_minute: 1000000000000
      concurrent_requests: 10000
      budgets: [{usd: "100000", period: month}]
"""


class Side(msgspec.Struct, frozen=True):
    """One server while it runs."""

    name: str
    port: int
    pid: int
    key: str = ""


class Numbers(msgspec.Struct):
    """What the load generator prints."""

    requests: int
    errors: int
    events: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float


class Bench:
    """The tools of a run, its folder and cores."""

    def __init__(self, folder: Path, mock_port: int, server_core: int, load_core: int) -> None:
        self.folder = folder
        self.mock_port = mock_port
        self.server_core = server_core
        self.load_core = load_core

    def load(self, side: Side, request: Path, *, connections: int, seconds: float, rate: float = 0) -> Numbers:
        taken = self.run(side, connections, seconds, rate, request)
        return msgspec.json.decode(taken.stdout, type=Numbers)

    def run(self, side: Side, *arguments: object) -> subprocess.CompletedProcess[bytes]:
        """Run the load generator; its arguments are those of load.c, without the port."""
        command = ["taskset", "-c", self.load_core, self.folder / "load", side.port, *arguments]
        return subprocess.run([str(word) for word in command], capture_output=True, check=True)

    def request(self, side: Side, name: str, **fields: object) -> Path:
        """A file with one request."""
        body = json.dumps({"model": "public", **fields}, separators=(",", ":")).encode()
        key = f"Authorization: Bearer {side.key}\r\n" if side.key else ""
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        path = self.folder / f"{side.name}-{name}.http"
        path.write_bytes(f"{head}{key}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return path


def cpu_s(pid: int) -> float:
    """What a process has used of its cores so far."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def build(folder: Path) -> None:
    for name in ("mock", "load"):
        subprocess.run(["gcc", "-O2", "-o", folder / name, HERE / f"{name}.c"], check=True)


@contextlib.contextmanager
def mock(folder: Path, core: int) -> Iterator[int]:
    port = free_port()
    arguments = [str(port), str(CHUNKS), str(CHUNK_MS), str(CHUNK_BYTES)]
    process = subprocess.Popen(["taskset", "-c", str(core), folder / "mock", *arguments])
    try:
        time.sleep(0.2)
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def nginx(bench: Bench) -> Iterator[Side]:
    port = free_port()
    config = bench.folder / "nginx.conf"
    config.write_text(NGINX.format(folder=bench.folder, mock=bench.mock_port, port=port))
    url, log = f"http://127.0.0.1:{port}/health", bench.folder / "nginx.log"
    with server_process(["nginx", "-c", str(config)], url, log, [bench.server_core]) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield Side("nginx", port, int(children[0]))


@contextlib.contextmanager
def gateway(bench: Bench, name: str, *, governed: bool) -> Iterator[Side]:
    port, folder = free_port(), bench.folder / name
    folder.mkdir()
    config = folder / "config.yaml"
    auth, level = ("true", "info") if governed else ("false", "warning")
    config.write_text(GATEWAY.format(mock=bench.mock_port, auth=auth, level=level) + (LIMITS if governed else ""))
    key = ""
    if governed:
        command = [sys.executable, "-m", "gateway", "keys", "create", "bench", "--data-dir", str(folder)]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        key = next(word for word in made.stdout.split() if word.startswith("gw_live_"))
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--data-dir", str(folder)]
    url = f"http://127.0.0.1:{port}/health/live"
    with server_process([*command, "--port", str(port)], url, bench.folder / f"{name}.log", [bench.server_core]) as one:
        yield Side(name, port, one.pid, key)


@contextlib.contextmanager
def litellm(bench: Bench) -> Iterator[Side]:
    """LiteLLM's proxy with one worker and no database; it does not start without a key."""
    environment = Path.home() / f".cache/gateway-bench/litellm-{LITELLM}"
    if not (environment / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin/pip", "install", "--quiet", f"litellm[proxy]=={LITELLM}"], check=True)
        (environment / "ready").touch()
    port, config, key = free_port(), bench.folder / "litellm.yaml", f"sk-{secrets.token_hex(32)}"
    config.write_text(LITELLM_CONFIG.format(mock=bench.mock_port, key=key))
    command = [str(environment / "bin/litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/health/liveliness"
    with server_process(command, url, bench.folder / "litellm.log", [bench.server_core]) as one:
        yield Side("litellm", port, one.pid, key)


def messages(size: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "hello there " * (size // 12)}]


def measured(bench: Bench, side: Side, seconds: float) -> dict[str, float]:
    """Every number of one side."""
    small = bench.request(side, "small", messages=messages(800), max_tokens=100)
    large = bench.request(side, "large", messages=messages(2_000_000), max_tokens=100)
    stream = bench.request(side, "stream", messages=messages(800), max_tokens=100, stream=True)
    direct = Side("direct", bench.mock_port, 0)
    bench.load(side, small, connections=64, seconds=0.5)
    results: dict[str, float] = {}

    before = cpu_s(side.pid)
    busy = bench.load(side, small, connections=64, seconds=seconds)
    results["requests/s"] = busy.requests / busy.seconds
    results["CPU us per request"] = (cpu_s(side.pid) - before) / busy.requests * 1e6
    paced = bench.load(side, small, connections=64, seconds=seconds, rate=1000)
    base = bench.load(direct, small, connections=64, seconds=seconds, rate=1000)
    results["p50 us at 1,000/s"] = paced.p50_us
    results["p50 us added at 1,000/s"] = paced.p50_us - base.p50_us
    results["p99 us at 1,000/s"] = paced.p99_us

    before = cpu_s(side.pid)
    streams = bench.load(side, stream, connections=100, seconds=seconds)
    results["CPU us per chunk"] = (cpu_s(side.pid) - before) / streams.events * 1e6

    before = cpu_s(side.pid)
    heavy = bench.load(side, large, connections=1, seconds=seconds)
    results["2 MB body: p50 us"] = heavy.p50_us
    results["2 MB body: CPU us"] = (cpu_s(side.pid) - before) / heavy.requests * 1e6
    light = bench.load(side, small, connections=1, seconds=1)
    results["2 MB body: p50 us over a small one"] = heavy.p50_us - light.p50_us
    alone = bench.load(direct, large, connections=1, seconds=1).p50_us
    alone -= bench.load(direct, small, connections=1, seconds=1).p50_us
    results["2 MB body: p50 us over a small one, added"] = results["2 MB body: p50 us over a small one"] - alone
    errors = busy.errors + paced.errors + streams.errors + heavy.errors
    results["errors"] = errors
    return results


def show(results: dict[str, list[dict[str, float]]]) -> None:
    names = list(results)
    print(f"{'':45}" + "".join(f"{name:>12}{'':>18}" for name in names))
    for metric in results[names[0]][0]:
        line = f"{metric:45}"
        for name in names:
            values = [one[metric] for one in results[name]]
            line += f"{statistics.median(values):12,.1f}"
            if name != "nginx" and "nginx" in results:
                pairs = zip(values, (one[metric] for one in results["nginx"]), strict=True)
                ratios = [own / other for own, other in pairs if other]
                line += (
                    f"  x{statistics.median(ratios):5.2f} {min(ratios):4.2f}-{max(ratios):4.2f}" if ratios else " " * 18
                )
            else:
                line += " " * 18
        print(line.rstrip())


def endure(bench: Bench, sides: list[Side], requests: int) -> None:
    """Memory over many requests."""
    for side in sides:
        if side.name in ("nginx", "litellm"):
            continue
        small = bench.request(side, "small", messages=messages(800), max_tokens=100)
        sizes = []
        for _ in range(10):
            bench.run(side, 64, 3600, 0, small, requests // 10)
            sizes.append(memory_mb(side.pid))
        print(
            f"{side.name}: resident MB after each tenth of {requests:,} requests: "
            + " ".join(f"{s:.1f}" for s in sizes)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--endure", type=int, default=0, metavar="REQUESTS", help="also watch memory over so many")
    parser.add_argument("--only", default="nginx,bare,governed", help="which sides; also litellm")
    chosen = parser.parse_args()
    if shutil.which("gcc") is None:
        parser.exit(1, "gcc is needed: apt-get install gcc\n")
    wanted = chosen.only.split(",")
    if "nginx" in wanted and shutil.which("nginx") is None:
        print("nginx is not installed (apt-get install nginx-light): measuring without it", file=sys.stderr)
        wanted.remove("nginx")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 3:
        print("fewer than three cores: the numbers include those of mock and load generator", file=sys.stderr)
    with (
        contextlib.ExitStack() as stack,
        machine_to_itself(Path(tempfile.gettempdir()) / "gateway-bench.lock"),
    ):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        build(folder)
        port = stack.enter_context(mock(folder, cores[-1]))
        bench = Bench(folder, port, cores[0], cores[1 % len(cores)])
        sides = []
        if "nginx" in wanted:
            sides.append(stack.enter_context(nginx(bench)))
        own = [name for name in ("bare", "governed") if name in wanted]
        sides += [stack.enter_context(gateway(bench, name, governed=name == "governed")) for name in own]
        if "litellm" in wanted:
            sides.append(stack.enter_context(litellm(bench)))
        results: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
        for repetition in range(chosen.repetitions):
            for side in sides if repetition % 2 == 0 else reversed(sides):
                results[side.name].append(measured(bench, side, chosen.seconds))
        if chosen.repetitions:
            show(results)
        if chosen.endure:
            endure(bench, sides, chosen.endure)


if __name__ == "__main__":
    main()
