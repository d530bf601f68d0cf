"""Step 2: spans become token ids, token ids become batches.

The tokenizer contract says which special tokens stand around every text. It is read
from the tokenizer by probes at load and stored with the model: a missing or doubled
EOS is an error there instead of a worse vector later (SILENT row 7).
Masks come from lengths, never from ids, so a PAD that doubles as EOS is harmless.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from polyvec.embed.inputs.prompts import Span
from polyvec.embed.inputs.templates import ROLES, Template
from polyvec.errors import InputError, TokenizerError

PROBES = ("a", "the cat sat on the mat", "Ünïcode 漢字 42!")
NO_LIMIT = 1_000_000  # transformers writes 1e30 for "no limit"


class NoRoomError(InputError):
    """What stands around a text fills the model; `place` is the text's in the batch."""

    def __init__(self, place: int, fixed: int, room: int) -> None:
        super().__init__(
            f"what the template puts around the text has {fixed} tokens, the model reads {room} "
            "beside its special tokens: no text would be left"
        )
        self.place = place


@dataclass(frozen=True, slots=True)
class TokenizerContract:
    """What the tokenizer puts around a text, and how long the result may be.

    `prefix` and `suffix` are the special token ids before and after the text,
    `max_length` counts all tokens, specials included (None: no limit).
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    max_length: int | None
    vocab_size: int

    def as_dict(self) -> dict:
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as the model reads it: ids and, beside them, what each token is.

    `pooled`: its state enters the vector; `text`: it is of the user's text; `segments`: number of
    its segment, for masks between segments. `full_length` counts tokens before truncation.
    """

    ids: np.ndarray
    pooled: np.ndarray
    text: np.ndarray
    segments: np.ndarray
    full_length: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def truncated(self) -> bool:
        return self.full_length > len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Several texts without padding: their ids one after another, and their lengths.

    `rows` are the places of the texts in the caller's list; the rest is as in Tokens.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    ids_T: np.ndarray
    pooled_T: np.ndarray
    text_T: np.ndarray
    segments_T: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[int], tokens: Sequence[Tokens]) -> "TokenBatch":
        return cls(
            tuple(rows),
            tuple(len(t) for t in tokens),
            np.concatenate([t.ids for t in tokens]),
            np.concatenate([t.pooled for t in tokens]),
            np.concatenate([t.text for t in tokens]),
            np.concatenate([t.segments for t in tokens]),
        )

    @classmethod
    def of_ids(cls, texts: Sequence[np.ndarray]) -> "TokenBatch":
        """Bare ids, every token of the text and pooled."""
        ids = np.concatenate(texts).astype(np.int32)
        yes = np.ones(len(ids), bool)
        lengths = tuple(len(text) for text in texts)
        return cls(tuple(range(len(texts))), lengths, ids, yes, yes, np.zeros(len(ids), np.int8))

    def runs(self) -> list[tuple[int, int]]:
        """Runs of equal length as (number of texts, length), in order; their sum is T."""
        runs: list[list[int]] = []
        for length in self.lengths:
            if runs and runs[-1][1] == length:
                runs[-1][0] += 1
            else:
                runs.append([1, length])
        return [(count, length) for count, length in runs]


