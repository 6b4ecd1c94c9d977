"""`/docs`: the OpenAPI document as a page on which requests can be tried: Swagger UI, from a package with its files.

Nothing comes from another host. The policy lets the page run only scripts of this server, so what a document or an
answer holds stays text.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request

from gateway import errors
from gateway.api.http import Doc, Endpoint, Response, respond
from gateway.auth.roles import PUBLIC

PACKAGE = "swagger_ui"
ASSETS: Mapping[str, str] = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
START = "start.js"
HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Inference gateway: API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
SCRIPT = b"""SwaggerUIBundle({
  url: "openapi.json", dom_id: "#page", deepLinking: true, docExpansion: "list", defaultModelsExpandDepth: 0,
  validatorUrl: null, displayRequestDuration: true, filter: true, tryItOutEnabled: true,
});
"""


class DocsPage:
    """The page, its script, and the files of Swagger UI. A key that is entered stays in the browser's memory."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        page = Doc("server", answer={"type": "string"}, media=("text/html",))
        file = Doc("server", answer={"type": "string"}, media=tuple(dict.fromkeys(ASSETS.values())))
        return (
            Endpoint("/docs", "GET", self.page, PUBLIC, "All of this as a page, to be tried", page),
            Endpoint("/docs/{name}", "GET", self.file, PUBLIC, "What that page is made of", file),
        )

    async def page(self, request: Request) -> Response:
        return respond(PAGE, "text/html; charset=utf-8", headers=HEADERS)

    async def file(self, request: Request) -> Response:
        name = request.path_params["name"]
        headers = {**HEADERS, "cache-control": "public, max-age=3600"}
        if name == START:
            return respond(SCRIPT, "text/javascript; charset=utf-8", headers=headers)
        if name not in ASSETS:
            raise errors.error("not_found", "There is no such file.")
        body = await asyncio.to_thread((_folder() / name).read_bytes)
        return respond(body, ASSETS[name], headers=headers)


def _folder() -> Path:
    """Where the package keeps the files, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise errors.error("not_found", "The page needs the package swagger-ui-py: pip install swagger-ui-py")
    return Path(spec.submodule_search_locations[0]) / "static"
