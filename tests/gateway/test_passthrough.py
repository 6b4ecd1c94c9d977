from __future__ import annotations

import pytest
from msgspec.structs import replace

from adapters.passthrough import Outgoing
from gateway.auth import Principal
from gateway.catalog import Catalog, Target
from gateway.config_guardrails import GuardrailConfig
from gateway.errors import GatewayError
from gateway.guardrails.pii import pii
from gateway.guardrails.rules import Guardrails, Rule
from gateway.metering import Metering
from gateway.passthrough import PassThrough
from gateway.telemetry import Telemetry
from tests.adapters.provider import remote, reply
from tests.adapters.upstream import answering, run
from tests.fakes import Scripted

PRINCIPAL = Principal(tenant="t", key_id="k", name="n")


def outgoing(body: bytes, path: str = "chat") -> Outgoing:
    return Outgoing("POST", path, b"", (), body)


def test_keys_for_certain_models_pass_only_those() -> None:
    async def scenario() -> None:
        async with remote(answering(reply(b"{}"))) as (model, _):
            catalog = Catalog(
                [
                    Target("mine", Scripted(), prices={"p/gpt-4o": None}),
                    Target("other", Scripted(), prices={"p/gpt-5": None}),
                ]
            )
            passthrough = PassThrough({"p": model}, catalog, Metering())
            held = replace(PRINCIPAL, models=(("mine",),))
            for body in (b'{"model":"gpt-5"}', b'{"model":"mine"}', b"{}", b"", b"[1]", b'{"model":5}'):
                with pytest.raises(GatewayError) as caught:
                    await passthrough.open(held, "p", outgoing(body), "r")
                assert caught.value.code == "permission_denied"
            with pytest.raises(GatewayError):
                elsewhere = outgoing(b'{"model":"gpt-4o"}', "deployments/gpt-5/chat/completions")
                await passthrough.open(held, "p", elsewhere, "r")
            there = await passthrough.open(held, "p", outgoing(b"{}", "deployments/gpt-4o/chat/completions"), "r")
            await there.exchange.drop()
            for principal, body in ((held, b'{"model":"gpt-4o"}'), (PRINCIPAL, b"{}")):
                passage = await passthrough.open(principal, "p", outgoing(body), "r")
                await passage.exchange.drop()

    run(scenario())


def test_where_guardrails_are_enforced_nothing_passes_unseen() -> None:
    async def scenario() -> None:
        async with remote(answering(reply(b"{}"))) as (model, _):
            for action in ("block", "mask", "log"):
                config = GuardrailConfig(name="g", kind="pii", action=action)
                guardrails = Guardrails([Rule(config, pii(("email",)))], Telemetry("0"))
                passthrough = PassThrough({"p": model}, Catalog(()), Metering(), guardrails)
                given = replace(PRINCIPAL, guardrails=("g",))
                for principal in (PRINCIPAL, given):
                    opening = passthrough.open(principal, "p", outgoing(b"{}"), "r")
                    if principal is given and action != "log":
                        with pytest.raises(GatewayError) as caught:
                            await opening
                        assert caught.value.code == "permission_denied"
                    else:
                        await (await opening).exchange.drop()

    run(scenario())


def test_only_open_providers_are_there() -> None:
    async def scenario() -> None:
        with pytest.raises(GatewayError) as caught:
            await PassThrough({}, Catalog(()), Metering()).open(PRINCIPAL, "p", outgoing(b"{}"), "r")
        assert caught.value.code == "not_found"

    run(scenario())
