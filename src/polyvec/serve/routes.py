"""The routes: what each request asks of the models."""

import asyncio
import base64
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from polyvec.embed.encode_methods import EncodeMethods
from polyvec.serve.batching import Ticket, TooLargeError
from polyvec.serve.errors import AnswerError, answer_of
from polyvec.serve.guard import SMALL
from polyvec.serve.models import Asked, Read, ServedModel
from polyvec.serve.rerankers import ServedReranker
from polyvec.serve.schemas import (
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorResponse,
    Limits,
    ModelCard,
    ModelList,
    RerankRequest,
    RerankResponse,
    SparseRequest,
    SparseResponse,
    TextRequest,
    TokenizeRequest,
    TokenizeResponse,
)
from polyvec.serve.server import Server
from polyvec.serve.waiting import heard

Body = TypeVar("Body", bound=BaseModel)
Route = TypeVar("Route", bound=Callable[..., Any])
JSON = "application/json"
PARSER = ThreadPoolExecutor(1, thread_name_prefix="polyvec-json")
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": what}
    for status, what in (
        (400, "The request is wrong."),
        (401, "No valid key."),
        (403, "From a page of another origin, or under another name."),
        (404, "No such model."),
        (408, "The request did not arrive in time."),
        (413, "The request is too large."),
        (415, "The body is compressed."),
        (429, "Too much is waiting; see Retry-After."),
        (503, "The models are being loaded."),
    )
}


def posting(app: FastAPI) -> Callable[..., Callable[[Route], Route]]:
    """A decorator for routes of a request and a response, which the documents describe."""

    def post(
        path: str, request: type[BaseModel], response: type[BaseModel]
    ) -> Callable[[Route], Route]:
        # Bodies are read by pydantic itself, whose parser bounds the depth of nesting.
        schema = request.model_json_schema()
        body = {"required": True, "content": {JSON: {"schema": schema}}}
        return app.post(
            path,
            responses={200: {"model": response}, **ERRORS},
            response_class=Response,
            openapi_extra={"requestBody": body},
        )

    return post


