"""A model in a server: what it reads of texts, and the batches that it computes.

N texts, E numbers a vector.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from polyvec.embed.encode_methods import EncodeMethods
from polyvec.embed.projection.quantization import truncate
from polyvec.errors import InputError
from polyvec.interfaces import EncodeReport, MultiVectors, RunOptions, TextEncoder
from polyvec.serve.batching import Batcher, Report, Ticket
from polyvec.serve.settings import ServerSettings

WARM_UP = "The server reads some text before it is ready, to know how fast it is. " * 20
CHARACTERS_A_TOKEN = 4  # of models that do not say; about right for English


class Asked(NamedTuple):
    """How texts are to be read; texts of one batch share it."""

    role: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None


class TextError(InputError):
    """A text of a request cannot be embedded; `place` is its index."""

    def __init__(self, place: int, message: str) -> None:
        super().__init__(f"input[{place}]: {message}")
        self.place = place


@dataclass(slots=True)
class Read:
    """Texts as a model reads them: what is computed, and how many tokens each has."""

    payloads: list[Any]
    tokens: list[int]
    num_truncated: int = 0

    @property
    def total(self) -> int:
        return sum(self.tokens)


@dataclass(eq=False)
class ServedModel:
    """An embedder under a name, with its queue.

    Its tokenizer and its weights work in a thread each, so that the next requests are read while a
    batch is computed.
    """

    name: str
    embedder: TextEncoder
    settings: ServerSettings
    on_batch: Callable[[Report], None] = lambda report: None
    on_computed: Callable[[EncodeReport], None] = lambda report: None
    created: int = 0
    batcher: Batcher = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.embedder.encode_vectors([])[0], MultiVectors):
            raise InputError(
                f"{self.name}: gives several vectors a text, which no route of the server answers "
                "with; serve a model that pools its tokens"
            )
        self.batcher = Batcher(self._run, self.settings, self.on_batch)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="polyvec-tokenizer")

    @property
    def dimension(self) -> int:
        return self.embedder.get_embedding_dimension()

    @property
    def is_sparse(self) -> bool:
        return getattr(self.embedder, "output_kind", "dense") == "sparse"

    @property
    def max_tokens(self) -> int | None:
        return self.embedder.max_seq_length

    async def warm_up(self) -> None:
        """Compute one full batch, so that the rate is known and later requests find it quick."""
        most = min(self.settings.max_batch_tokens, self.settings.max_queued_tokens)
        text = await self.read([WARM_UP], Asked(), truncate=True)
        copies = most // text.total
        if copies:  # else the server takes less than this text, and the first request is the first
            read = Read(text.payloads * copies, text.tokens * copies)
            await self.submit([(read, Asked())], timeout=float("inf")).answer

    async def read(self, texts: Sequence[str], asked: Asked, *, truncate: bool) -> Read:
        """Tokens of the texts; TextError for one that is longer than the model reads."""
        loop = asyncio.get_running_loop()
        read = await loop.run_in_executor(self._reader, self._read, list(texts), asked)
        if read.num_truncated and not truncate:
            lengths = self._full_lengths(read)
            place = next(i for i, length in enumerate(lengths) if length > read.tokens[i])
            raise TextError(
                place,
                f"{lengths[place]} tokens, the model reads {self.max_tokens}; split the text, or "
                "ask for truncate=true",
            )
        return read

    def submit(self, parts: Sequence[tuple[Read, Asked]], timeout: float) -> Ticket:
        """Into the queue, as one request; its answer is a vector a text, part after part.

        Errors are those of `Batcher.submit`.
        """
        return self.batcher.submit(
            [payload for read, _ in parts for payload in read.payloads],
            [tokens for read, _ in parts for tokens in read.tokens],
            [asked for read, asked in parts for _ in read.payloads],
            timeout,
        )

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """The text of a client's tokens; InputError for ids that the model does not have."""
        if not isinstance(self.embedder, EncodeMethods):
            raise InputError("this model takes no token ids; send texts")
        tokenizer = self.embedder.text_tokenizer.hf
        worst = max(ids, default=0)
        if worst >= len(tokenizer) or min(ids, default=0) < 0:
            raise InputError(
                f"token id {worst if worst >= len(tokenizer) else min(ids)} is not one of this "
                f"model's {len(tokenizer)}; ids of another tokenizer (such as OpenAI's, which "
                "LangChain sends unless check_embedding_ctx_length=False) would be other words: "
                "send texts"
            )
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    def finished(self, vectors: Sequence[Any], dimensions: int | None) -> np.ndarray:
        """Vectors [N, E], with so many of their first dimensions, again of length 1."""
        found_NE = np.stack(vectors) if len(vectors) else np.zeros((0, self.dimension), np.float32)
        if dimensions is None or dimensions == found_NE.shape[1]:
            return found_NE
        unit = getattr(self.embedder, "normalizes", True)
        return truncate(torch.from_numpy(found_NE), dimensions, renormalize=unit).numpy()

    def close(self) -> None:
        """Ends its threads after what they do now."""
        self.batcher.close()
        self._reader.shutdown(wait=True)

    # ---- in the threads ---------------------------------------------------------------------

    def _read(self, texts: list[str], asked: Asked) -> Read:
        if not isinstance(self.embedder, EncodeMethods):
            return Read(texts, [1 + len(text) // CHARACTERS_A_TOKEN for text in texts])
        found = self.embedder.tokenize(texts, **asked._asdict())
        if not self.embedder.for_role(asked.role).zero_if_empty:
            for place, inputs in enumerate(found):
                if not all(each.pooled.any() for each in inputs):
                    raise TextError(place, "no token is left of it; leave it out")
        num = sum(any(each.truncated for each in inputs) for inputs in found)
        return Read(found, [sum(map(len, inputs)) for inputs in found], num)

    def _full_lengths(self, read: Read) -> list[int]:
        return [sum(each.full_length for each in inputs) for inputs in read.payloads]

    def _run(self, asked: Asked, payloads: list[Any]) -> Sequence[Any]:
        options = RunOptions(
            batch_tokens=self.settings.max_batch_tokens, show_progress_bar=False, truncate="silent"
        )
        report = EncodeReport()
        if isinstance(self.embedder, EncodeMethods):
            found_NE = self.embedder.encode_tokens(
                payloads, role=asked.role, options=options, report=report
            )
        else:
            vectors, report = self.embedder.encode_vectors(
                payloads, options=options, **asked._asdict()
            )
            found_NE = vectors.to_dense()
        self.on_computed(report)
        return list(found_NE)
