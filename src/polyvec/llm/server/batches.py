"""The batch API: prompts as files, answered within a day for less, and found again by their ids.

A job is a few batches, as each may have so many prompts. Their ids are in the caller's file
before anything is waited for, so that a process that dies finds them again.
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.errors import DataError, GenerationError, SettingsError
from polyvec.llm.answers import Completion, GenerationSettings
from polyvec.llm.server.failures import RequestError, message_of, status_failure
from polyvec.llm.server.pump import Emit
from polyvec.llm.server.replies import read_reply
from polyvec.llm.server.requests import Requester
from polyvec.llm.server.retries import UNSURE
from polyvec.storage.files import atomic_file

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_PROMPTS, MAX_BYTES = 50_000, 190_000_000  # OpenAI's limits: 50,000 and 200 MB
WINDOW = "24h"  # the only one there is
# All others ("validating", "in_progress", "finalizing", "cancelling") are waited for.
ENDED = ("completed", "failed", "expired", "cancelled")
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Part:
    """The prompts from `start` to `end` as the lines of one file."""

    start: int
    end: int
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class BatchJob:
    """Prompts whose requests are made, sent by the batch API and kept track of in `file`.

    The same prompts and settings with the same file continue the job, or read its answers again;
    others are refused, so that no paid job is forgotten.
    """

    def __init__(
        self,
        requester: Requester,
        file: Path,
        requests: Sequence[tuple[str, Mapping[str, Any]]],
        settings: GenerationSettings,
        poll_s: float,
    ) -> None:
        self.requester, self.file, self.settings, self.poll_s = requester, file, settings, poll_s
        self.path = "/v1" + requests[0][0]
        self.parts = list(split([body for _, body in requests], self.path))
        self.ids = self._known_ids()

    async def run(self, client: "AsyncOpenAI", emit: Emit[tuple[int, Completion]]) -> None:
        """Sends what was not sent yet, waits, and emits every prompt's completion once."""
        for part in self.parts[len(self.ids) :]:
            self.ids.append(await self._send(client, part))
            self._write()
        for part, name in zip(self.parts, self.ids, strict=True):
            batch = await self._wait(client, name)
            for row in await self._rows(client, part, batch):
                await emit(row)

    async def _send(self, client: "AsyncOpenAI", part: Part) -> str:
        file = await self.requester.upload(client, f"polyvec-{part.sha256[:16]}.jsonl", part.data)
        body = {
            "input_file_id": _text(file, "id"),
            "endpoint": self.path,
            "completion_window": WINDOW,
            "metadata": {"polyvec": part.sha256},
        }
        try:
            # Sent twice it would be paid twice.
            batch = await self.requester.post(client, "/batches", body, is_repeatable=False)
        except RequestError as failure:
            if failure.kind in UNSURE:
                failure.message += (
                    "; the batch may have been made all the same: before another try, look on the "
                    f"server for one with the metadata polyvec={part.sha256[:16]}..."
                )
            raise
        return _text(batch, "id")

    async def _wait(self, client: "AsyncOpenAI", name: str) -> Mapping[str, Any]:
        """The batch once it has ended, with its state on stderr where that is a terminal."""
        shown = ""
        while True:
            batch = await self.requester.get(client, f"/batches/{name}", is_first=False)
            status = _text(batch, "status")
            counts = batch.get("request_counts") or {}
            line = f"{name}: {status}, {counts.get('completed', 0)} of {counts.get('total', '?')}"
            if line != shown and sys.stderr.isatty():
                print(line, file=sys.stderr)
            shown = line
            if status in ENDED:
                return batch
            await asyncio.sleep(self.poll_s)

    async def _rows(
        self, client: "AsyncOpenAI", part: Part, batch: Mapping[str, Any]
    ) -> list[tuple[int, Completion]]:
        """A completion for each of the part's prompts."""
        status = batch["status"]
        if status == "failed":
            reasons = (batch.get("errors") or {}).get("data") or []
            message = self.requester.shown(message_of(reasons))
            raise GenerationError(
                f"batch {batch['id']} failed: {message}; delete {self.file} to send it again"
            )
        found: dict[int, Completion] = {}
        for name in (batch.get("output_file_id"), batch.get("error_file_id")):
            if not name:
                continue
            text = await self.requester.get_text(client, f"/files/{name}/content")
            for line in text.splitlines():
                number, completion = self._completion(line)
                if part.start <= number < part.end:
                    found.setdefault(number, completion)
        why = "has no line for it" if status == "completed" else f"{status} before it was answered"
        lost = Completion((), error=f"batch {batch['id']} {why}")
        return [(number, found.get(number, lost)) for number in range(part.start, part.end)]

    def _completion(self, line: str) -> tuple[int, Completion]:
        """A line's prompt, -1 if it cannot be told, and its answers."""
        try:
            entry = json.loads(line)
            number = int(entry["custom_id"])
        except (ValueError, TypeError, KeyError):
            return -1, Completion(())
        response = entry.get("response") or {}
        try:
            if entry.get("error") or response.get("status_code") != 200:
                body = entry if entry.get("error") else response.get("body")
                raise status_failure(int(response.get("status_code") or 0), body, {})
            reply = read_reply(response.get("body") or {}, self.settings, self.settings.n)
            if len(reply.answers) < self.settings.n:
                raise RequestError(
                    f"{len(reply.answers)} answers in place of {self.settings.n}", "reply"
                )
        except RequestError as failure:
            return number, Completion((), error=self.requester.shown(failure.message))
        return number, Completion(reply.answers, reply.prompt_tokens or 0)

    def _known_ids(self) -> list[str]:
        """The ids in the file, if it is of this job."""
        if not self.file.exists():
            return []
        try:
            stored = json.loads(self.file.read_text("utf-8"))
            ids, sums = list(stored["ids"]), list(stored["sha256"])
            url = stored["url"]
        except (ValueError, TypeError, KeyError, UnicodeDecodeError):
            raise DataError(f"{self.file} does not hold the ids of batches") from None
        if url != self.requester.base_url or sums != [part.sha256 for part in self.parts]:
            raise SettingsError(
                f"{self.file} is of other prompts, settings or another server ({url}); name "
                "another file, or delete it if its answers are not needed"
            )
        return ids

    def _write(self) -> None:
        stored = {
            "format": FORMAT,
            "url": self.requester.base_url,
            "ids": self.ids,
            "sha256": [part.sha256 for part in self.parts],
        }
        with atomic_file(self.file, "w") as stream:
            json.dump(stored, stream, indent=1)


def split(bodies: Sequence[Mapping[str, Any]], path: str) -> Iterator[Part]:
    """Parts within the limits; custom_id is the prompt's number."""
    lines: list[bytes] = []
    start = size = 0
    for number, body in enumerate(bodies):
        request = {"custom_id": str(number), "method": "POST", "url": path, "body": body}
        line = json.dumps(request).encode() + b"\n"
        if lines and (len(lines) == MAX_PROMPTS or size + len(line) > MAX_BYTES):
            yield Part(start, number, b"".join(lines))
            lines, start, size = [], number, 0
        lines.append(line)
        size += len(line)
    yield Part(start, len(bodies), b"".join(lines))


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value:
        raise RequestError(f"the reply has no {name}", "reply")
    return value
