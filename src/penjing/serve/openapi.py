"""The API in OpenAPI 3.1, made from the very types that requests are read by."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from penjing import __version__
from penjing.serve.requests import Chat, Completion, Embedding

_ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "A key is needed.",
    "403": "Not from there.",
    "404": "Another model is served.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "Too many requests, or a budget is spent; `Retry-After` says when to come again.",
    "500": "The engine failed.",
    "503": "The engine is not up.",
}
_POSTS = {
    "/v1/chat/completions": (Chat, "Answer a conversation"),
    "/v1/completions": (Completion, "Continue a text"),
    "/v1/embeddings": (Embedding, "Vectors of texts, where the model gives them"),
}
_GETS = {
    "/v1/models": "The model that is served",
    "/health": "Whether the engine is up",
    "/metrics": "Figures for Prometheus",
    "/state.json": "Machine, model and plan, as the page shows them",
    "/live.json": "Load and speeds, as the page shows them",
}


@functools.cache
def description() -> dict[str, Any]:
    """The document that `/openapi.json` gives."""
    kinds = [kind for kind, _ in _POSTS.values()]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {path: {"get": _get(text)} for path, text in _GETS.items()}
    for (path, (_, text)), schema in zip(_POSTS.items(), schemas, strict=True):
        paths[path] = {"post": _post(text, schema)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "penjing", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _post(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    answer = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
    return {
        "summary": text,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "The answer.", "content": answer}, **_refusals(_ERRORS)},
    }


def _get(text: str) -> dict[str, Any]:
    return {
        "summary": text,
        "responses": {
            "200": {"description": text},
            **_refusals({k: _ERRORS[k] for k in ("401", "403")}),
            "503": {"description": _ERRORS["503"]},
        },
    }


def _refusals(errors: dict[str, str]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": text, "content": content} for status, text in errors.items()}
