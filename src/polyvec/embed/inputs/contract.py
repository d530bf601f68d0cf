"""The tokenizer contract: which special tokens a tokenizer puts around every text.

It is read from the tokenizer by probes at load and stored with the model: a missing or doubled
EOS is an error at load instead of a worse vector later (SILENT row 7).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, normalizers, processors

from polyvec.errors import InputError, TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What tokenizers of all kinds split differently: spaces, lines, case, accents, digits, scripts.
PROBES = (
    "",
    " ",
    "a",
    "The cat sat on the mat.",
    " leading and trailing ",
    "two  spaces,\ttabs\nand\r\n\nlines",
    "Ünïcode Café İstanbul ﬁne e\u0301",
    "don't; it's (so-called) #1: 3.14159 or 1,234,567 at 50%!?",
    "漢字とかな 한국어 العربية हिन्दी ไทย Привет",
    "🎉👩‍👩‍👧 x² µ",
    "UPPER lowercase MiXeD snake_case camelCase",
    "https://example.org/a?b=c&d=e def f(x): return x**2",
)
# A word, a sentence, and what byte-level and WordPiece tokenizers split into several tokens.
WORDS = ("a", "the cat sat on the mat", "Ünïcode 漢字 42!")
NO_LIMIT = 1_000_000  # transformers writes 1e30 for "no limit"


@dataclass(frozen=True, slots=True)
class TokenizerContract:
    """What the tokenizer puts around a text, and how long the result may be.

    `prefix` and `suffix` are the special token ids before and after the text; `max_length`
    counts all tokens, special tokens included (None: no limit).
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    max_length: int | None
    vocab_size: int

    def as_dict(self) -> dict[str, Any]:
        """The contract as plain values, as it is saved."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    def limited(self, max_length: int | None) -> TokenizerContract:
        """The contract with this length; TokenizerError if it leaves no room for text."""
        if max_length is not None:
            check_count("max_seq_length", max_length)
        ends = len(self.prefix) + len(self.suffix)
        if max_length is not None and max_length <= ends:
            raise TokenizerError(
                f"max_seq_length {max_length} leaves no room for text beside {ends} special tokens"
            )
        return replace(self, max_length=max_length)


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises TokenizerError for a tokenizer in Python, which has no offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{type(tokenizer).__name__} is a tokenizer in Python, which transformers cannot "
            "convert; write a tokenizer.json of the same vocabulary beside it"
        )


def check_count(name: str, value: object) -> None:
    """Raises InputError for a number of tokens, texts or dimensions that is not a whole one."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a whole number from 1")


def read_contract(
    tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, copy: Tokenizer | None = None
) -> TokenizerContract:
    """The contract of a tokenizer, found by encoding probes with and without special tokens.

    `copy` is its `bare` copy, if there is one already: copies cost the most of loading.

    Raises TokenizerError if special tokens differ from text to text, if BOS or EOS is added
    twice, or if the tokenizer promises one (`add_eos_token`) and does not add it.
    """
    check_fast(tokenizer)
    if copy is None:
        with unlimited(tokenizer.backend_tokenizer) as backend:
            prefix, suffix = _special_tokens(backend)
    else:
        prefix, suffix = _special_tokens(copy)
    _check_promises(tokenizer, prefix, suffix)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return TokenizerContract(prefix, suffix, pad_id, None, len(tokenizer)).limited(max_length)


@contextlib.contextmanager
def unlimited(backend: Tokenizer) -> Iterator[Tokenizer]:
    """Inside, the tokenizer itself neither pads nor truncates; not for use beside other threads."""
    padding, truncation = backend.padding, backend.truncation
    backend.no_padding()
    backend.no_truncation()
    try:
        yield backend
    finally:
        if padding is not None:
            backend.enable_padding(**padding)
        if truncation is not None:
            backend.enable_truncation(**truncation)


