"""What goes out on a client's connection, and in which pieces."""

from __future__ import annotations

import asyncio

from adapters.bursts import Burst, Writing
from gateway.api.gate import WAITING_BYTES_MAX, Gate


class Wire(asyncio.Transport):
    """Remembers what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed


class Waiting(Burst):
    """Nothing goes out before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go: list[Writing] = []

    def first(self) -> bool:
        return False

    def wait(self, writing: Writing) -> None:
        self.go.append(writing)


def opened() -> tuple[Gate, Wire, Waiting]:
    wire, waiting = Wire(), Waiting()
    return Gate(wire, lambda: None, waiting), wire, waiting


class Free(Burst):
    """Whoever writes is the first."""

    def first(self) -> bool:
        return True


def test_the_first_write_of_a_moment_goes_out_at_once_while_the_connection_is_open() -> None:
    wire = Wire()
    gate = Gate(wire, lambda: None, Free())
    gate.write(b"token")
    wire.closed = True
    gate.write(b"late")
    assert wire.written == [b"token"]


def test_the_pieces_of_a_moment_are_one_write() -> None:
    gate, wire, waiting = opened()
    gate.write(b"head")
    gate.write(b"body")
    assert wire.written == [] and len(waiting.go) == 1
    waiting.go[0].flush()
    assert wire.written == [b"headbody"]
    gate.write(b"more")
    assert len(waiting.go) == 2


def test_much_does_not_wait_so_that_the_transport_can_say_stop() -> None:
    gate, wire, waiting = opened()
    gate.write(b"head")
    gate.write(bytes(WAITING_BYTES_MAX))
    assert wire.written == [b"head" + bytes(WAITING_BYTES_MAX)]
    waiting.go[0].flush()
    assert len(wire.written) == 1


def test_what_waits_when_the_connection_closes_goes_nowhere() -> None:
    gate, wire, waiting = opened()
    gate.write(b"late")
    wire.closed = True
    waiting.go[0].flush()
    assert wire.written == [] and gate.is_closing()
