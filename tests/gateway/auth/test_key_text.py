"""The text of keys, and the pepper."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.auth.key_text import PepperError, key_id, load_pepper, new_key
from gateway.config import Secret


def test_the_text_of_a_key() -> None:
    identity, text = new_key()
    prefix, live, middle, secret, checksum = text.split("_")
    assert (prefix, live, middle, len(checksum)) == ("gw", "live", identity, 6)
    assert (len(identity), len(secret)) == (12, 43)
    assert key_id(text) == identity
    assert new_key()[1] != text


def test_every_single_typo_is_seen() -> None:
    _, text = new_key()
    for i, old in enumerate(text):
        for new in "0aZ_ é":
            if new != old:
                assert key_id(text[:i] + new + text[i + 1 :]) is None
    for wrong in (text[:-1], text + "0", text + "\n", " " + text, text.upper(), text[::-1], "", "gw_live___"):
        assert key_id(wrong) is None
    # Two neighbours exchanged, the commonest slip of a person who types.
    swapped = text[:10] + text[11] + text[10] + text[12:]
    assert swapped == text or key_id(swapped) is None


def test_the_pepper_is_made_once_and_private(tmp_path: Path) -> None:
    pepper = load_pepper(tmp_path)
    assert len(pepper) == 32
    assert load_pepper(tmp_path) == pepper
    assert [file.name for file in tmp_path.iterdir()] == ["pepper"]
    assert (tmp_path / "pepper").stat().st_mode & 0o777 == 0o600
    assert load_pepper(tmp_path, Secret("configured-pepper")) == b"configured-pepper"


@pytest.mark.parametrize("damage", ["", "abcd\n", "not hex at all", "é"])
def test_a_damaged_pepper_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "pepper").write_text(damage, encoding="utf-8")
    with pytest.raises(PepperError, match="pepper"):
        load_pepper(tmp_path)
