"""The job "encode": texts of both sides, cut into pieces by a budget of tokens.

B queries, N documents, E vector size.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from polyvec.embed.embedder import Embedder
from polyvec.embed.encoding import BATCH_TOKENS, tokenize
from polyvec.embed.inputs.demonstrations import Example
from polyvec.embed.inputs.tokens import TokenBatch, Tokens, budget_batches
from polyvec.errors import DataError, InputError, SettingsError
from polyvec.interfaces import Prompt
from polyvec.train.engine import Piece

JOB = "encode"


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts of a piece: their tokens, the side they are read as, and the inputs of each text."""

    batch: TokenBatch
    role: str | None
    num_inputs: tuple[int, ...]


def encode(embedder: Embedder, texts: Texts, *, num_projections: int | None = None) -> Tensor:
    """Vectors before truncation, [texts, E]; the mean of a text that is read in several forms.

    num_projections: by the first projections only.
    """
    model = model_of(embedder, texts.role)
    return means(model(texts.batch, num_projections=num_projections), texts.num_inputs)


def encode_layers(embedder: Embedder, texts: Texts) -> Tensor:
    """Vectors by the states of every layer, the first first, [texts, L, E]."""
    return means(model_of(embedder, texts.role).layer_vectors(texts.batch), texts.num_inputs)


def model_of(embedder: Embedder, role: str | None) -> Embedder:
    return cast(Embedder, embedder.for_role(role)) if embedder.routes else embedder


def means(vectors: Tensor, num_inputs: Sequence[int]) -> Tensor:
    """The mean over the inputs of each text."""
    if max(num_inputs) == 1:
        return vectors
    counts = torch.tensor(num_inputs, device=vectors.device)
    owners = torch.repeat_interleave(torch.arange(len(counts), device=vectors.device), counts)
    sums = vectors.new_zeros(len(counts), *vectors.shape[1:]).index_add(0, owners, vectors)
    return sums / counts.view(-1, *[1] * (vectors.ndim - 1))


@dataclass(frozen=True, slots=True)
class Side:
    """How the texts of a side are read: its role, and the most tokens of a text."""

    role: str
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """A text as it is read: its tokens in one form or several, and where it comes from."""

    inputs: tuple[Tokens, ...]
    role: str

    def __len__(self) -> int:
        return sum(map(len, self.inputs))

    @property
    def truncated(self) -> bool:
        return any(each.truncated for each in self.inputs)


def read_texts(
    embedder: Embedder,
    side: Side,
    texts: Sequence[str],
    instructions: Sequence[str | None],
    places: Sequence[str],
    examples: Sequence[tuple[Example, ...]] | None = None,
) -> list[Read]:
    """The tokens of texts, each with its own instruction or else the stored prompt of its side.

    `examples` are the demonstrations before each text; None: those of the template.
    Raises DataError, beginning with the text's place, for a text that leaves nothing to pool.
    """
    model = model_of(embedder, side.role)
    found: list[Read | None] = [None] * len(texts)
    shown = [None] * len(texts) if examples is None else examples
    alike: dict[tuple[str | None, tuple[Example, ...] | None], list[int]] = {}
    for row, key in enumerate(zip(instructions, shown, strict=True)):
        alike.setdefault(key, []).append(row)
    with _reading(model, side.max_length):
        for (instruction, before), rows in alike.items():
            prompt = _prompt(model, instruction, side.role, before, places[rows[0]])
            try:
                tokens = tokenize(model, [texts[row] for row in rows], prompt)
            except InputError as error:
                raise DataError(f"{places[rows[0]]}: {error}") from None
            for row, inputs in zip(rows, tokens, strict=True):
                if not all(each.pooled.any() for each in inputs):
                    raise DataError(f"{places[row]}: a text is empty for this tokenizer")
                found[row] = Read(tuple(inputs), side.role)
    return cast(list[Read], found)


def _prompt(
    model: Embedder,
    instruction: str | None,
    role: str,
    examples: tuple[Example, ...] | None,
    place: str,
) -> Prompt:
    try:
        return model.prompt_for(instruction, role=role, examples=examples)
    except InputError as error:
        raise DataError(f"{place}: {error}") from None


@contextlib.contextmanager
def _reading(model: Embedder, max_length: int | None) -> Iterator[None]:
    """Inside, texts are cut at `max_length`; None: at the model's own length."""
    words = model.text_tokenizer
    own = words.contract
    specials = len(own.prefix) + len(own.suffix)
    if max_length is not None and max_length <= specials:
        raise SettingsError(
            f"max_length or query_max_length {max_length} leaves no room for a text "
            f"beside {specials} special tokens"
        )
    if max_length is not None and (own.max_length is None or max_length < own.max_length):
        words.contract = dataclasses.replace(own, max_length=max_length)
    try:
        yield
    finally:
        words.contract = own


def pieces(
    embedder: Embedder, texts: Sequence[Read], *, budget: int = 0
) -> tuple[list[Piece], list[int], int, int]:
    """Pieces of at most `budget` tokens, the longest first; each text's place, in their order.

    Also the number of tokens, and that with padding. A budget of 0 takes that of `encode`.
    """
    budget = budget or BATCH_TOKENS.get(embedder.device.type, 8192)
    packed = embedder.backbone.layout == "packed"
    sides = [text.role if embedder.routes else None for text in texts]
    made, order, num_computed = [], [], 0
    for side in dict.fromkeys(sides):
        mine = [place for place, each in enumerate(sides) if each == side]
        for batch in _cut([texts[place] for place in mine], budget, packed):
            chosen = [mine[place] for place in batch]
            inputs = [tokens for place in chosen for tokens in texts[place].inputs]
            lengths = [len(tokens) for tokens in inputs]
            num_computed += sum(lengths) if packed else max(lengths) * len(lengths)
            counts = tuple(len(texts[place].inputs) for place in chosen)
            payload = Texts(TokenBatch.of(range(len(inputs)), inputs), side, counts)
            made.append(Piece(JOB, payload, len(chosen)))
            order += chosen
    return made, order, sum(map(len, texts)), num_computed


def _cut(texts: Sequence[Read], budget: int, packed: bool) -> Iterator[list[int]]:
    """Rows of each piece: by their sum where nothing is padded, else by the longest."""
    lengths = [len(text) for text in texts]
    if not packed:
        yield from budget_batches(lengths, batch_tokens=budget)
        return
    piece: list[int] = []
    size = 0
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if piece and size + lengths[row] > budget:
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += lengths[row]
    if piece:
        yield piece
