"""Routes of indexes, and the page that shows them."""

from importlib import resources

from fastapi import FastAPI, Request, Response

from polyvec.serve.documents import page
from polyvec.serve.reading import TextError
from polyvec.serve.routes import ERRORS, as_json, posting, read_body
from polyvec.serve.schemas import (
    IndexList,
    MapResponse,
    SearchRequest,
    SearchResponse,
)
from polyvec.serve.server import Server
from polyvec.serve.waiting import heard

MOST_BYTES = 2**20  # of a search
FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# Texts are data: no script but the page's own runs, and nothing is loaded from elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def add_search_routes(app: FastAPI, server: Server) -> None:
    """Search, the map and the page."""
    post = posting(app)

    @post("/v1/search", SearchRequest, SearchResponse)
    async def search(request: Request) -> Response:
        """Texts of an index, by meaning, by words or by both, with filters of the metadata."""
        asked = await read_body(request, SearchRequest, server, MOST_BYTES)
        index = server.index(asked.index)
        if not asked.query.strip():
            raise TextError(None, "the text is empty", "query")
        index.check_filter(asked.filter, "filter")
        searching = index.search(
            asked.query,
            client=request.state.client,
            top_k=asked.top_k,
            mode=asked.mode,
            filter=asked.filter,
            explain=asked.explain,
        )
        found = await heard(request, searching, server.settings.timeout)
        request.state.log = {"index": index.name, "found": len(found)}
        return as_json({"object": "list", "index": index.name, "results": found})

    @app.get("/v1/indexes", response_model=IndexList, responses={401: ERRORS[401]})
    async def indexes() -> Response:
        """The indexes of this server."""
        return as_json(
            {"object": "list", "data": [each.card() for each in server.indexes.values()]}
        )

    @app.get(
        "/v1/map",
        response_model=MapResponse,
        responses={status: ERRORS[status] for status in (400, 401, 404, 503)},
    )
    async def texts_map(index: str | None = None, field: str | None = None) -> Response:
        """A part of an index's texts as places in a square, with a field of their metadata."""
        found = server.index(index)
        if field is not None:
            found.check_filter({field: {"$exists": True}}, "field")
        return as_json(await found.map(field))

    written = page(app.openapi()).encode()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(written, headers={"content-type": FILES[""][1], **HEADERS})

    for path, (name, kind) in FILES.items():
        _add_file(app, f"/{path}", name, kind)


def _add_file(app: FastAPI, path: str, name: str, kind: str) -> None:
    content = resources.files("polyvec.serve").joinpath("page", name).read_bytes()

    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, headers={"content-type": kind, **HEADERS})
