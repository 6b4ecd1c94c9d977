"""Requests in a provider's own API: whether they may be sent, what they may use, and what they did.

They are held and settled like others. What a request costs is known when its path, or else its body, names a model
that a route leads to, which lends its price; its usage is what the answer reports in any dialect, and counted where it
reports none.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.estimates import BYTES_PER_TOKEN
from adapters.passthrough import Exchange, Outgoing
from adapters.remote import Remote
from adapters.types import CompletionRequest, Generation, Served, Usage
from gateway import errors
from gateway.auth import Principal
from gateway.catalog import Catalog, Target
from gateway.guardrails.rules import Guardrails
from gateway.metering import Meter, Metering, durable


class _Body(msgspec.Struct):
    """What is looked at of a body in JSON, by its names in any dialect."""

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None


_decoder = msgspec.json.Decoder(_Body)


class Passage:
    """One request on its way. It ends once, by a plain call that a cancelled task can still make."""

    def __init__(self, exchange: Exchange, meter: Meter | None, sent_bytes: int) -> None:
        self.exchange = exchange
        self.meter = meter
        self._sent_bytes = sent_bytes

    def end(self, outcome: str) -> None:
        """Settle what was used. A request that the provider refused costs nothing."""
        if self.meter is None:
            return
        exchange = self.exchange
        reported, usage = exchange.usage, None
        if 200 <= exchange.status < 300 and exchange.received_bytes:
            counted = Usage(self._sent_bytes // BYTES_PER_TOKEN, exchange.received_bytes // BYTES_PER_TOKEN)
            usage = reported or counted
        self.meter.end(outcome, usage, estimated=reported is None)

    async def settled(self) -> None:
        """Wait until what was used is durable."""
        if self.meter is not None:
            await durable(self.meter)


class PassThrough:
    """`providers` are those that are open for this, by name, each as a model of all that it has."""

    def __init__(
        self,
        providers: Mapping[str, Remote],
        catalog: Catalog,
        metering: Metering,
        guardrails: Guardrails | None = None,
    ) -> None:
        self._providers = providers
        self._catalog = catalog
        self._metering = metering
        self._guardrails = guardrails

    async def open(self, principal: Principal, provider: str, outgoing: Outgoing, request_id: str) -> Passage:
        """Send a request on; raises what the client has to be told when it may not be sent, or came to nothing."""
        remote = self._providers.get(provider)
        if remote is None:
            raise errors.error("not_found", "There is no such provider, or it is not open for requests of its own API.")
        asked = _read(outgoing.body)
        asked.model = outgoing.model or asked.model
        identity = f"{provider}/{asked.model}"
        target = self._target(principal, remote, identity)
        if self._guardrails is not None and self._guardrails.enforced(principal, target):
            message = "Guardrails apply to you, and requests of a provider's own API cannot be looked at."
            raise errors.error("permission_denied", message)
        meter = None
        if outgoing.method == "POST":
            bound = asked.max_completion_tokens or asked.max_tokens or asked.max_output_tokens
            need = CompletionRequest(
                asked.model or "",
                (outgoing.body.decode("utf-8", "replace"),),
                generation=Generation(max_tokens=bound, n=min(max(asked.n or 1, 1), 128)),
            )
            meter = await self._metering.open(principal, target, request_id, "completion", need)
            meter.serve(Served(identity, provider, (asked.model or remote.model)[:200]))
        passage = Passage(Exchange(remote.upstream), meter, len(outgoing.body))
        try:
            await passage.exchange.open(outgoing)
        except BaseException:
            passage.end("upstream_error")
            raise
        if meter is not None:
            meter.show()
        return passage

    def _target(self, principal: Principal, remote: Remote, identity: str) -> Target:
        """What is recorded as used, with the price of a route to the same model.

        A principal that is held to certain models has to name one of them.
        """
        for target in self._catalog.list(principal):
            if target.leads_to(identity):
                return target
        if principal.models:
            message = "This key may only be used for certain models, and the request is for none of them."
            raise errors.error("permission_denied", message, param="model")
        return Target(remote.name, remote)


def _read(body: bytes) -> _Body:
    """What a body says of what it may cost; nothing when it is no JSON object."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Body()
