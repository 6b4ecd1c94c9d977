"""Whose sessions are seen and changed, and which one a name means."""

from __future__ import annotations

import asyncio

import pytest

from adapters.errors import InvalidRequest, ModelLoading
from adapters.types import SessionInfo
from gateway.auth import Principal
from gateway.catalog import Catalog, Target
from gateway.errors import GatewayError
from gateway.sessions import EVERYBODY, Selection, Session, Sessions
from tests.fakes import Scripted, session

ALICE = Principal(tenant="alice", key_id="k", name="n")
ADMIN = Principal(tenant="root", key_id="k", name="n", admin=True)
MINE = session("1", "talk", tenant="alice", created_us=1_000_000)
KEYLESS = session("2", None, tenant="alice", created_us=3_000_000)
THEIRS = session("3", "talk", tenant="bob", created_us=2_000_000)
OTHER_MODEL = session("4", "talk", tenant="alice", created_us=2_000_000)
OWN = Selection()
SLASHED = session("5", "a/b", tenant="alice", created_us=1_000_000)


class Bench:
    """Two models, the second of which also has an adapter with a name of its own."""

    def __init__(self) -> None:
        self.one, self.two = Scripted(), Scripted()
        self.one.sessions = {one.id: one for one in (MINE, KEYLESS, THEIRS)}
        self.two.sessions = {one.id: one for one in (OTHER_MODEL, SLASHED)}
        targets = [
            Target("one", self.one),
            Target("two", self.two),
            Target("two-lora", self.two, lora="l", parent="two"),
        ]
        self.sessions = Sessions(Catalog(targets))

    def kept(self, principal: Principal, where: Selection = OWN) -> list[tuple[str, str]]:
        listing = asyncio.run(self.sessions.kept(principal, where))
        return [(one.model, one.info.id) for one in listing.sessions]

    def find(self, principal: Principal, name: str, where: Selection = OWN) -> SessionInfo:
        return asyncio.run(self.sessions.find(principal, name, where)).info


def test_a_tenant_sees_its_own_the_youngest_first() -> None:
    bench = Bench()
    assert bench.kept(ALICE) == [("one", "2"), ("two", "4"), ("one", "1"), ("two", "5")]
    assert bench.kept(ALICE, Selection(model="two")) == [("two", "4"), ("two", "5")]
    assert bench.kept(ALICE, Selection(model="two-lora")) == [("two-lora", "4"), ("two-lora", "5")]
    assert bench.kept(ALICE, Selection(tenant="alice", model="one")) == [("one", "2"), ("one", "1")]


def test_only_an_administrator_sees_others() -> None:
    bench = Bench()
    assert bench.kept(ADMIN) == []
    assert bench.kept(ADMIN, Selection(tenant="bob")) == [("one", "3")]
    assert len(bench.kept(ADMIN, Selection(tenant=EVERYBODY))) == 5
    for tenant in ("bob", EVERYBODY):
        with pytest.raises(GatewayError) as caught:
            bench.kept(ALICE, Selection(tenant=tenant))
        assert (caught.value.status, caught.value.param) == (403, "tenant")


def test_a_name_is_a_key_or_an_id() -> None:
    bench = Bench()
    assert bench.find(ALICE, "talk", Selection(model="one")) == MINE
    assert bench.find(ALICE, "2") == KEYLESS
    assert bench.find(ALICE, "a/b") == SLASHED
    assert bench.find(ADMIN, "3", Selection(tenant=EVERYBODY)) == THEIRS


@pytest.mark.parametrize(
    ("principal", "where", "param"), [(ALICE, Selection(), "model"), (ADMIN, Selection("one", EVERYBODY), "tenant")]
)
def test_a_key_that_means_several_sessions_is_not_guessed(principal: Principal, where: Selection, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Bench().find(principal, "talk", where)
    assert caught.value.param == param


def test_another_tenants_session_looks_like_none() -> None:
    bench = Bench()
    for name in ("3", "nothing"):
        with pytest.raises(GatewayError) as caught:
            bench.find(ALICE, name)
        assert (caught.value.status, caught.value.message) == (404, "There is no such session.")
        with pytest.raises(GatewayError):
            asyncio.run(bench.sessions.change(ALICE, name, Selection(), "delete"))
    assert "3" in bench.one.sessions


def test_a_change_goes_to_the_session_and_its_model() -> None:
    bench = Bench()

    def change(*more: str) -> Session:
        return asyncio.run(bench.sessions.change(ALICE, "a/b", Selection(), *more))  # type: ignore[arg-type]

    assert change("pin").info.pinned
    assert (change("fork", "copy").model, bench.two.sessions["5_fork"].key) == ("two", "copy")
    for taken in ("copy", "talk"):
        with pytest.raises(InvalidRequest) as caught:
            change("fork", taken)
        assert caught.value.param == "new_id"
    assert change("delete").info.id == "5"
    assert set(bench.two.sessions) == {"4", "5_fork"}
    assert set(bench.one.sessions) == {"1", "2", "3"}


def test_a_model_that_is_away_is_named_or_asked_to_come_back() -> None:
    bench = Bench()
    bench.one.absence = ModelLoading("loading", retry_after_s=2)
    listing = asyncio.run(bench.sessions.kept(ALICE, Selection()))
    assert ([one.info.id for one in listing.sessions], listing.unavailable) == (["4", "5"], ["one"])
    assert bench.find(ALICE, "5") == SLASHED
    for where, name in ((Selection("one"), "talk"), (Selection(), "2")):
        with pytest.raises(ModelLoading):
            bench.find(ALICE, name, where)
    with pytest.raises(ModelLoading):
        bench.kept(ALICE, Selection("one"))
