"""llama-server, built from the llama.cpp tree inside the source distribution of the installed llama-cpp-python.

So both sides of a comparison run the same engine code. Everything is kept in a cache folder: `$GATEWAY_BENCH_CACHE`, or
`~/.cache/gateway-bench`. The first build takes several minutes; later calls find it there.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from adapters import llama_cpp
from tests.bench.processes import ServerError, free_port, last_lines, server_process

CACHE_VARIABLE = "GATEWAY_BENCH_CACHE"

_PACKAGE = "llama-cpp-python"
_TREE = Path("vendor", "llama.cpp")
_OPTIONS = {
    # Like the Python package's own build: optimised for this machine, OpenMP, llamafile and repacking by default.
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "CMAKE_CXX_FLAGS": f"-include {Path(llama_cpp.__file__).with_name('compiling.h')}",
    # Nothing here speaks TLS or serves pages, and nothing may be fetched while building.
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
}


class BuildError(Exception):
    """A step on the way to llama-server failed; the message ends with its last output."""


def cache_dir() -> Path:
    """The folder for sources, builds and generated models; it is created."""
    path = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/gateway-bench").expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


def source_tree() -> Path:
    """The llama.cpp tree of the installed llama-cpp-python version, obtained through pip when it is not cached."""
    with _locked():
        return _source_tree()


def vocabulary(name: str) -> Path:
    """A vocabulary-only GGUF file that llama.cpp ships for its tests, such as `qwen2` or `llama-spm`."""
    return source_tree() / "models" / f"ggml-vocab-{name}.gguf"


def binary() -> Path:
    """The llama-server executable, built when it is not cached."""
    with _locked():
        tree = _source_tree()
        build = tree.parents[1] / "build-server"
        target = build / "bin" / "llama-server"
        if not target.exists():
            _build(tree, build)
        return target


@contextlib.contextmanager
def llama_server(
    model: Path,
    *,
    threads: int = 2,
    parallel: int = 4,
    ctx: int = 8192,
    cpus: Collection[int] | None = None,
    extra: Sequence[str] = (),
) -> Iterator[str]:
    """Serve `model` on a free loopback port while the block runs; yields the base URL, without a path.

    `ctx` cells are shared by `parallel` slots; `cpus` restricts the process to these cores.
    """
    port = free_port()
    command = [str(binary()), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--threads", str(threads), "--threads-batch", str(threads), "--offline"]
    command += ["--parallel", str(parallel), "--ctx-size", str(ctx), "--kv-unified", *extra]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "llama-server.log")
        with server_process(command, url + "/health", log, cpus) as process:
            yield url
            if process.poll() is not None:
                raise ServerError(f"llama-server ended with {process.returncode} while in use:\n{last_lines(log)}")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Two benches at once must not both build."""
    with (cache_dir() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _source_tree() -> Path:
    cache, name = cache_dir(), f"{_PACKAGE.replace('-', '_')}-{importlib.metadata.version(_PACKAGE)}"
    tree = cache / name / _TREE
    if tree.exists():
        return tree
    archive = cache / f"{name}.tar.gz"
    if not archive.exists():
        _download(archive)
    with tempfile.TemporaryDirectory(dir=cache) as folder, tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
        Path(folder, name).rename(cache / name)
    return tree


def _download(archive: Path) -> None:
    version = importlib.metadata.version(_PACKAGE)
    pip = [str(_tools() / "python"), "-m", "pip", "download", "--no-deps", "--no-binary", _PACKAGE]
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        _run([*pip, "--dest", folder, f"{_PACKAGE}=={version}"], f"downloading {_PACKAGE} {version}")
        next(Path(folder).glob("*.tar.gz")).rename(archive)


def _build(tree: Path, build: Path) -> None:
    cmake, ninja = _tool("cmake"), _tool("ninja")
    options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
    options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    _run([cmake, "-S", str(tree), "-B", str(build), *options], "configuring llama-server")
    jobs = max(1, len(os.sched_getaffinity(0)) - 1)
    _run(
        [cmake, "--build", str(build), "--target", "llama-server", "--parallel", str(jobs)],
        "building llama-server, which takes several minutes",
    )


def _tool(name: str) -> str:
    """The path of a build tool: the system's, else from the package of the same name."""
    if found := shutil.which(name):
        return found
    bin_dir = _tools()
    if not (bin_dir / name).exists():
        _run([str(bin_dir / "python"), "-m", "pip", "install", name], f"installing {name}")
    return str(bin_dir / name)


def _tools() -> Path:
    """The `bin` folder of a private virtual environment, because the one running this may have no pip."""
    folder = cache_dir() / "tools"
    if not (folder / "bin" / "python").exists():
        _run([sys.executable, "-m", "venv", str(folder)], "creating an environment for build tools")
    return folder / "bin"


def _run(command: Sequence[str], step: str) -> None:
    log = cache_dir() / "build.log"
    print(f"{step} (log: {log})", file=sys.stderr)
    with log.open("wb") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        raise BuildError(f"{step} failed with status {status}:\n{last_lines(log)}")
