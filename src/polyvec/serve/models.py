"""A model in a server: what it reads of texts, and the batches that it computes.

N texts, E numbers a vector.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from polyvec.embed.encode_methods import EncodeMethods
from polyvec.embed.projection.quantization import truncate
from polyvec.errors import InputError
from polyvec.interfaces import EncodeReport, MultiVectors, RunOptions, TextEncoder
from polyvec.serve.batching import Batcher, Report, Ticket, TooLargeError
from polyvec.serve.reading import (
    Given,
    Reader,
    TextError,
    check_text,
    ids_to_text,
    most_characters,
    parts,
    too_large,
)
from polyvec.serve.settings import ServerSettings

WARM_UP = "The server reads some text before it is ready, to know how fast it is. " * 20
CHARACTERS_A_TOKEN = 4  # of models that do not say; about right for English


class Asked(NamedTuple):
    """How texts are to be read; texts of one batch share it."""

    role: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None


@dataclass(slots=True)
class Read:
    """Texts as a model reads them: what is computed, and how many tokens each has."""

    payloads: list[Any]
    tokens: list[int]
    truncated: list[bool]
    keys: list[Any]  # of payloads that may share a batch, equal ones

    @property
    def total(self) -> int:
        return sum(self.tokens)

    @property
    def num_truncated(self) -> int:
        return sum(self.truncated)

    def add(self, other: "Read") -> None:
        """Further texts behind these."""
        self.payloads += other.payloads
        self.tokens += other.tokens
        self.truncated += other.truncated
        self.keys += other.keys


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
        self._reader = Reader()

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
        """Compute a full batch, so that later requests find the model quick, then one that takes
        about `batch_time`: the first is slow, and its rate is forgotten."""
        most = min(self.settings.max_batch_tokens, self.settings.max_queued_tokens)
        try:
            text = await self.read([WARM_UP], Asked(), truncate=True)
        except TooLargeError:
            return  # the server takes less than this text, and the first request is the first
        for _ in range(2):
            copies = max(1, most // text.total)
            self.batcher.rate = None
            read = Read([], [], [], [])
            for _ in range(copies):
                read.add(text)
            await self.submit(read, timeout=float("inf")).answer
            most = self.batcher.batch_tokens

    async def read(
        self,
        given: Sequence[Given],
        asked: Asked,
        *,
        truncate: bool,
        field: str = "input",
        client: Hashable = None,
    ) -> Read:
        """Tokens of texts, or of texts as token ids.

        Raises TextError for one that is longer than the model reads or has no token, TooLargeError
        for more tokens than may wait. Other requests are read between the parts of a large one,
        and clients take turns.
        """
        most = self.settings.max_queued_tokens
        read = Read([], [], [], [])
        for first, part in parts(given):
            read.add(
                await self._reader.run(client, self._read, part, asked, truncate, first, field)
            )
            if read.total > most:
                raise too_large(read.total, most)
        return read

    async def read_pairs(
        self, query: str, documents: Sequence[str], *, truncate: bool, client: Hashable = None
    ) -> Read:
        """A query and then its documents; errors are those of `read`."""
        read = await self.read(
            [query], Asked("query"), truncate=truncate, field="query", client=client
        )
        read.add(
            await self.read(
                documents, Asked("document"), truncate=truncate, field="documents", client=client
            )
        )
        return read

    def submit(
        self, read: Read, timeout: float, *, client: Hashable = None, spent: float = 0.0
    ) -> Ticket:
        """Into the queue, as one request; its answer is a vector a text.

        Arguments and errors are those of `Batcher.submit`.
        """
        return self.batcher.submit(
            read.payloads, read.tokens, read.keys, timeout, client=client, spent=spent
        )

    def relevance(self, ticket: Ticket) -> np.ndarray:
        """Similarity of each document to the query, of what `read_pairs` gave."""
        query_E, *documents = ticket.answer.result()
        scores_1N = self.embedder.similarity(query_E[None], np.stack(documents))
        return np.asarray(scores_1N, np.float64)[0]

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
        self._reader.close()

    # ---- in the threads ---------------------------------------------------------------------

    def _read(
        self, given: Sequence[Given], asked: Asked, truncate: bool, first: int, field: str
    ) -> Read:
        texts, cut = [], []
        most = most_characters(self.max_tokens, self.settings)
        for place, each in enumerate(given, first):
            text = self._as_text(each, place, field)
            check_text(text, None if truncate else most, _index(place, field), field)
            cut.append(len(text) > most)
            texts.append(text[-most:] if self._keeps_the_end else text[:most])
        if not isinstance(self.embedder, EncodeMethods):
            lengths = [1 + len(text) // CHARACTERS_A_TOKEN for text in texts]
            return Read(texts, lengths, cut, [asked] * len(texts))
        found = self.embedder.tokenize(texts, **asked._asdict())
        if not self.embedder.for_role(asked.role).zero_if_empty:
            for place, inputs in enumerate(found, first):
                if not all(each.pooled.any() for each in inputs):
                    raise TextError(
                        _index(place, field), "no token is left of the text; leave it out", field
                    )
        cut = [
            was or any(each.truncated for each in inputs)
            for was, inputs in zip(cut, found, strict=True)
        ]
        if any(cut) and not truncate:
            place = cut.index(True)
            raise TextError(
                _index(first + place, field),
                f"{sum(each.full_length for each in found[place])} tokens, the model reads "
                f"{self.max_tokens}; split the text, or ask for truncate=true",
                field,
            )
        return Read(found, [sum(map(len, inputs)) for inputs in found], cut, [asked] * len(found))

    def _as_text(self, given: Given, place: int, field: str) -> str:
        if isinstance(given, str):
            return given
        if not isinstance(self.embedder, EncodeMethods):
            raise TextError(place, "this model takes no token ids; send texts", field)
        try:
            return ids_to_text(self.embedder.text_tokenizer, given)
        except InputError as error:
            raise TextError(place, str(error), field) from None

    @property
    def _keeps_the_end(self) -> bool:
        return isinstance(self.embedder, EncodeMethods) and self.embedder.text_tokenizer.from_left

    def _run(self, asked: Asked, payloads: list[Any]) -> Sequence[Any]:
        most = self.settings.max_batch_tokens
        # Short texts are not padded to a long one that happened to come with them.
        if isinstance(self.embedder, EncodeMethods) and self.embedder.backbone.layout != "packed":
            most = min(most, sum(len(each) for inputs in payloads for each in inputs))
        options = RunOptions(batch_tokens=most, show_progress_bar=False, truncate="silent")
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


def _index(place: int, field: str) -> int | None:
    """The place of a text in a field, if that holds a list."""
    return None if field == "query" else place
