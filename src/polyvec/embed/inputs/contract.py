"""The tokenizer contract: which special tokens a tokenizer puts around every text.

It is read from the tokenizer by probes at load and stored with the model: a missing or doubled
EOS is an error at load instead of a worse vector later (SILENT row 7).
"""

from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from polyvec.errors import TokenizerError

# A word, a sentence, and what byte-level and WordPiece tokenizers split into several tokens.
PROBES = ("a", "the cat sat on the mat", "Ünïcode 漢字 42!")
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


def read_contract(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> TokenizerContract:
    """The contract of a tokenizer, found by encoding probes with and without special tokens.

    Raises TokenizerError if special tokens differ from text to text, if BOS or EOS is added
    twice, or if the tokenizer promises one (`add_eos_token`) and does not add it.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{type(tokenizer).__name__} is a slow tokenizer without tokenizer.json; convert it "
            "with: AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder)"
        )
    backend = bare(tokenizer)
    prefix, suffix = _special_tokens(backend)
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


def _special_tokens(backend: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after any text; TokenizerError if they depend on the text."""
    found = set()
    for probe in PROBES:
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
