"""A real HTTP server on this machine that answers in the shapes of embedding APIs, and misbehaves.

Replies are those that the providers document. What a request gets is a plan: `plan` holds one word
a request, then "ok". A text's vector is its own: equal for equal text, task and model.
"""

import base64
import hashlib
import json
import math
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

KEY = "sk-secret-0123456789abcdef"
DIMENSION = 8
SLOW_S = 0.6


def vector_of(text: str, task: str = "", dimension: int = DIMENSION) -> np.ndarray:
    """The vector that the server gives a text, float32, not of length 1."""
    digest = hashlib.sha256(f"{task}|{text}".encode()).digest()
    seed = int.from_bytes(digest[:8], "little")
    return np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)


class EmbeddingServer(ThreadingHTTPServer):
    """Serves until the with statement ends; options are attributes, `requests` what came."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, **options: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[str] = []
        self.most_texts = 2048
        self.most_text_bytes = 10_000
        self.has_usage = True
        self.tokens_of = lambda text: 1 + len(text.split())
        self.model: str | None = None  # that it says to be; None: as asked
        self.delay_s = 0.0
        self.dimension = DIMENSION
        for name, value in options.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.requests: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "EmbeddingServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        pass  # clients that went away

    @property
    def texts(self) -> list[str]:
        """All texts of requests that were answered with vectors, in order."""
        return [text for each in self.requests if each["paid"] for text in each["texts"]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EmbeddingServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        note = {
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": json.loads(raw),
            "raw": raw,
            "paid": False,
        }
        note["texts"] = _texts(note["body"])
        with server.lock:
            step = server.plan.pop(0) if server.plan else "ok"
            server.requests.append(note)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.delay_s)
            self.answer(note, step)
        finally:
            with server.lock:
                server.at_once -= 1

    def answer(self, note: dict[str, Any], step: str) -> None:
        texts, server = note["texts"], self.server
        if found := re.fullmatch(r"(\d{3})(?:@(.*))?", step):
            headers = {"Retry-After": found[2]} if found[2] else {}
            self.error(int(found[1]), f"overloaded; your key is {KEY}", headers)
            return
        if step == "google429":
            info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.01s"}
            error = {"code": 429, "message": "quota", "details": [info]}
            self.send(429, json.dumps({"error": error}).encode())
            return
        if step == "html":
            page = b"<!doctype html><title>Bad gateway</title><p>sorry"
            self.send(200, page, content_type="text/html")
            return
        if step == "slow":
            time.sleep(SLOW_S)
        if len(texts) > server.most_texts:
            self.error(
                400, f"batch size is invalid, it should not be larger than {server.most_texts}"
            )
            return
        if any(len(text.encode()) > server.most_text_bytes for text in texts):
            self.error(400, "This model's maximum context length is 8192 tokens")
            return
        self.vectors(note, step)

    def vectors(self, note: dict[str, Any], step: str) -> None:
        body, texts, server = note["body"], note["texts"], self.server
        task = _task(body)
        wanted = _dimensions(body) or server.dimension
        rows = [vector_of(text, task, wanted).tolist() for text in texts]
        if step == "few":
            rows = rows[:-1]
        if step == "nan":
            rows[0][0] = math.nan
        if step == "wide":
            rows = [[*row, 1.0] for row in rows]
        note["paid"] = step in ("ok", "slow", "shuffled")
        tokens = sum(map(server.tokens_of, texts))
        reply = _reply(self.path, body, rows, tokens if server.has_usage else None, server.model)
        if step == "shuffled":
            reply["data"].reverse()
        if step == "no_index":
            reply["data"][0]["index"] = 7
        if step == "object":
            reply = [reply]
        data = json.dumps(reply).encode()
        if step == "cut":
            self.send(200, data, length=len(data) + 100)
            self.close_connection = True
            return
        self.send(200, data)

    def error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        error = {"error": {"message": message, "type": "error", "code": None}}
        self.send(status, json.dumps(error).encode(), headers=headers)

    def send(
        self,
        status: int,
        data: bytes,
        *,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _texts(body: dict[str, Any]) -> list[str]:
    if "requests" in body:
        return [each["content"]["parts"][0]["text"] for each in body["requests"]]
    if "inputText" in body:
        return [body["inputText"]]
    return body.get("input") or body["texts"]


def _first(body: dict[str, Any]) -> dict[str, Any]:
    return body["requests"][0] if "requests" in body else body


def _task(body: dict[str, Any]) -> str:
    return _first(body).get("input_type") or _first(body).get("taskType") or ""


def _dimensions(body: dict[str, Any]) -> int | None:
    names = ("dimensions", "output_dimension", "outputDimensionality")
    return next((_first(body)[name] for name in names if name in _first(body)), None)


def _reply(
    path: str, body: dict[str, Any], rows: list[Any], tokens: int | None, model: str | None
) -> Any:
    """As each provider documents it."""
    if path.endswith(":batchEmbedContents"):
        usage = {} if tokens is None else {"usageMetadata": {"promptTokenCount": tokens}}
        return {"embeddings": [{"values": row} for row in rows], **usage}
    if path.endswith("/invoke"):
        return {
            "embedding": rows[0],
            "embeddingsByType": {"float": rows[0]},
            "inputTextTokenCount": tokens,
        }
    if path.endswith("/embed"):
        billed = {} if tokens is None else {"billed_units": {"input_tokens": tokens}}
        return {
            "id": "f00",
            "texts": body["texts"],
            "embeddings": {"float": rows},
            "response_type": "embeddings_by_type",
            "meta": {"api_version": {"version": "2"}, **billed},
        }
    if body.get("encoding_format") == "base64":
        rows = [base64.b64encode(np.array(row, "<f4").tobytes()).decode() for row in rows]
    data = [
        {"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)
    ]
    usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return {"object": "list", "data": data, "model": model or body["model"], **usage}
