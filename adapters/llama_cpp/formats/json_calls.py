"""Calls whose arguments are JSON: an object that holds the name too, or a name followed by an object."""

from __future__ import annotations

from adapters.llama_cpp.formats.reader import MalformedError, Reader, Reading, decode

NAME_KEYS = ("name", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters")


def read_object(reader: Reader) -> Reading[None]:
    """One object, or the next one of a list; announces the call as soon as it is certain."""
    name = arguments = None
    calls = reader.calls
    if (yield from reader.expect("[{")) == "[":
        yield from reader.expect("{")
    while True:
        key = yield from reader.string()
        yield from reader.expect(":")
        first = yield from reader.peek()
        if key in NAME_KEYS and name is None:
            name = yield from reader.string()
            reader.check(name)
            if arguments is not None:
                reader.announce(name, arguments)
        elif key in ARGUMENT_KEYS and arguments is None:
            if first != "{":
                raise MalformedError
            if name is not None:
                reader.announce(name)
                yield from reader.value(streamed=True)
                arguments = ""
            else:
                arguments = yield from reader.value()
                decode(arguments, dict)
        else:
            yield from reader.value()
        if (yield from reader.expect(",}")) == "}":
            break
    if name is None:
        raise MalformedError
    if reader.calls == calls:
        reader.announce(name, "{}")


def read_named(reader: Reader, middle: str) -> Reading[None]:
    """A name, `middle`, an object; or a list of objects, as older models of some families write."""
    if (yield from reader.peek()) in "[{":
        yield from read_object(reader)
        return
    name = yield from reader.name()
    reader.check(name)
    yield from reader.seek(middle)
    if (yield from reader.peek()) != "{":
        raise MalformedError
    reader.announce(name)
    yield from reader.value(streamed=True)
