"""Passwords: hashed with care, off the loop, and not by too many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import pytest
from argon2 import PasswordHasher, extract_parameters

from gateway.auth import passwords as module
from gateway.auth.passwords import Hashing, acceptable, normal
from gateway.errors import GatewayError

QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
PASSWORD = "correct horse battery"


def run(work: Callable[[Hashing], Awaitable[None]], hasher: PasswordHasher | None = QUICK) -> None:
    async def inside() -> None:
        hashing = Hashing(hasher)
        try:
            await work(hashing)
        finally:
            hashing.close()

    asyncio.run(inside())


def test_hashes_have_the_parameters_and_a_salt() -> None:
    async def work(hashing: Hashing) -> None:
        one, other = await hashing.hash(PASSWORD), await hashing.hash(PASSWORD)
        assert one != other
        found = extract_parameters(one)
        assert one.startswith("$argon2id$")
        assert (found.time_cost, found.memory_cost, found.parallelism) == (3, 65536, 1)
        assert (await hashing.verify(one, PASSWORD)).right
        assert not (await hashing.verify(one, PASSWORD + " ")).right

    run(work, None)


def test_an_outdated_hash_is_renewed() -> None:
    async def work(hashing: Hashing) -> None:
        old = PasswordHasher(time_cost=2, memory_cost=8, parallelism=1).hash(PASSWORD)
        assert await hashing.verify(old, "wrong") == module.Verdict(right=False)
        verdict = await hashing.verify(old, PASSWORD)
        assert verdict.right and verdict.renewed is not None
        assert await hashing.verify(verdict.renewed, PASSWORD) == module.Verdict(right=True)

    run(work)


@pytest.mark.parametrize("known", [None, "", "$argon2id$v=19$nonsense"])
def test_without_a_good_hash_nobody_is_right(known: str | None) -> None:
    async def work(hashing: Hashing) -> None:
        assert not (await hashing.verify(known, PASSWORD)).right

    run(work)


def test_somebody_unknown_costs_the_same_work() -> None:
    class Counting(PasswordHasher):
        work = 0

        def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
            self.work += 1
            return super().hash(password, salt=salt)

        def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:
            self.work += 1
            return super().verify(hash, password)

    hasher = Counting(time_cost=1, memory_cost=8, parallelism=1)

    async def work(hashing: Hashing) -> None:
        known = QUICK.hash(PASSWORD)
        await hashing.verify(known, "wrong")
        assert hasher.work == 1
        await hashing.verify(None, "wrong")
        assert hasher.work == 2

    run(work, hasher)


def test_too_many_at_once_are_told_so_and_room_comes_back() -> None:
    async def work(hashing: Hashing) -> None:
        asked = [asyncio.create_task(hashing.hash(PASSWORD)) for _ in range(module.THREADS + module.WAITING_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(GatewayError) as refused:
            await hashing.hash(PASSWORD)
        assert (refused.value.status, refused.value.code) == (503, "overloaded")
        for task in asked[1:]:
            task.cancel()
        await asyncio.wait(asked)
        for _ in iter(lambda: hashing._waiting, 0):
            await asyncio.sleep(0)
        assert await hashing.hash(PASSWORD)

    run(work)


@pytest.mark.parametrize(
    "password",
    [
        "short",
        "a" * 300,
        "aaaaaaaaaaaaaaaa",
        "1212121212121212",
        "alice@example.test",
        "Alicealicealice1",
        "example-example-",
        "",
    ],
)
def test_easy_passwords_are_refused(password: str) -> None:
    with pytest.raises(GatewayError) as refused:
        acceptable(password, "alice@example.test", 12)
    assert refused.value.param == "password" and (password or "no") not in refused.value.message


def test_the_same_letters_are_the_same_password() -> None:
    assert acceptable("cafe\u0301 au lait bien", "a@b.test", 12) == normal("caf\u00e9 au lait bien")