def add_routes(app: FastAPI, server: Server) -> None:
    """Every route of the server."""

    post = posting(app)

    @post("/v1/embeddings", EmbeddingRequest, EmbeddingResponse)
    @app.post("/embeddings", include_in_schema=False)
    async def embeddings(request: Request) -> Response:
        """Vectors of texts, as OpenAI gives them."""
        asked = await read_body(request, EmbeddingRequest, server)
        model = server.model(asked.model)
        _check_dimensions(asked.dimensions, model)
        read, ticket, headers = await _computed(
            request, server, model, _read(request, server, model, asked)
        )
        vectors_NE = model.finished(ticket.answer.result(), asked.dimensions)
        data = [
            {"object": "embedding", "index": index, "embedding": each}
            for index, each in enumerate(_written(vectors_NE, asked.encoding_format))
        ]
        return as_json(
            {"object": "list", "data": data, "model": model.name, "usage": _usage(read)}, headers
        )

    @post("/v1/sparse", SparseRequest, SparseResponse)
    async def sparse(request: Request) -> Response:
        """Vectors of a sparse model, as places and numbers."""
        asked = await read_body(request, SparseRequest, server)
        model = server.model(asked.model)
        if not model.is_sparse:
            raise AnswerError(
                400, f"{model.name} gives dense vectors; ask /v1/embeddings", param="model"
            )
        read, ticket, headers = await _computed(
            request, server, model, _read(request, server, model, asked)
        )
        data = [
            {
                "object": "sparse_embedding",
                "index": index,
                "embedding": {"indices": places, "values": vector_E[places]},
            }
            for index, vector_E in enumerate(ticket.answer.result())
            for places in [np.flatnonzero(vector_E)]
        ]
        return as_json(
            {"object": "list", "data": data, "model": model.name, "usage": _usage(read)}, headers
        )

    @post("/v1/rerank", RerankRequest, RerankResponse)
    @app.post("/rerank", include_in_schema=False)
    async def rerank(request: Request) -> Response:
        """Documents by their relevance to a query: of a reranker, or by similarity."""
        asked = await read_body(request, RerankRequest, server)
        model = server.reranker(asked.model) or server.model(asked.model)
        reading = model.read_pairs(
            asked.query,
            asked.documents,
            truncate=_cuts(server, asked),
            client=request.state.client,
        )
        read, ticket, headers = await _computed(request, server, model, reading)
        scores_N = model.relevance(ticket)
        return as_json(_ranking(request, asked, model.name, scores_N, read.total), headers)

    @post("/tokenize", TokenizeRequest, TokenizeResponse)
    async def tokenize(request: Request) -> Response:
        """What the model reads of each text."""
        asked = await read_body(request, TokenizeRequest, server)
        model = server.model(asked.model)
        if not isinstance(model.embedder, EncodeMethods):
            raise AnswerError(400, f"{model.name} has no tokenizer here", param="model")
        asked.truncate = asked.truncate is not False  # cut, unless told not to: the answer says so
        reading = _read(request, server, model, asked)
        read = await heard(request, reading, server.settings.timeout)
        words = model.embedder.text_tokenizer.hf
        data = []
        for index, (inputs, truncated) in enumerate(
            zip(read.payloads, read.truncated, strict=True)
        ):
            ids = [int(number) for each in inputs for number in each.ids]
            data.append(
                {
                    "index": index,
                    "ids": ids,
                    "tokens": words.convert_ids_to_tokens(ids),
                    "truncated": truncated,
                }
            )
        return as_json(
            {"object": "list", "data": data, "model": model.name, "usage": _usage(read)}, {}
        )

    @app.get("/v1/models", response_model=ModelList, responses={401: ERRORS[401]})
    @app.get("/models", include_in_schema=False)
    async def models() -> Response:
        """The models of this server, and its rerankers."""
        return as_json({"object": "list", "data": [_card(each) for each in server.served.values()]})

    @app.get(
        "/v1/models/{name:path}",
        response_model=ModelCard,
        responses={401: ERRORS[401], 404: ERRORS[404]},
    )
    async def one_model(name: str) -> Response:
        """One model."""
        if name not in server.served:
            server.model(name)
        return as_json(_card(server.served[name]))

    @app.get("/health")
    async def health() -> Response:
        """Whether the process answers."""
        return as_json({"status": "ok"})

    @app.get("/ready", responses={503: ERRORS[503]})
    async def ready() -> Response:
        """Whether the models are loaded and warm."""
        if not server.ready:
            server.model(None)
        return as_json({"status": "ready"})

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={200: {"description": "Prometheus' text format."}},
    )
    async def metrics() -> Response:
        """Counters, for Prometheus."""
        queued = [(name, each.batcher.queued_tokens) for name, each in server.served.items()]
        return Response(server.metrics.page(queued), media_type="text/plain; version=0.0.4")


# ---- steps of a request -------------------------------------------------------------------------


async def read_body(
    request: Request, kind: type[Body], server: Server, most: int | None = None
) -> Body:
    """The request's body as a value of this kind; AnswerError says what is wrong with it.

    most: bytes, for routes that need no large ones.
    """
    body = await request.body()
    if most is not None and len(body) > most:
        raise AnswerError(413, f"the body has more than {most} bytes", code="request_too_large")
    limits = Limits(server.settings.max_texts, server.settings.max_queued_tokens)
    if len(body) <= SMALL:
        return parse(body, kind, limits)
    # Other requests are answered meanwhile; one at a time, as values take many times the bytes.
    return await asyncio.get_running_loop().run_in_executor(PARSER, parse, body, kind, limits)


