"""The server as an ASGI application.

>>> from polyvec import Embedder
>>> from polyvec.serve.app import create_app
>>> app = create_app({"all-MiniLM-L6-v2": Embedder.from_pretrained()})  # for uvicorn
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from polyvec import __version__
from polyvec.errors import InputError, MissingExtraError
from polyvec.index.store import Index
from polyvec.interfaces import TextEncoder
from polyvec.rerank.reranker import Reranker
from polyvec.serve.documents import DocumentedApp
from polyvec.serve.errors import AnswerError, answer_of
from polyvec.serve.guard import GONE, LOG, ClientGoneError, Guard
from polyvec.serve.indexes import ServedIndex
from polyvec.serve.metrics import Metrics
from polyvec.serve.models import ServedModel
from polyvec.serve.rerankers import ServedReranker
from polyvec.serve.routes import add_routes
from polyvec.serve.search_routes import add_search_routes
from polyvec.serve.server import Server
from polyvec.serve.settings import ServerSettings

try:
    from fastapi import FastAPI, Request, Response
    from fastapi.middleware.cors import CORSMiddleware
except ImportError:
    raise MissingExtraError("fastapi", "serve", "polyvec serve") from None


def create_app(
    models: Mapping[str, TextEncoder],
    settings: ServerSettings | None = None,
    *,
    indexes: Mapping[str, tuple[Index, TextEncoder]] | None = None,
    rerankers: Mapping[str, Reranker] | None = None,
) -> Guard:
    """An application that serves these embedders and rerankers by their names; an index stands
    beside the model that made it.

    Raises InputError without a model, or for a name of a model and a reranker.
    """
    if not models:
        raise InputError("a server needs a model")
    for name in rerankers or {}:
        if name in models:
            raise InputError(f"{name}: a model and a reranker of this name; write NAME=MODEL")
    settings = settings or ServerSettings()
    metrics = Metrics()
    created = int(time.time())
    served = {
        name: ServedModel(
            name,
            embedder,
            settings,
            metrics.on_batch(name),
            metrics.on_computed(name),
            created,
        )
        for name, embedder in models.items()
    }
    searched = {
        name: ServedIndex(name, index, embedder, settings.client_share)
        for name, (index, embedder) in (indexes or {}).items()
    }
    ranking = {
        name: ServedReranker(name, reranker, settings, metrics.on_batch(name), created)
        for name, reranker in (rerankers or {}).items()
    }
    server = Server(served, settings, metrics, searched, ranking)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm(server))
        yield
        warming.cancel()
        for model in server.served.values():
            model.close()
        for index in server.indexes.values():
            index.close()

    app = DocumentedApp(
        title="polyvec",
        version=__version__,
        description="Texts to vectors: OpenAI's embeddings, reranking, sparse vectors, tokens.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = server
    app.needs_key = bool(settings.api_keys)
    app.add_exception_handler(Exception, _answered)
    for kind in (AnswerError, InputError):
        app.add_exception_handler(kind, _answered)
    app.add_exception_handler(ClientGoneError, _unheard)
    app.add_exception_handler(404, _no_route)
    app.add_exception_handler(405, _no_route)
    add_routes(app, server)
    add_search_routes(app, server)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return Guard(app, settings, metrics)


async def _warm(server: Server) -> None:
    try:
        for model in server.served.values():
            await model.warm_up()
    except Exception as error:  # noqa: BLE001 - told, and /ready says so for as long as it runs
        server.failed = True
        LOG.error(json.dumps({"model": model.name, "warm_up": f"{type(error).__name__}: {error}"}))
        return
    server.ready = True


async def _answered(_: Request, error: Exception) -> Response:
    answer = answer_of(error)
    return Response(answer.content, answer.status, headers=answer.headers)


async def _unheard(_: Request, __: Exception) -> Response:
    return Response(status_code=GONE)  # for the log; nobody reads it


async def _no_route(request: Request, error: Any) -> Response:
    status = error.status_code
    what = "is not found; see /docs" if status == 404 else "does not take this method"
    # Not the path: a client may have put anything there.
    answer = AnswerError(status, f"this address {what}")
    return Response(answer.content, status, headers={**(error.headers or {}), **answer.headers})
