"""The paths of the server."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from penjing.serve.desk import Desk, Endpoint
from penjing.serve.openapi import description
from penjing.serve.problems import Problem
from penjing.serve.requests import Chat, Completion, Embedding

_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "draw.js": "text/javascript; charset=utf-8",
}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_KINDS: dict[str, type[Chat] | type[Completion] | type[Embedding]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completion,
    "/v1/embeddings": Embedding,
}


def application(
    desk: Desk, still: Callable[[], dict[str, Any]], live: Callable[[], dict[str, Any]]
) -> Starlette:
    """`still` and `live` give what the page shows: what changes with a plan, and what changes all the time."""

    async def models(_: Request) -> Response:
        return _json({"object": "list", "data": [_model(desk)]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != desk.limits.model:
            raise Problem(404, f"`{request.path_params['name']}` is not served here", code="model_not_found")
        return _json(_model(desk))

    async def health(_: Request) -> Response:
        up = desk.keeper.state == "up"
        return _json({"status": "ok" if up else desk.keeper.state}, 200 if up else 503)

    async def metrics(_: Request) -> Response:
        live()
        return Response(desk.metrics.exposition(), media_type=_METRICS_TYPE)

    return Starlette(
        routes=[
            *(Route(path, Endpoint(desk, kind, path), methods=["POST"]) for path, kind in _KINDS.items()),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", _document(description)),
            Route("/state.json", _document(still)),
            Route("/live.json", _document(live)),
            Route("/", _page),
            Route("/page/{name}", _page),
        ],
        exception_handlers={HTTPException: _unknown, Problem: _problem},
    )


def _model(desk: Desk) -> dict[str, Any]:
    return {"id": desk.limits.model, "object": "model", "created": 0, "owned_by": "penjing"}


def _json(value: object, status: int = 200) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, status, {"cache-control": "no-store"}, "application/json")


@functools.cache
def _page_bytes(name: str) -> bytes:
    return files("penjing").joinpath(f"serve/page/{name}").read_bytes()


def _document(make: Callable[[], object]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return _json(make())

    return answer


async def _page(request: Request) -> Response:
    """A file of the page, by a name of the list: no path of a request reaches the disk."""
    name = request.path_params.get("name", "index.html")
    if name not in _PAGE:
        raise Problem(404, "there is no such page")
    return Response(_page_bytes(name), headers={"cache-control": "no-cache"}, media_type=_PAGE[name])


async def _problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return Response(problem.body, problem.status, problem.headers)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.scope['path'][:200]}: {error.detail}"
    found = Problem(error.status_code, text)
    return Response(found.body, found.status, {**found.headers, **(error.headers or {})})
