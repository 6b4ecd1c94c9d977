"""Who was let in with a key a moment ago, and is taken for the same without looking at the key again."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from gateway.auth.keys import ADMIN
from tests.gateway.auth.test_keys import World, with_keys


def test_who_was_let_in_is_recognised_while_nothing_has_changed(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        keys, clock = world.keys, world.clock
        assert not keys.recognises(ADMIN)
        expires_us = clock.wall_us() + 7_000_000
        _, text = await world.create("laptop", expires_us=expires_us)
        principal = await world.authenticate(text)
        assert keys.recognises(principal) and not keys.recognises(replace(principal)), "the same is the same object"
        clock.seconds += 5
        assert not keys.recognises(principal), "what is known of it is too old"
        again = await world.authenticate(text)
        assert keys.recognises(again) and not keys.recognises(principal)
        clock.seconds += 2
        assert not keys.recognises(again), "it has expired"
        _, text = await world.create("phone")
        principal = await world.authenticate(text)
        await world.ring.revoke(ADMIN, principal.key_id)
        assert not keys.recognises(principal)

    with_keys(tmp_path, work)
