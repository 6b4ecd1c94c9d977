"""The two servers of a comparison, on the same generated model, threads and cores."""

import contextlib
import hashlib
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from gateway.bench import Endpoint
from tests.bench.llama_server import cache_dir, llama_server, vocabulary
from tests.bench.processes import free_port, server_process
from tests.models import random_gguf, vocabularies


class BenchModel(msgspec.Struct, frozen=True):
    """A generated model: how it is written, and a range of token ids that are ordinary text."""

    write: Callable[[Path], Path]
    token_ids: range


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What both servers are started with; `context_tokens` cells are shared by `parallel` sequences. `engine` are more
    settings of the gateway's engine, as `name=value`, `llama` more arguments of llama-server."""

    model: Path
    threads: int
    cpus: frozenset[int]
    parallel: int
    context_tokens: int
    queue_depth: int = 64
    engine: tuple[str, ...] = ()
    llama: tuple[str, ...] = ()


Start = Callable[[Setup], AbstractContextManager[Endpoint]]


def bench_models() -> dict[str, BenchModel]:
    """The models benches run on, by name."""
    return {
        "0.5b": BenchModel(lambda path: random_gguf.qwen2_05b(path, vocabulary("qwen2")), range(1_000, 100_000)),
        "100m": BenchModel(lambda path: random_gguf.llama_100m(path, vocabulary("llama-spm")), range(1_000, 31_000)),
        "tiny": BenchModel(random_gguf.llama_tiny, range(300, 1_000)),
    }


def model_file(name: str) -> Path:
    """The file of a model from `bench_models`, generated when it or its generator is new."""
    sources = (Path(str(module.__file__)).read_bytes() for module in (random_gguf, vocabularies))
    version = hashlib.sha256(b"".join(sources)).hexdigest()[:12]
    path = cache_dir() / "models" / f"{name}-{version}.gguf"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        bench_models()[name].write(path)
    return path


@contextlib.contextmanager
def llama_endpoint(setup: Setup) -> Iterator[Endpoint]:
    """llama-server."""
    server = llama_server(
        setup.model,
        threads=setup.threads,
        parallel=setup.parallel,
        ctx=setup.context_tokens,
        cpus=setup.cpus,
        extra=setup.llama,
    )
    with server as url:
        yield Endpoint(url=url, model=_first_model(url))


@contextlib.contextmanager
def gateway_endpoint(setup: Setup) -> Iterator[Endpoint]:
    """The gateway of this source tree, with its workers on the same cores."""
    with tempfile.TemporaryDirectory() as folder, gateway_at(setup, Path(folder)) as endpoint:
        yield endpoint


@contextlib.contextmanager
def gateway_at(setup: Setup, folder: Path) -> Iterator[Endpoint]:
    """The gateway with its state in `folder`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config = folder / "config.yaml"
    config.write_text(gateway_config(setup))
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--port", str(port), "--no-auth"]
    command += ["--data-dir", str(folder / "data")]
    with server_process(command, url + "/v1/models", folder / "gateway.log", setup.cpus):
        yield Endpoint(url=url, model=_first_model(url))


def gateway_config(setup: Setup) -> str:
    """The gateway's configuration for `setup`."""
    more = "".join(f"      {name}: {value}\n" for name, _, value in (one.partition("=") for one in setup.engine))
    return f"""\
models:
  - name: bench
    path: {msgspec.json.encode(str(setup.model)).decode()}
    queue_depth_max: {setup.queue_depth}
    engine:
      threads: {setup.threads}
      parallel: {setup.parallel}
      context_tokens: {setup.context_tokens}
      cache_tokens: {setup.context_tokens}
{more}"""


STARTS: dict[str, Start] = {"gateway": gateway_endpoint, "llama-server": llama_endpoint}


def _first_model(url: str) -> str:
    class Model(msgspec.Struct):
        id: str

    class Models(msgspec.Struct):
        data: list[Model]

    with urllib.request.urlopen(url + "/v1/models", timeout=10) as response:
        return msgspec.json.decode(response.read(), type=Models).data[0].id