def parse(body: bytes, kind: type[Body], limits: Limits) -> Body:
    """What `read_body` gives, of bytes."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise AnswerError(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise AnswerError(400, "the body is not a JSON object")
    # Before pydantic, which would list all of them.
    unknown = next((name for name in value if name not in kind.model_fields), None)
    if unknown is not None:
        name = unknown[:100] if unknown.isprintable() else repr(unknown[:100])
        raise AnswerError(400, f"{name} is not a field of this request", param=name)
    try:
        return kind.model_validate(value, context=limits)
    except (ValidationError, TooLargeError) as error:
        raise answer_of(error) from None


def _read(
    request: Request, server: Server, model: ServedModel, asked: TextRequest
) -> Coroutine[Any, Any, Read]:
    """The texts of a request, as the model reads them."""
    how = Asked(asked.input_type, asked.prompt, asked.prompt_name)
    return model.read(asked.input, how, truncate=_cuts(server, asked), client=request.state.client)


def _cuts(server: Server, asked: TextRequest | RerankRequest) -> bool:
    return server.settings.truncate if asked.truncate is None else asked.truncate


async def _computed(
    request: Request,
    server: Server,
    model: ServedModel | ServedReranker,
    reading: Coroutine[Any, Any, Read],
) -> tuple[Read, Ticket, dict[str, str]]:
    """The texts read and computed; a ticket whose answer is there, and headers about it."""
    timeout = server.settings.timeout

    async def work() -> tuple[Read, Ticket, dict[str, str]]:
        began = time.perf_counter()
        read = await reading
        spent = time.perf_counter() - began
        server.metrics.tokenize_seconds.labels(model.name).observe(spent)
        server.metrics.truncated.labels(model.name).inc(read.num_truncated)
        request.state.log = {
            "model": model.name,
            "texts": len(read.truncated),
            "tokens": read.total,
        }
        ticket = model.submit(read, timeout, client=request.state.client, spent=spent)
        await ticket.answer
        return read, ticket, _timing(ticket, spent, read.num_truncated)

    return await heard(request, work(), timeout)


def _check_dimensions(dimensions: int | None, model: ServedModel) -> None:
    if model.is_sparse:
        raise AnswerError(400, f"{model.name} gives sparse vectors; ask /v1/sparse", param="model")
    if dimensions is not None and dimensions > model.dimension:
        raise AnswerError(
            400,
            f"dimensions is {dimensions}, {model.name} has {model.dimension}",
            param="dimensions",
        )


def _written(vectors_NE: np.ndarray, how: str | None) -> Sequence[Any]:
    if how != "base64":
        return list(np.ascontiguousarray(vectors_NE, np.float32))
    return [base64.b64encode(each.astype("<f4").tobytes()).decode() for each in vectors_NE]


def _ranking(
    request: Request, asked: RerankRequest, model: str, scores_N: np.ndarray, num_tokens: int
) -> dict[str, Any]:
    """The best documents of a request, as Cohere and Jina answer."""
    best = np.argsort(-scores_N, kind="stable")[: asked.top_n].tolist()
    results = [
        {
            "index": place,
            "relevance_score": float(scores_N[place]),
            **({"document": {"text": asked.documents[place]}} if asked.return_documents else {}),
        }
        for place in best
    ]
    return {
        "id": request.state.request_id,
        "model": model,
        "results": results,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _usage(read: Read) -> dict[str, int]:
    return {"prompt_tokens": read.total, "total_tokens": read.total}


def _timing(ticket: Ticket, tokenized: float, num_truncated: int) -> dict[str, str]:
    """Milliseconds, as text-embeddings-inference names them."""
    found = {
        "x-tokenization-time": f"{1000 * tokenized:.1f}",
        "x-queue-time": f"{1000 * ticket.queue_s:.1f}",
        "x-inference-time": f"{1000 * ticket.run_s:.1f}",
    }
    if num_truncated:
        found["x-truncated-texts"] = str(num_truncated)
    return found


def _card(model: ServedModel | ServedReranker) -> dict[str, Any]:
    kind, dimensions = "reranker", None
    if isinstance(model, ServedModel):
        kind, dimensions = "sparse" if model.is_sparse else "dense", model.dimension
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "polyvec",
        "dimensions": dimensions,
        "max_tokens": model.max_tokens,
        "kind": kind,
    }


def as_json(value: Any, headers: dict[str, str] | None = None) -> Response:
    content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type=JSON, headers=headers)
