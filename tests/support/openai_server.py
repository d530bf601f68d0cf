"""A real HTTP server that speaks the OpenAI API on this machine, and misbehaves on demand.

What a prompt gets is written in it after "!": "row 7 ! 429 500" is refused with 429, then with
500, then answered; "row 7 ! slow ..." is slow every time. The answer is "answer to row 7".
"""

import email.utils
import json
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_S = 0.6
FOREVER = "..."
KEY = "sk-secret-0123456789abcdef"


class OpenAIServer(ThreadingHTTPServer):
    """Serves until the with statement ends; options are attributes, `requests` what came."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, **options: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = ["tiny"]
        self.models_after_s = 0.0
        self.takes_strict = True
        self.has_completions = self.has_chat = True
        self.key: str | None = None
        self.takes_n = True
        self.max_tokens_name: str | None = None  # refuses another
        self.max_stops = 4
        self.refused: tuple[str, ...] = ()  # settings
        self.answer: Any = None  # a function of prompt and body, in place of "answer to ..."
        self.top_logprobs: dict[str, float] | None = None
        self.has_batches = True
        self.loses_reply = False  # of a batch that was made
        self.polls = 1  # of a batch, before it is done
        for name, value in options.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.requests: list[dict[str, Any]] = []
        self.attempts: dict[str, int] = {}
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.num_broken = 0  # clients that went away
        self.is_dead = False
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "OpenAIServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_dead:
            self.die()

    def die(self) -> None:
        """No new connections, and the next request on an open one closes it."""
        self.is_dead = True
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.num_broken += 1

    def posts(self, path: str = "completions") -> list[dict[str, Any]]:
        return [each for each in self.requests if each["path"].endswith(path) and each["body"]]

    def next_behaviour(self, prompt: str) -> str:
        """What this attempt of the prompt gets."""
        _, _, plan = prompt.partition("!")
        steps = plan.split()
        with self.lock:
            attempt = self.attempts[prompt] = self.attempts.get(prompt, 0) + 1
        if FOREVER in steps:
            return steps[min(attempt, len(steps) - 1) - 1]
        return steps[attempt - 1] if attempt <= len(steps) else "ok"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OpenAIServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.note(None)
        if not self.is_allowed():
            return
        server, path = self.server, self.path.removeprefix("/v1")
        if path == "/models" and not server.models:
            self.error(500, "Internal Server Error")
        elif path == "/models":
            time.sleep(server.models_after_s)
            self.json({"object": "list", "data": [{"id": name} for name in server.models]})
        elif found := re.fullmatch(r"/files/(.+)/content", path):
            self.send(200, server.files[found[1]], "application/octet-stream")
        elif found := re.fullmatch(r"/batches/(.+)", path):
            self.json(self.poll(server.batches[found[1]]))
        else:
            self.error(404, f"Not Found: {self.path}")

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.is_dead:
            self.close_connection = True
            return
        path = self.path.removeprefix("/v1")
        if path == "/files" and self.server.has_batches:
            self.note(None)
            found = re.search(rb"\r\n\r\n(\{.*?)\r\n--", data, re.DOTALL)
            name = f"file-{len(self.server.files)}"
            self.server.files[name] = found[1] if found else b""
            self.json(
                {
                    "id": name,
                    "object": "file",
                    "bytes": len(data),
                    "created_at": 0,
                    "filename": "batch.jsonl",
                    "purpose": "batch",
                    "status": "processed",
                }
            )
            return
        body = json.loads(data) if path != "/files" else None
        self.note(body)
        if not self.is_allowed():
            return
        if path == "/batches":
            self.create_batch(body)
        elif path == "/chat/completions" and self.server.has_chat:
            self.complete(body, body["messages"][-1]["content"], is_chat=True)
        elif path == "/completions" and self.server.has_completions:
            self.complete(body, body["prompt"], is_chat=False)
        else:
            self.error(404, f"Not Found: {self.path}")

    def note(self, body: Any) -> None:
        with self.server.lock:
            self.server.requests.append(
                {
                    "path": self.path,
                    "body": body,
                    "time": time.monotonic(),
                    "headers": dict(self.headers),
                    "key": self.headers.get("Authorization", "").removeprefix("Bearer "),
                }
            )

    def is_allowed(self) -> bool:
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.server.key is None or sent == self.server.key:
            return True
        self.error(401, f"Incorrect API key provided: {sent}.", code="invalid_api_key")
        return False

    def complete(self, body: dict[str, Any], prompt: str, is_chat: bool) -> None:
        server = self.server
        if body["model"] not in server.models:
            self.error(404, f"The model `{body['model']}` does not exist.", code="NotFoundError")
            return
        wrong = {"max_tokens", "max_completion_tokens"} - {server.max_tokens_name}
        if server.max_tokens_name and is_chat and wrong & set(body):
            self.error(
                400,
                f"Unsupported parameter: 'max_tokens' is not supported with this model. "
                f"Use '{server.max_tokens_name}' instead.",
                "unsupported_parameter",
                "max_tokens",
            )
            return
        for name in server.refused:
            if name in body:
                self.error(
                    400,
                    f"Unsupported value: {name!r} does not support {body[name]!r} with this model.",
                    "unsupported_value",
                    name,
                )
                return
        if not server.takes_strict and "'strict': True" in str(body.get("response_format")):
            self.error(
                400,
                "Invalid schema for response_format 'answer': In context=('properties', 'a'), "
                "'pattern' is not permitted.",
                "invalid_request_error",
                "response_format",
            )
            return
        if len(body.get("stop", ())) > server.max_stops:
            self.error(400, "stop: at most 4 sequences", param="stop")
            return
        behaviour = server.next_behaviour(prompt)
        with server.lock:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            getattr(self, f"do_{behaviour}", self.do_status)(behaviour, body, prompt, is_chat)
        finally:
            with server.lock:
                server.at_once -= 1

    # Behaviours, by the words of prompts. -------------------------------------------------

    def do_ok(
        self, _: str, body: dict[str, Any], prompt: str, is_chat: bool, **changes: Any
    ) -> None:
        self.json(self.reply(body, prompt, is_chat, **changes))

    def do_status(self, status: str, *_: Any) -> None:
        headers = {"Retry-After": "0.02"} if status == "429" else {}
        self.error(int(status), "overloaded\nsecond line", headers=headers)

    def do_later_ms(self, *_: Any) -> None:
        self.error(429, "slow down", headers={"retry-after-ms": "300"})

    def do_later_s(self, *_: Any) -> None:
        self.error(429, "slow down", headers={"Retry-After": "0.3"})

    def do_later_date(self, *_: Any) -> None:
        # Dates have whole seconds.
        date = email.utils.formatdate(time.time() + 1.5, usegmt=True)
        self.error(503, "slow down", headers={"Retry-After": date})

    def do_later_hour(self, *_: Any) -> None:
        self.error(429, "slow down", headers={"Retry-After": "3600"})

    def do_quota(self, *_: Any) -> None:
        self.error(429, "You exceeded your current quota.", code="insufficient_quota")

    def do_fastapi(self, *_: Any) -> None:
        """In the words of `transformers serve`."""
        data = json.dumps({"detail": "Unexpected fields in the request: {'temperature'}"}).encode()
        self.send(422, data)

    def do_long(self, *_: Any) -> None:
        self.error(
            400, "This model's maximum context length is 8 tokens.", code="context_length_exceeded"
        )

    def do_too_large(self, *_: Any) -> None:
        """In the words of vLLM."""
        self.error(
            400,
            "'max_tokens' or 'max_completion_tokens' is too large: 256. This model's maximum "
            "context length is 8 tokens and your request has 9 input tokens",
            param="max_tokens",
        )

    def do_slow(self, *given: Any) -> None:
        time.sleep(SLOW_S)
        self.do_ok(*given)

    def do_late(self, *given: Any) -> None:
        time.sleep(0.05)
        self.do_ok(*given)

    def do_drip(self, *_: Any) -> None:
        """Bytes that come in time, one by one, and never end."""
        self.start(200, 10_000)
        for _ in range(200):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.02)

    def do_flood(self, *_: Any) -> None:
        self.start(200, 10**9)
        for _ in range(100):
            self.wfile.write(b" " * 10_000)

    def do_cut(self, _: str, body: dict[str, Any], prompt: str, is_chat: bool) -> None:
        data = json.dumps(self.reply(body, prompt, is_chat)).encode()
        self.start(200, len(data))
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def do_reset(self, *_: Any) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def do_malformed(self, *_: Any) -> None:
        self.send(200, b'{"choices": [{"message": {"content": "half an ans')

    def do_html(self, *_: Any) -> None:
        page = b"<!DOCTYPE html>\n<html><head><title>Welcome to nginx!</title></head></html>"
        self.send(200, page, "text/html")

    def do_html502(self, *_: Any) -> None:
        page = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
        self.send(502, page, "text/html")

    def do_empty_body(self, *_: Any) -> None:
        self.send(200, b"")

    def do_text_type(self, _: str, body: dict[str, Any], prompt: str, is_chat: bool) -> None:
        data = json.dumps(self.reply(body, prompt, is_chat)).encode()
        self.send(200, data, "text/plain")

    def do_array(self, *_: Any) -> None:
        self.json([1, 2])

    def do_no_choices(self, *_: Any) -> None:
        self.json({"id": "x", "object": "chat.completion"})

    def do_empty_choices(self, *_: Any) -> None:
        self.json({"choices": []})

    def do_wrong_type(self, *_: Any) -> None:
        self.json({"choices": {"0": "yes"}})

    def do_error200(self, *_: Any) -> None:
        self.json({"error": {"message": "upstream has no capacity", "code": 502}})

    def do_null(self, *given: Any) -> None:
        self.do_ok(*given, content=None)

    def do_blank(self, *given: Any) -> None:
        self.do_ok(*given, content="")

    def do_number(self, *given: Any) -> None:
        self.do_ok(*given, content=5)

    def do_parts(self, *given: Any) -> None:
        self.do_ok(
            *given, content=[{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]
        )

    def do_refusal(self, *given: Any) -> None:
        self.do_ok(*given, content=None, refusal="I cannot help with that.")

    def do_filter(self, *given: Any) -> None:
        self.do_ok(*given, content="", finish="content_filter")

    def do_length(self, *given: Any) -> None:
        self.do_ok(*given, finish="length")

    def do_abort(self, *given: Any) -> None:
        self.do_ok(*given, finish="abort")

    def do_echo_key(self, *_: Any) -> None:
        self.error(500, f"bad header Authorization: {self.headers['Authorization']}")

    def do_echo_choices(self, *_: Any) -> None:
        self.json({"choices": f"{'x' * 290} {self.headers['Authorization']}"})

    def do_echo_part(self, *_: Any) -> None:
        key = self.headers["Authorization"].removeprefix("Bearer ")
        self.error(400, f"{'x' * 290} key {key[:12]}********{key[-4:]} and {key[5:-2]}")

    # ---------------------------------------------------------------------------------------

    def reply(
        self, body: dict[str, Any], prompt: str, is_chat: bool, finish: str = "stop", **message: Any
    ) -> dict[str, Any]:
        texts = []
        number = body.get("n", 1) if self.server.takes_n else 1
        for place in range(number):
            text = f"answer to {prompt.partition('!')[0].strip()}"
            if self.server.answer is not None:
                text = self.server.answer(prompt, {**body, "place": place})
            texts.append(text)
        choices = []
        for place, text in enumerate(texts):
            choice: dict[str, Any] = {"index": place, "finish_reason": finish}
            if is_chat:
                choice["message"] = {"role": "assistant", "content": text, **message}
            else:
                choice["text"] = message.get("content", text)
            if self.server.top_logprobs is not None:
                choice["logprobs"] = self.logprobs(is_chat)
            choices.append(choice)
        usage = {
            "prompt_tokens": len(prompt.split()),
            "total_tokens": 0,
            "completion_tokens": sum(len(text.split()) for text in texts),
        }
        return {
            "id": "x",
            "created": 0,
            "model": body["model"],
            "choices": choices,
            "usage": usage,
            "object": "chat.completion" if is_chat else "text_completion",
        }

    def logprobs(self, is_chat: bool) -> dict[str, Any]:
        top = self.server.top_logprobs or {}
        first = next(iter(top))
        if not is_chat:
            return {"tokens": [first], "token_logprobs": [top[first]], "top_logprobs": [top]}
        listed = [{"token": token, "logprob": value, "bytes": None} for token, value in top.items()]
        return {"content": [{**listed[0], "top_logprobs": listed}]}

    def create_batch(self, body: dict[str, Any]) -> None:
        server = self.server
        name = f"batch_{len(server.batches)}"
        done, failed = [], []
        for line in reversed(server.files[body["input_file_id"]].splitlines()):
            asked = json.loads(line)
            prompt = asked["body"]["messages"][-1]["content"]
            behaviour = server.next_behaviour(prompt)
            if behaviour == "lost":
                continue
            if behaviour == "ok":
                reply = {"status_code": 200, "body": self.reply(asked["body"], prompt, True)}
            else:
                reply = {"status_code": int(behaviour), "body": {"error": {"message": "bad row"}}}
            entry = {"custom_id": asked["custom_id"], "response": reply, "error": None}
            (done if behaviour == "ok" else failed).append(json.dumps(entry))
        server.files[f"{name}-out"] = "\n".join(done).encode()
        server.files[f"{name}-err"] = "\n".join(failed).encode()
        server.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "created_at": 0,
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "request_counts": {"total": len(done) + len(failed), "completed": 0, "failed": 0},
            "polls": server.polls,
        }
        if server.loses_reply:
            self.do_reset()
            return
        self.json(server.batches[name])

    def poll(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["polls"] -= 1
        if batch["polls"] > 0:
            batch["status"] = "in_progress"
        elif batch["status"] not in ("failed", "expired"):
            batch["status"] = "completed"
        if batch["polls"] <= 0:
            batch["output_file_id"], batch["error_file_id"] = (
                f"{batch['id']}-out",
                f"{batch['id']}-err",
            )
        return batch

    def error(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        details = {"message": message, "type": "error", "param": param, "code": code}
        self.send(status, json.dumps({"error": details}).encode(), headers=headers)

    def json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode())

    def send(
        self,
        status: int,
        data: bytes,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.start(status, len(data), kind, headers)
        self.wfile.write(data)

    def start(
        self,
        status: int,
        length: int,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
