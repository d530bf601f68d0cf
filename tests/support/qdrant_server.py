"""Qdrant's HTTP API over the client's local mode, so that requests and answers are real."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from pydantic_core import to_jsonable_python
from qdrant_client import QdrantClient, models


class Handler(BaseHTTPRequestHandler):
    """The calls that polyvec makes. `failures` are statuses given before the next answers."""

    local: ClassVar[QdrantClient]
    failures: ClassVar[list[int]]
    keys: ClassVar[set[str | None]]
    lock = threading.Lock()

    def answer(self):
        path = self.path.partition("?")[0].strip("/").split("/")
        size = int(self.headers.get("content-length") or 0)
        raw = json.loads(self.rfile.read(size)) if size else {}
        with self.lock:
            self.keys.add(self.headers.get("api-key"))
            if self.failures:
                status = self.failures.pop(0)
                return self.send(status, {"status": {"error": f"told to fail with {status}"}})
            try:
                result = self.result(self.command, path, raw)
            except ValueError as error:
                return self.send(404, {"status": {"error": str(error)}})
        if path == [""]:
            return self.send(200, result)
        told = {"result": to_jsonable_python(result), "status": "ok", "time": 0.0}
        return self.send(200, told)

    do_GET = do_PUT = do_POST = do_PATCH = answer

    def result(self, method, path, raw):
        if path == [""]:
            return {"title": "qdrant", "version": "1.17.0"}
        name, rest, local = path[1], path[2:], self.local
        match method, rest:
            case "GET", ["exists"]:
                return {"exists": local.collection_exists(name)}
            case "PUT", []:
                asked = models.CreateCollection(**raw)
                return local.create_collection(
                    name,
                    vectors_config=asked.vectors,
                    sparse_vectors_config=asked.sparse_vectors,
                    metadata=asked.metadata,
                )
            case "PATCH", []:
                return local.update_collection(name, metadata=raw["metadata"])
            case "GET", []:
                return local.get_collection(name)
            case "PUT", ["index"]:
                assert raw["field_schema"] in ("keyword", "integer", "float", "bool")
                local.get_collection(name)
                return {"operation_id": 0, "status": "completed"}
            case "PUT", ["points"]:
                return local.upsert(name, models.PointsList(**raw).points)
            case "POST", ["points"]:
                asked = models.PointRequest(**raw)
                return local.retrieve(
                    name,
                    asked.ids,
                    with_payload=asked.with_payload,
                    with_vectors=asked.with_vector,
                )
            case "POST", ["points", "delete"]:
                return local.delete(name, models.PointIdsList(**raw))
            case "POST", ["points", "count"]:
                asked = models.CountRequest(**raw)
                return local.count(name, asked.filter)
            case "POST", ["points", "scroll"]:
                asked = models.ScrollRequest(**raw)
                points, after = local.scroll(
                    name, limit=asked.limit, offset=asked.offset, with_vectors=asked.with_vector
                )
                return {"points": points, "next_page_offset": after}
            case "POST", ["points", "query", "batch"]:
                searches = models.QueryRequestBatch(**raw).searches
                assert all(each.params is None or each.params.hnsw_ef for each in searches)
                for each in searches:
                    each.params = None  # of which the local mode warns
                return local.query_batch_points(name, searches)
        raise ValueError(f"no such call: {method} {path}")

    def send(self, status, told):
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if status == 429:
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def start():
    """A server on a free port of this machine: (handler, port, stop)."""
    made = {"local": QdrantClient(":memory:"), "failures": [], "keys": set()}
    handler = type("Handler", (Handler,), made)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop():
        server.shutdown()
        server.server_close()

    return handler, server.server_port, stop
