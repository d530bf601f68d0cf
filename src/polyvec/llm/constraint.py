"""Which tokens an answer may consist of: constrained decoding of a local model.

A compiled schema makes one `TokenConstraint` for each answer. V: numbers in a row of logits.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.inputs.contract import bare
from polyvec.errors import GenerationError, MissingExtraError
from polyvec.llm.schema import check_schema

# At most one space after a comma or colon: small models otherwise write blanks without end. No
# \uXXXX: every character can be written as itself, and half a surrogate pair is none.
WRITING: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
    "coerce_one_of": False,
}
# What a tokenizer must give back as it was.
PROBE = '{"Key one": [-12.5e3, true, null], "b": "it is \\n, \\"so\\"."}'


class TokenConstraint(Protocol):
    """What may come next in one answer.

    It is asked once before each token, in order: `new_ids` are all tokens of the answer so far,
    one more than the last time, so an automaton may move on by the last of them.
    """

    def allowed(self, new_ids: Sequence[int]) -> Tensor:
        """True where a token may come next, bool [V], on the CPU; the ends of an answer included.

        The token is the likeliest of these, or drawn among them. None allowed is an error.
        """

    def is_done(self, new_ids: Sequence[int]) -> bool:
        """Whether the answer is complete and ends here, without a token for its end."""


class SchemaConstraint:
    """JSON of a schema, by llguidance's `matcher`; one for each answer.

    `never` are tokens that are no text; `ends` may come where the value may be complete.
    """

    def __init__(
        self, matcher: Any, num_logits: int, never: Sequence[int], ends: Sequence[int]
    ) -> None:
        self._matcher, self._num_logits = matcher, num_logits
        self._never, self._ends = list(never), list(ends)
        self._num_read = 0

    def allowed(self, new_ids: Sequence[int]) -> Tensor:
        """See TokenConstraint; GenerationError if the schema grew too complex to follow."""
        self._read(new_ids)
        self._check()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        known = np.unpackbits(bits, bitorder="little")[: self._num_logits]
        allowed_V = np.zeros(self._num_logits, np.bool_)  # logits beyond the vocabulary: never
        allowed_V[: len(known)] = known
        allowed_V[self._never] = False
        allowed_V[self._ends] = self._matcher.is_accepting()
        return torch.from_numpy(allowed_V)

    def is_done(self, new_ids: Sequence[int]) -> bool:
        self._read(new_ids)
        return bool(self._matcher.is_stopped() and self._matcher.is_accepting())

    def _read(self, new_ids: Sequence[int]) -> None:
        self._matcher.consume_tokens(list(new_ids[self._num_read :]))
        self._num_read = len(new_ids)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(f"schema: it could not be followed ({_reason(self._matcher)})")


def compile_schema(
    schema: Mapping[str, Any], tokenizer: Any, num_logits: int, end_ids: Collection[int]
) -> Callable[[], TokenConstraint]:
    """A function that makes the constraint of one answer; called once for a call of `generate`.

    `tokenizer` is transformers', `num_logits` is V, and a token of `end_ids` ends an answer. An
    answer is compact JSON, with at most a space after commas and colons, its keys in the order of
    the schema. What has no bound in the schema may be written until max_new_tokens: give strings
    a maxLength, arrays maxItems and numbers a minimum and a maximum. The model does not know of
    these bounds: a string that reaches its maxLength ends in the middle of a word, so leave room.
    Formats are held to by their form alone (February 31 is a date), and free keys
    (additionalProperties, patternProperties) may come twice; then the answer has an error.

    Raises GenerationError for a schema that cannot be held to (uniqueItems, not, if, contains, an
    overlapping oneOf, patterns with lookaround), or that no value satisfies.
    """
    check_schema(schema)
    known = _tokenizer(tokenizer, num_logits)
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(json.dumps(dict(schema)), overrides=WRITING)
    first = LLMatcher(known, grammar, log_level=0)
    if first.is_error():
        raise GenerationError(
            f"schema: constrained decoding cannot hold to it ({_reason(first)}); leave that out, "
            "or ask a server that can"
        )
    first.compute_bitmask()
    if first.is_error() or first.is_stopped():
        raise GenerationError("schema: no value satisfies it, or only one with \\u escapes")
    ends = [each for each in end_ids if each < num_logits]
    never = [each for each in _not_text(tokenizer, known) if each < num_logits]
    return lambda: SchemaConstraint(first.deep_copy(), num_logits, never, ends)


_TOKENIZERS: "WeakKeyDictionary[Any, dict[tuple[int, int], Any]]" = WeakKeyDictionary()


def _tokenizer(tokenizer: Any, num_logits: int) -> Any:
    """The tokenizer as llguidance knows it, made once (0.4 s for 49,152 tokens)."""
    size = len(tokenizer)
    made = _TOKENIZERS.setdefault(tokenizer, {})
    if (size, num_logits) not in made:
        made[size, num_logits] = _read_tokenizer(tokenizer, max(size, num_logits))
    return made[size, num_logits]


def _read_tokenizer(tokenizer: Any, size: int) -> Any:
    try:
        from llguidance import LLTokenizer
    except ImportError:
        raise MissingExtraError("llguidance", "llm", "an answer by a JSON schema") from None
    encoder = bare(tokenizer)
    end = tokenizer.eos_token_id
    try:
        known = LLTokenizer(encoder.to_str(), n_vocab=size, eos_token=0 if end is None else end)
    except ValueError as error:
        raise GenerationError(
            f"constrained decoding cannot read this tokenizer ({' '.join(str(error).split())})"
        ) from None
    ids = encoder.encode(PROBE, add_special_tokens=False).ids
    read, written = known.decode_bytes(ids).decode(errors="replace"), tokenizer.decode(ids)
    if read.strip() != PROBE or written.strip() != PROBE:
        raise GenerationError(
            "constrained decoding needs a tokenizer that gives every text back as it was; this "
            f"one makes {written!r} of {PROBE!r}"
        )
    return known


def _not_text(tokenizer: Any, known: Any) -> set[int]:
    """Special tokens, which decoding leaves out, and what llguidance takes for the end."""
    added = tokenizer.added_tokens_decoder.items()
    special = {number for number, token in added if token.special}
    return special | set(tokenizer.all_special_ids) | set(known.eos_tokens)


def _reason(matcher: Any) -> str:
    """llguidance's error in one line, without its state and grammar."""
    text = matcher.get_error().split("\n<state>")[0]
    return " ".join(text.split())[:200]