def bare(
    tokenizer: PreTrainedTokenizerBase, *, specials_are_text: bool = False, lower_case: bool = False
) -> Tokenizer:
    """A private copy of the Rust tokenizer that neither pads nor truncates."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = specials_are_text
    if lower_case:
        # In front of its own steps, as sentence-transformers does: special tokens keep their case.
        own = backend.normalizer
        steps = [normalizers.Lowercase(), *([own] if own else [])]
        backend.normalizer = normalizers.Sequence(steps)
    return backend


def keep_promises(
    tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], *, where: object
) -> None:
    """Adds BOS and EOS where `settings` say so and tokenizer.json does not (SILENT row 35).

    e5-mistral and gte-Qwen2 pool the EOS that only tokenizer_config.json promises; transformers 5
    drops `add_eos_token` where there is a tokenizer.json. A tokenizer.json that adds more than
    is promised is left alone, as in transformers 5. Raises TokenizerError, saying where, if the
    promised token is not named.
    """
    promised = [name for name in ("bos", "eos") if settings.get(f"add_{name}_token")]
    if not promised or not getattr(tokenizer, "is_fast", False):
        return
    prefix, suffix = _special_tokens(bare(tokenizer))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for name, token_id in (("bos", bos), ("eos", eos)):
        if name in promised and token_id is None:
            raise TokenizerError(
                f"{where}: add_{name}_token=true, but the tokenizer has no {name}_token; name it"
            )
    added_bos = (bos,) if "bos" in promised and bos not in prefix else ()
    added_eos = (eos,) if "eos" in promised and eos not in suffix else ()
    if added_bos or added_eos:
        set_ends(tokenizer.backend_tokenizer, (*added_bos, *prefix), (*suffix, *added_eos))


def set_ends(backend: Tokenizer, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> None:
    """Make the tokenizer put these ids around every text; ByteLevel's offsets stay trimmed."""
    tokens = {i: str(backend.id_to_token(i)) for i in (*prefix, *suffix)}
    # The syntax of templates has no quotes for tokens that hold its own signs.
    names = {
        i: f"token_{i}" if re.search(r"[:$\s]", token) else token for i, token in tokens.items()
    }
    before, after = [f"{names[i]}:0" for i in prefix], [f"{names[i]}:0" for i in suffix]
    ends = processors.TemplateProcessing(
        single=[*before, "$A:0", *after],
        pair=[*before, "$A:0", *after, *before, "$B:0", *after],
        special_tokens=[
            {"id": names[i], "ids": [i], "tokens": [token]} for i, token in tokens.items()
        ],
    )
    old = backend.post_processor
    kinds = json.loads(old.__getstate__()) if old is not None else {}
    steps = kinds.get("processors", [kinds])
    keeps = [
        processors.ByteLevel(**{k: step[k] for k in ("add_prefix_space", "trim_offsets")})
        for step in steps
        if step.get("type") == "ByteLevel"
    ]
    backend.post_processor = processors.Sequence([*keeps, ends]) if keeps else ends


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: int | None, *, where: str) -> None:
    """Raises TokenizerError if a text can have a token without a row in the embedding table.

    Special tokens without a row, such as a [PAD] that was added for training, are let through
    unless they are put around every text: in a text they are characters. `rows` is None where
    the table is not known.
    """
    backend = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder()
    size = backend.get_vocab_size(with_added_tokens=False)
    if rows is None or max([size - 1, *added]) < rows:
        return
    special = {i for i, token in added.items() if token.special}
    ends = _special_tokens(bare(tokenizer))
    without = sorted(
        (i, token)
        for token, i in backend.get_vocab(with_added_tokens=True).items()
        if i >= rows and (i not in special or i in ends[0] or i in ends[1])
    )
    if without:
        raise TokenizerError(
            f"{where}: token {without[0][1]!r} (id {without[0][0]}) has no row in the embedding "
            f"table, which has {rows} rows for {len(tokenizer)} tokens; resize it with "
            "model.resize_token_embeddings(len(tokenizer)), or take the model's own tokenizer"
        )


def _special_tokens(backend: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after any text; TokenizerError if they depend on the text."""
    found = set()
    for probe in WORDS:
        plain = backend.encode(probe, add_special_tokens=False).ids
        full = backend.encode(probe)
        if any(full.type_ids):
            raise TokenizerError(
                "the tokenizer gives the tokens of a single text different token types (as XLNet's "
                "does), which polyvec does not support"
            )
        at = next((i for i in range(len(full.ids)) if full.ids[i : i + len(plain)] == plain), None)
        if at is None:
            raise TokenizerError(f"the tokens of the text are not contiguous in {full.tokens}")
        found.add((tuple(full.ids[:at]), tuple(full.ids[at + len(plain) :])))
    if len(found) != 1:
        raise TokenizerError(f"special tokens differ from text to text: {sorted(found)}")
    return found.pop()


def _check_promises(
    tokenizer: PreTrainedTokenizerBase, prefix: tuple[int, ...], suffix: tuple[int, ...]
) -> None:
    """Raises TokenizerError for a BOS or EOS that is added twice, or declared and not added."""
    named = (
        ("BOS", prefix, tokenizer.bos_token_id, "add_bos_token"),
        ("EOS", suffix, tokenizer.eos_token_id, "add_eos_token"),
    )
    for name, added, token_id, promise in named:
        if token_id is not None and added.count(token_id) > 1:
            raise TokenizerError(
                f"the tokenizer adds {name} {added.count(token_id)} times (ids {list(added)}); "
                "the model was trained with one; fix the post-processor in tokenizer.json"
            )
        promised = tokenizer.init_kwargs.get(promise, False)
        if promised and not (token_id is not None and token_id in added):
            raise TokenizerError(
                f"tokenizer_config.json says {promise}=true, but the tokenizer adds {list(added)} "
                f"and no {name}, so vectors would differ from training; "
                "add it to the post-processor in tokenizer.json"
            )
