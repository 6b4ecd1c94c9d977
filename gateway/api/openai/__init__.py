"""The OpenAI endpoints."""

from __future__ import annotations

from gateway.api.http import Endpoint
from gateway.api.openai.chat import ChatCompletions
from gateway.api.openai.completions import Completions
from gateway.api.openai.embeddings import EmbeddingVectors
from gateway.api.openai.models import Models
from gateway.api.openai.responses import Responses
from gateway.api.remote_images import RemoteImages
from gateway.catalog import Catalog
from gateway.inference import Inference


def endpoints(
    inference: Inference, catalog: Catalog, images: RemoteImages, body_bytes_max: int
) -> tuple[Endpoint, ...]:
    """All of them."""
    return (
        *ChatCompletions(inference, images, body_bytes_max).endpoints(),
        *Responses(inference, images, body_bytes_max).endpoints(),
        *Completions(inference, body_bytes_max).endpoints(),
        *EmbeddingVectors(inference, catalog, body_bytes_max).endpoints(),
        *Models(catalog).endpoints(),
    )
