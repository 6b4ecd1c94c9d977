"""`/v1/providers/{name}/{path}`: a provider's own API, with the gateway's key in the place of the caller's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from starlette.requests import Request

from adapters.aws import EVENT_STREAM
from adapters.errors import AdapterError
from adapters.passthrough import Outgoing
from gateway import errors
from gateway.api.http import (
    Endpoint,
    EventSource,
    EventStreamResponse,
    Response,
    read_body,
    respond,
    run_until_disconnect,
)
from gateway.api.openai.generation import meter_headers
from gateway.passthrough import Passage, PassThrough

# Whatever a provider answers, a browser runs nothing of it.
SANDBOX = {"content-security-policy": "sandbox", "x-content-type-options": "nosniff"}
PATH = "/v1/providers/{name}/{path:path}"


class OwnApis:
    """The providers' own routes; None: no provider is open."""

    def __init__(self, passthrough: PassThrough | None, body_bytes_max: int) -> None:
        self._passthrough = passthrough
        self._body_bytes_max = body_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(PATH, "POST", self.send, "passthrough", "A request in a provider's own API"),
            Endpoint(PATH, "GET", self.send, "passthrough", "A question in a provider's own API"),
        )

    async def send(self, request: Request) -> Response:
        body = await read_body(request, self._body_bytes_max)
        if request.method == "HEAD":
            raise errors.error("method_not_allowed", "Use GET or POST here.", headers={"allow": "GET, POST"})
        name, path = request.path_params["name"], request.path_params["path"]
        if self._passthrough is None or "\\" in path:
            raise errors.error("not_found", "There is nothing at this path.")
        given = tuple(request.headers.items())
        outgoing = Outgoing(request.method, path, request.scope["query_string"], given, body)
        opening = self._passthrough.open(request.state.principal, name, outgoing, request.state.request_id)
        passage = await run_until_disconnect(request, opening)
        request.state.log["provider"] = name
        headers = SANDBOX | passage.exchange.headers | {"x-gateway-provider": name}
        if passage.exchange.is_stream:
            kind = Messages if passage.exchange.is_binary else EventStreamResponse
            return kind(Events(passage), headers)
        try:
            answer = await run_until_disconnect(request, passage.exchange.body())
        except BaseException:
            passage.end("upstream_error")
            await passage.exchange.drop()
            raise
        passage.end("ok" if passage.exchange.status < 400 else "refused")
        await passage.settled()
        exchange = passage.exchange
        if passage.meter is not None:
            headers |= meter_headers(passage.meter)
        return respond(answer, exchange.content_type, exchange.status, headers)


class Messages(EventStreamResponse):
    """Streams Amazon's messages. After a failure of ours the connection is cut, which no reader takes for an end."""

    def __init__(self, events: EventSource, headers: Mapping[str, str]) -> None:
        super().__init__(events, headers)
        self.headers[0] = (b"content-type", EVENT_STREAM.encode())
        self._tells = False


class Events:
    """The events of a passage, which is settled before the last of them."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self._events = passage.exchange.events()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._relayed()

    async def _relayed(self) -> AsyncIterator[bytes]:
        held = b""
        try:
            async for frames in self._events:
                if held:
                    yield held
                held = frames
        except AdapterError as exc:
            self._passage.end(exc.code)
            raise
        self._passage.end("ok")
        await self._passage.settled()
        yield held

    async def aclose(self) -> None:
        self._passage.end("cancelled")
        await self._passage.exchange.drop()
