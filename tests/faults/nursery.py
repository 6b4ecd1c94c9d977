"""Real worker processes that begin in milliseconds, for those who need thousands: forked from one that has everything
imported, each with limits of its own.

`argv` is the command of such a worker, for whoever would else start `adapters.llama_cpp.worker`. The process it starts
hands its descriptors over, and ends as the worker ends.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from adapters.llama_cpp.process import worker_environment

ADDRESS_BYTES_MAX = 4 << 30
CPU_S_MAX = 30
STATUS = struct.Struct("<i")

STAND_IN = """
import os, resource, signal, socket, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
nursery = socket.socket(socket.AF_UNIX)
nursery.connect(sys.argv[1])
socket.send_fds(nursery, [b"0"], [int(sys.argv[2]), 2])
os.close(int(sys.argv[2]))
status = int.from_bytes(nursery.recv(4), "little", signed=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def start(path: Path) -> subprocess.Popen[bytes]:
    """A process that forks workers for whoever connects to `path`."""
    command = [sys.executable, "-P", "-m", "tests.faults.nursery", str(path)]
    return subprocess.Popen(command, env=worker_environment(os.environ))


def argv(path: Path) -> tuple[str, ...]:
    """What starts a worker there."""
    return sys.executable, "-I", "-S", "-c", STAND_IN, str(path)


def _be_worker(descriptor: int, stderr: int) -> NoReturn:
    from adapters.llama_cpp import worker

    code = 1
    try:
        os.dup2(stderr, 2)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES_MAX, ADDRESS_BYTES_MAX))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S_MAX, CPU_S_MAX))
        worker.main(descriptor)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve(path: Path) -> None:
    """Fork for whoever connects, until somebody ends this process."""
    import adapters.llama_cpp.worker  # noqa: F401  # What the forks are to have already.

    listener, waiting = socket.socket(socket.AF_UNIX), selectors.DefaultSelector()
    listener.bind(str(path))
    listener.listen(64)
    waiting.register(listener, selectors.EVENT_READ)
    while True:
        # One at a time: what is done about one end of a worker takes the other one away.
        for key, _ in waiting.select()[:1]:
            if key.fileobj is listener:
                _begin(listener.accept()[0], waiting)
            elif isinstance(key.fileobj, socket.socket):
                # Whoever asked for it is gone.
                waiting.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)
            else:
                connection, pid = key.data
                waiting.unregister(key.fd)
                os.close(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if connection in waiting.get_map():
                    waiting.unregister(connection)
                    # Its stand-in may just have been killed.
                    with suppress(OSError):
                        connection.send(STATUS.pack(code), socket.MSG_NOSIGNAL)
                connection.close()


def _begin(connection: socket.socket, waiting: selectors.DefaultSelector) -> None:
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
    if len(descriptors) == 2:
        pid = os.fork()
        if pid == 0:
            connection.close()
            _be_worker(*descriptors)
        waiting.register(connection, selectors.EVENT_READ, pid)
        waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (connection, pid))
    for descriptor in descriptors:
        os.close(descriptor)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
