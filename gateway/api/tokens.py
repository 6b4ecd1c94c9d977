"""The tokeniser and the chat template of a model, asked over HTTP."""

from __future__ import annotations

from starlette.requests import Request

from adapters.dialects import llama_server as dialect
from adapters.types import ChatRequest, TokenCount
from gateway.api.http import Doc, Endpoint, Response, json_response, read_json_body, run_until_disconnect
from gateway.api.openai.generation import count_headers
from gateway.api.shapes import COUNT, TEXT, many, thing
from gateway.inference import Inference


class Tokens:
    """Texts as tokens and back, conversations as prompts, and how long either is."""

    def __init__(self, inference: Inference, body_bytes_max: int) -> None:
        self._inference = inference
        self._body_bytes_max = body_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Each also under the name without `/v1` that llama-server gives it."""
        tokens = Doc("tokens", body=dialect.TokenizeBody, answer=thing(tokens=many(COUNT)))
        text = Doc("tokens", body=dialect.DetokenizeBody, answer=thing(content=TEXT))
        prompt = Doc("tokens", body=dialect.ConversationBody, answer=thing(prompt=TEXT))
        number = Doc("tokens", body=dialect.CountBody, answer=thing(object=TEXT, input_tokens=COUNT))
        rows = (
            ("/tokenize", self.tokenize, "The token ids of a text", tokens),
            ("/detokenize", self.detokenize, "The text of token ids", text),
            ("/apply-template", self.apply_template, "The prompt a conversation becomes", prompt),
        )
        counting = "How many tokens a conversation or text has"
        return (
            Endpoint("/v1/count_tokens", "POST", self.count, "inference", counting, number),
            *(
                Endpoint(prefix + path, "POST", handler, "inference", summary, doc)
                for path, handler, summary, doc in rows
                for prefix in ("/v1", "")
            ),
        )

    async def _body(self, request: Request) -> bytes:
        return await read_json_body(request, self._body_bytes_max)

    async def tokenize(self, request: Request) -> Response:
        asked = dialect.parse_tokenize(await self._body(request))
        work = self._inference.tokenize(request.state.principal, asked.model, asked.text, special=asked.special)
        return json_response(dialect.render_tokens(await run_until_disconnect(request, work)))

    async def detokenize(self, request: Request) -> Response:
        asked = dialect.parse_detokenize(await self._body(request))
        work = self._inference.detokenize(request.state.principal, asked.model, asked.tokens)
        return json_response(dialect.render_content(await run_until_disconnect(request, work)))

    async def apply_template(self, request: Request) -> Response:
        asked = dialect.parse_conversation(await self._body(request))
        work = self._inference.apply_template(request.state.principal, asked)
        prompt, _ = await run_until_disconnect(request, work)
        return json_response(dialect.render_prompt(prompt))

    async def count(self, request: Request) -> Response:
        asked = dialect.parse_count(await self._body(request))
        count = await run_until_disconnect(request, self._count(request, asked))
        return json_response(dialect.render_count(count.tokens), headers=count_headers(count))

    async def _count(self, request: Request, asked: ChatRequest | dialect.TextInput) -> TokenCount:
        principal = request.state.principal
        if isinstance(asked, ChatRequest):
            return await self._inference.count_tokens(principal, asked)
        return TokenCount(
            len(await self._inference.tokenize(principal, asked.model, asked.text, special=asked.special))
        )
