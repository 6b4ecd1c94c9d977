import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.llama_cpp.text import TextAssembler


def assemble(pieces: list[bytes], stop: tuple[str, ...]) -> tuple[str, bool]:
    assembler = TextAssembler(stop)
    shown = [assembler.push(piece) for piece in pieces]
    return "".join(shown) + assembler.finish(), assembler.stopped


def naive(data: bytes, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Decodes all, then cuts at the stop string that was complete first (at a tie, the longest)."""
    text = data.decode("utf-8", "replace")
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stop if s and text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


def test_plain_text_passes_at_once() -> None:
    assembler = TextAssembler()
    assert [assembler.push(piece) for piece in (b"Hello", b"", b" world")] == ["Hello", "", " world"]
    assert assembler.finish() == ""
    assert not assembler.stopped and assembler.stopped_by is None


def test_which_stop_string_it_was() -> None:
    assembler = TextAssembler(("x", "lo w", "o"))
    assert "".join(assembler.push(piece) for piece in (b"Hel", b"lo", b" world")) == "Hell"
    assert assembler.stopped_by == "o"


def test_an_incomplete_character_is_held_back() -> None:
    assembler = TextAssembler()
    assert [assembler.push(bytes([byte])) for byte in "a€😀".encode()] == ["a", "", "", "€", "", "", "", "😀"]
    assert assembler.push(b"\xe2\x82") == ""
    assert assembler.finish() == "\ufffd"


@pytest.mark.parametrize(
    "data", [b"\xff", b"\xc3(", b"\xe2\x82(", b"\xed\xa0\x80", b"\xf0\x90\x80", b"\x80\x80a", b"\xf8\x88\x80"]
)
def test_invalid_bytes_become_what_python_makes_of_the_whole(data: bytes) -> None:
    for split in range(len(data) + 1):
        assert assemble([data[:split], data[split:]], ())[0] == data.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one\n\ntwo", ("\n\n",), "one"),
        ("aab", ("aab",), ""),
        ("aaab", ("aab",), "a"),
        ("abab", ("abc",), "abab"),
        ("xabcd", ("abcd", "bc"), "xa"),
        ("xabc", ("bc", "abc"), "x"),
        ("xSTO", ("STOP",), "xSTO"),
        ("a😀b", ("😀",), "a"),
        ("text", ("", "t"), ""),
        ("text", ("",), "text"),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], shown: str) -> None:
    for pieces in ([text.encode()], [bytes([byte]) for byte in text.encode()]):
        assert assemble(pieces, stop) == (shown, shown != text)


def test_only_what_a_stop_string_could_begin_with_is_held_back() -> None:
    assembler = TextAssembler(("</end>", "<stop>"))
    pushes = [(b"a <", "a "), (b"b", "<b"), (b" <st", " "), (b"op", ""), (b"<", "<stop"), (b"/end>x", "")]
    assert [assembler.push(piece) for piece, _ in pushes] == [shown for _, shown in pushes]
    assert assembler.stopped
    assert assembler.push(b"more") == ""
    assert assembler.finish() == ""


def test_a_replacement_character_from_the_end_can_complete_a_stop_string() -> None:
    assembler = TextAssembler(("a\ufffd",))
    assert assembler.push(b"xa\xe2") == "x"
    assert assembler.finish() == ""
    assert assembler.stopped


def test_what_is_kept_does_not_grow_with_the_output() -> None:
    assembler = TextAssembler(("aaaab",))
    shown = [assembler.push(b"aaa") for _ in range(1000)]
    assert sum(map(len, shown)) == 3000 - 4
    assert assembler.finish() == "aaaa"


ALPHABET = "ab€\ufffd😀"
STOPS = st.lists(st.text(ALPHABET, max_size=4), max_size=3).map(tuple)
TEXTS = st.text(ALPHABET, max_size=24).map(str.encode)
PIECES = st.lists(TEXTS | st.binary(max_size=5), max_size=8)


@given(PIECES, STOPS, st.data())
def test_any_split_gives_what_the_whole_gives(parts: list[bytes], stop: tuple[str, ...], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert assemble(pieces, stop) == naive(whole, stop)
    assert assemble([bytes([byte]) for byte in whole], stop) == naive(whole, stop)