def read_contract(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> TokenizerContract:
    """The contract that a tokenizer keeps, found by encoding probes with and without specials.

    Raises TokenizerError if special tokens differ from text to text, if BOS or EOS come
    twice, or if the tokenizer promises one (`add_eos_token`) and does not add it.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{type(tokenizer).__name__} is a slow tokenizer without tokenizer.json; convert it "
            "with AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder)"
        )
    backend = bare(tokenizer)
    prefix, suffix = _specials(backend)
    _check_promises(tokenizer, prefix, suffix)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    if max_length is not None and max_length <= len(prefix) + len(suffix):
        raise TokenizerError(
            f"max_seq_length {max_length} leaves no room for text beside "
            f"{len(prefix) + len(suffix)} special tokens"
        )
    return TokenizerContract(prefix, suffix, pad_id, max_length, len(tokenizer))


def bare(tokenizer: PreTrainedTokenizerBase, *, specials_are_text: bool = False) -> Tokenizer:
    """A private copy of the Rust tokenizer that neither pads nor truncates."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = specials_are_text
    return backend


def _specials(backend: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found = set()
    for probe in PROBES:
        plain = backend.encode(probe, add_special_tokens=False).ids
        full = backend.encode(probe)
        if any(full.type_ids):
            raise TokenizerError(
                "the tokenizer marks single texts with token types (as XLNet's does), "
                "which polyvec does not pass on yet"
            )
        at = next((i for i in range(len(full.ids)) if full.ids[i : i + len(plain)] == plain), None)
        if at is None:
            raise TokenizerError(f"special tokens are not around the text in {full.tokens}")
        found.add((tuple(full.ids[:at]), tuple(full.ids[at + len(plain) :])))
    if len(found) != 1:
        raise TokenizerError(f"special tokens differ from text to text: {sorted(found)}")
    return found.pop()


def _check_promises(
    tokenizer: PreTrainedTokenizerBase, prefix: tuple[int, ...], suffix: tuple[int, ...]
) -> None:
    named = (
        ("BOS", prefix, tokenizer.bos_token_id, "add_bos_token"),
        ("EOS", suffix, tokenizer.eos_token_id, "add_eos_token"),
    )
    for name, added, token_id, promise in named:
        if token_id is not None and added.count(token_id) > 1:
            raise TokenizerError(
                f"the tokenizer adds {name} {added.count(token_id)} times (ids {list(added)}); "
                "the model was trained with one: fix the post-processor in tokenizer.json"
            )
        promised = tokenizer.init_kwargs.get(promise, False)
        if promised and not (token_id is not None and token_id in added):
            raise TokenizerError(
                f"tokenizer_config.json says {promise}=true, but the tokenizer adds {list(added)} "
                f"and no {name}; vectors would differ from training: "
                "add it to the post-processor in tokenizer.json"
            )


class TextTokenizer:
    """Makes token ids from spans and keeps the contract.

    Text spans are data: "[SEP]" in a text is tokenised as its characters, while
    a prompt's special tokens are special tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        lower_case: bool = False,
    ) -> None:
        self.hf = tokenizer
        self.lower_case = lower_case
        self.wants_text = False  # set where a pooling asks which tokens are the text's
        self.contract = read_contract(tokenizer, max_length)
        self._markup = bare(tokenizer)
        self._data = bare(tokenizer, specials_are_text=True)
        specials = [
            t.content for t in self._markup.get_added_tokens_decoder().values() if t.special
        ]
        self._special = re.compile("|".join(map(re.escape, specials))) if specials else None

    @property
    def max_length(self) -> int | None:
        return self.contract.max_length

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        self.contract = read_contract(self.hf, value)

    def special_tokens(self) -> dict[str, str | None]:
        """What a template writes for {bos}, {eos} and {mask}: None where the tokenizer adds it."""
        hf, contract = self.hf, self.contract
        return {
            "bos": None if hf.bos_token_id in contract.prefix else hf.bos_token,
            "eos": None if hf.eos_token_id in contract.suffix else hf.eos_token,
            "mask": hf.mask_token,
        }

    def check_ends(self, template: Template) -> None:
        """Raises TokenizerError where template and tokenizer together double BOS or EOS."""
        values: dict[str, Any] = {
            name: "a" for role in ROLES for name in template.slots(role) if name != "text"
        }
        values.pop("examples", None)
        for role in ROLES:
            mine = {
                k: v for k, v in values.items() if k in template.slots(role)
            } | self.special_tokens()
            for spans in template.render("a", role, **mine):
                inside, _ = self._marked(spans)
                ids = [*self.contract.prefix, *inside.tolist(), *self.contract.suffix]
                ends = (
                    ("BOS", self.hf.bos_token_id, ids[:2]),
                    ("EOS", self.hf.eos_token_id, ids[-2:]),
                )
                for name, token, found in ends:
                    if token is not None and found == [token, token]:
                        raise TokenizerError(
                            f"template {template.name!r} writes {name} and the tokenizer adds one "
                            f"too ({role} form): write {{{name.lower()}}}, which never doubles it"
                        )

    def encode(self, batch: Sequence[tuple[Span, ...]]) -> list[Tokens]:
        """Token ids of each text, in order.

        Raises NoRoomError where fixed spans leave no room for the text.
        """
        plain = [i for i, spans in enumerate(batch) if self._is_plain(spans)]
        joined = [self._case("".join(span.text for span in batch[i])) for i in plain]
        encoded = self._data.encode_batch_fast(joined, add_special_tokens=False)
        out: list[Tokens | None] = [None] * len(batch)
        for i, enc in zip(plain, encoded, strict=True):
            ids = np.asarray(enc.ids, np.int32)
            out[i] = self._finish(ids, np.zeros(len(ids), np.intp), batch[i][-1:], i)
        return [
            t if t is not None else self._finish(*self._marked(batch[i]), batch[i], i)
            for i, t in enumerate(out)
        ]

    def _case(self, text: str) -> str:
        return text.lower() if self.lower_case else text

    def _is_plain(self, spans: tuple[Span, ...]) -> bool:
        """True if nothing tells the tokens of the spans apart: one fast call."""
        if self.wants_text and len(spans) > 1:
            return False
        return all(
            span.pooled
            and not span.fixed
            and not span.segment
            and not (span.markup and self._special and self._special.search(span.text))
            for span in spans
        )

    def _marked(self, spans: tuple[Span, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of spans that need offsets or special tokens, and each token's span."""
        ids: list[int] = []
        owners: list[int] = []
        for piece in self._pieces(spans):
            if isinstance(piece[0], int):
                ids.append(piece[0])
                owners.append(piece[1])
            else:
                piece_ids, piece_owners = self._run(piece)
                ids += piece_ids
                owners += piece_owners
        return np.asarray(ids, np.int32), np.asarray(owners, np.intp)

    def _pieces(self, spans: tuple[Span, ...]) -> Iterator[tuple]:
        """Special tokens as (id, span), and between them runs of (text, span) read together."""
        run: list[tuple[str, int]] = []
        for owner, span in enumerate(spans):
            text = span.text
            while span.markup and self._special and (hit := self._special.search(text)):
                if hit.start():
                    run.append((text[: hit.start()], owner))
                if run:
                    yield tuple(run)
                    run = []
                yield self._markup.token_to_id(hit.group()), owner
                text = text[hit.end() :]
            if text:
                run.append((text, owner))
        if run:
            yield tuple(run)

    def _run(self, pieces: tuple[tuple[str, int], ...]) -> tuple[list[int], list[int]]:
        """Pieces tokenised as one string, as in training; offsets say whose a token is."""
        texts = [self._case(text) for text, _ in pieces]
        encoding = self._data.encode("".join(texts), add_special_tokens=False)
        ends = np.cumsum([len(t) for t in texts])
        # A token that covers a boundary belongs to the span it ends in: sentencepiece joins
        # the space before a word to it, and that word is the text's.
        last = [max(end - 1, start) for start, end in encoding.offsets]
        place = np.searchsorted(ends, last, side="right").clip(max=len(pieces) - 1)
        return encoding.ids, [pieces[i][1] for i in place]

    def _finish(
        self, ids: np.ndarray, owners: np.ndarray, spans: tuple[Span, ...], place: int
    ) -> Tokens:
        """Truncate the text, never the special tokens around it, then put those on."""
        prefix, suffix = self.contract.prefix, self.contract.suffix
        full = len(ids) + len(prefix) + len(suffix)
        fixed = np.array([span.fixed for span in spans], bool)
        if self.max_length is not None and full > self.max_length:
            room = self.max_length - len(prefix) - len(suffix)
            keep = _keep(owners, fixed, room, self.hf.truncation_side == "left", place)
            ids, owners = ids[keep], owners[keep]
        pooled = np.array([span.pooled for span in spans], bool)[owners]
        if fixed.any() and len(pooled) and not pooled.any():
            pooled[-1] = True  # an empty text: what the model makes of the words around it
        text = ~(fixed | np.array([span.markup for span in spans], bool))[owners]
        parts = np.array([span.segment for span in spans], np.int8)[owners]
        # BOS goes with an excluded prompt, as in INSTRUCTOR and sentence-transformers; the
        # closing token is pooled but where a template ends in words that are not.
        head = bool(pooled[0]) if len(pooled) else True
        tail = bool(pooled[-1]) if len(pooled) and fixed.any() else True
        around = lambda first, array, last: np.concatenate(  # noqa: E731
            [np.full(len(prefix), first), array, np.full(len(suffix), last)]
        ).astype(array.dtype)
        ids = np.concatenate([np.asarray(prefix, np.int32), ids, np.asarray(suffix, np.int32)])
        last_part = parts[-1] if len(parts) else 0
        return Tokens(
            ids,
            around(head, pooled, tail),
            around(False, text, False),
            around(0, parts, last_part),
            full,
        )


def _keep(
    owners: np.ndarray, fixed: np.ndarray, room: int, from_left: bool, place: int
) -> np.ndarray | slice:
    """Which tokens stay so that at most `room` do: fixed spans whole, the others cut alike.

    Copies of a text (echo) keep the same number of tokens, or the second would lose what the
    first still says. Without fixed spans the end is cut, as by every tokenizer.
    """
    if not fixed.any():
        return slice(-room, None) if from_left else slice(room)
    counts = np.bincount(owners, minlength=len(fixed))
    left = room - int(counts[fixed].sum())
    cap = 0
    while np.minimum(counts[~fixed], cap + 1).sum() <= left and cap < counts.max():
        cap += 1
    if cap == 0:
        raise NoRoomError(place, int(counts[fixed].sum()), room)
    rank = np.zeros(len(owners), np.intp)
    for span in np.flatnonzero(~fixed):
        mine = np.flatnonzero(owners == span)
        rank[mine] = np.arange(len(mine))[::-1] if from_left else np.arange(len(mine))
    return np.flatnonzero(fixed[owners] | (rank < cap))


def budget_batches(
    lengths: Sequence[int], *, batch_tokens: int, batch_size: int | None = None
) -> Iterable[list[int]]:
    """Rows in batches of at most `batch_tokens` tokens and `batch_size` texts, longest first.

    Sorting is by token count (sorting by characters wastes 11 to 43 % on padding);
    the longest batch comes first, so memory that does not suffice shows at once.
    """
    if batch_tokens < 1 or (batch_size is not None and batch_size < 1):
        raise InputError(f"batch size must be at least 1, got {batch_size or batch_tokens}")
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batch[0]] if batch else lengths[row]
        full = batch_size is not None and len(batch) >= batch_size
        if batch and (full or longest * (len(batch) + 1) > batch_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
