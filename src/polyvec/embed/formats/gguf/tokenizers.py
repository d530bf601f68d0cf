"""The tokenizer that a GGUF file's metadata describe.

A file names one of llama.cpp's four algorithms (tokenizer.ggml.model) and, for byte-level BPE, how
texts are split before (tokenizer.ggml.pre). llama.cpp has those rules in its code
(src/llama-vocab.cpp), transformers (5.23) knows some and takes GPT-2's for the others: two
spaces before a number would become other tokens of SmolLM. Here a name that is not known is
refused. Unicode normalisation and merges follow the tokenizer.json of the models that the names
are from.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from polyvec.embed.formats.gguf.file import GgufFile
from polyvec.embed.inputs.contract import set_ends
from polyvec.errors import PolyvecError, TokenizerError, known

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # of tokenizer.ggml.token_type
SPACE = "\u2581"
PADDING = re.compile(r"^\[PAD\d+\]$")  # llama.cpp fills the vocabulary up to the table's rows

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_MARKS = r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
_QWEN35 = _CONTRACTIONS + _MARKS + r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    + _SLASH
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}" + _SLASH
)


# Of bigscience/bloom's tokenizer.json, which llama.cpp has, too (src/llama-vocab.cpp).
_BLOOM = r" ?[^()|\s.,!?…。，、।۔،]+"


def _falcon() -> pre_tokenizers.PreTokenizer:
    """Of tiiuae/falcon-7b's tokenizer.json, as ggml-org/llama.cpp issue 3502 quotes it.

    llama.cpp's own (src/llama-vocab.cpp) leaves spaces before one or two digits.
    """
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated"),
        ]
    )


@dataclass(frozen=True, slots=True)
class Split:
    """How byte-level BPE splits a text first: by a pattern, else by GPT-2's own.

    digits: each by itself before. own: the steps instead of these. nfc: normalised so before all.
    whole: a piece that is a token is that token, whatever the merges give (ignore_merges). bos,
    eos: added where the file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    own: Callable[[], pre_tokenizers.PreTokenizer] | None = None
    nfc: bool = False
    whole: bool = False
    bos: bool = False
    eos: bool = False

    def steps(self) -> pre_tokenizers.PreTokenizer:
        if self.own is not None:
            return self.own()
        byte_level = pre_tokenizers.ByteLevel
        if self.pattern is not None:
            split = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated")
            plain = byte_level(add_prefix_space=False, use_regex=False)
            return pre_tokenizers.Sequence([split, plain])
        gpt2 = byte_level(add_prefix_space=False, use_regex=True)
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, gpt2]) if self.digits else gpt2


_GPT2, _DIGITS, _NEOX = Split(), Split(digits=True), Split(nfc=True)
SPLITS = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "roberta-bpe": Split(bos=True, eos=True),
    "olmo": _NEOX,
    "mpt": _NEOX,
    "modern-bert": Split(nfc=True, bos=True, eos=True),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": Split(digits=True, nfc=True),
    "qwen2": Split(_QWEN2, nfc=True),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"), Split(_LLAMA3, whole=True, bos=True)
    ),
    "tekken": Split(_TEKKEN, whole=True, bos=True),
    "gpt-4o": Split(_GPT4O),
    "minimax-m2": Split(_GPT4O),
    "qwen35": Split(_QWEN35, nfc=True),
    "bloom": Split(_BLOOM),
    "falcon": Split(own=_falcon),
}


@dataclass(frozen=True, slots=True)
class _Built:
    """A tokenizer without special tokens; whether it adds BOS and EOS where the file is silent.

    ids: of special tokens, where the file is silent.
    """

    backend: Tokenizer
    bos: bool
    eos: bool
    ids: dict[str, int]


def read_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer of the file; TokenizerError for one that is not known, or not whole."""
    model = file.get("tokenizer.ggml.model", str)
    if model not in MODELS:
        raise TokenizerError(f"{file.path}: tokenizer {model!r} is not read.{known(model, MODELS)}")
    tokens, kinds = _vocabulary(file)
    try:
        built = MODELS[model](file, tokens, kinds)
        _add_special(built.backend, tokens, kinds)
    except PolyvecError:
        raise
    except Exception as error:  # noqa: BLE001 - the Rust tokenizer raises bare Exception
        raise TokenizerError(
            f"{file.path}: cannot build the tokenizer ({' '.join(str(error).split())[:200]})"
        ) from None
    named = _named(file, tokens, built.ids)
    found = PreTrainedTokenizerFast(
        tokenizer_object=built.backend,
        model_max_length=file.of("context_length", int),
        clean_up_tokenization_spaces=False,
        model_input_names=[
            "input_ids",
            *(["token_type_ids"] * (model == "bert")),
            "attention_mask",
        ],
        **{f"{name}_token": tokens[token_id] for name, token_id in named.items()},
    )
    template = _chat_template(file)
    if template:
        found.chat_template = template
    _put_ends(file, found, built, named)
    return found


def _vocabulary(file: GgufFile) -> tuple[list[str], list[int]]:
    """Tokens and their types in the order of their ids, without the padding at the end."""
    tokens = file.get("tokenizer.ggml.tokens", list)
    kinds = file.get("tokenizer.ggml.token_type", list, [NORMAL] * len(tokens))
    whole = all(type(token) is str for token in tokens) and all(type(kind) is int for kind in kinds)
    if not tokens or not whole or len(kinds) != len(tokens):
        raise TokenizerError(
            f"{file.path}: tokenizer.ggml.tokens and token_type are not lists of the same length"
        )
    end = len(tokens)
    while end and kinds[end - 1] == UNUSED and PADDING.match(tokens[end - 1]):
        end -= 1
    tokens = [token or f"[EMPTY_{place}]" for place, token in enumerate(tokens[:end])]
    if len(set(tokens)) != end:
        twice = Counter(tokens).most_common(1)[0][0]
        raise TokenizerError(f"{file.path}: token {twice!r} has two ids")
    return tokens, kinds[:end]


def _byte_level(file: GgufFile, tokens: list[str], kinds: list[int]) -> _Built:
    """GPT-2's algorithm."""
    name = file.get("tokenizer.ggml.pre", str, "")
    if name not in SPLITS:
        told = f"pre-tokenizer {name[:40]!r} is not known" if name else "no pre-tokenizer is named"
        raise TokenizerError(
            f"{file.path}: {told} (tokenizer.ggml.pre), and another one gives other tokens."
            f"{known(name, SPLITS)} Take the safetensors of the original, or convert them again"
        )
    split = SPLITS[name]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    model = models.BPE(vocabulary, _merges(file), ignore_merges=split.whole)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC() if split.nfc else None
    backend.pre_tokenizer = split.steps()
    backend.decoder = decoders.ByteLevel()
    return _Built(backend, split.bos, split.eos, {})


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    merges = file.get("tokenizer.ggml.merges", list)
    pairs = [tuple(str(merge).split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise TokenizerError(f"{file.path}: tokenizer.ggml.merges are not pairs of tokens")
    return pairs  # type: ignore[return-value]


def _sentencepiece(file: GgufFile, tokens: list[str], kinds: list[int]) -> _Built:
    """sentencepiece's BPE, whose merges are those of the best tokens first.

    A space is put before every text, one that starts with a space included, as sentencepiece and
    llama.cpp do; transformers' LlamaTokenizer does not there.
    """
    gemma = file.architecture.startswith("gemma")
    if gemma:  # its runs of spaces are written as spaces
        blank = [" " in token and not token.strip() for token in tokens]
        tokens[:] = [SPACE * len(t) if b else t for t, b in zip(tokens, blank, strict=True)]
        kinds[:] = [NORMAL if b else kind for kind, b in zip(kinds, blank, strict=True)]
    scores = _scores(file, len(tokens))
    if gemma:  # its merges are in the order of the tokens, not of their scores
        scores = [-float(place) for place in range(len(tokens))]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    special = {t for t, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, 6)}
    merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)), special)
    unknown = file.get("tokenizer.ggml.unknown_token_id", int, 0)
    model = models.BPE(
        vocabulary,
        merges,
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback="<0x0A>" in vocabulary,
    )
    backend = Tokenizer(model)
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return _Built(backend, True, False, {"bos": 1, "eos": 2, "unk": 0})


def _scores(file: GgufFile, count: int) -> list[float]:
    scores = file.get("tokenizer.ggml.scores", list)
    if len(scores) < count or any(type(score) is not float for score in scores):
        raise TokenizerError(f"{file.path}: tokenizer.ggml.scores is not a list of {count} numbers")
    return scores[:count]


def _word_piece(file: GgufFile, tokens: list[str], kinds: list[int]) -> _Built:
    """BERT's algorithm; llama.cpp marks the starts of words instead of their continuations.

    Whether a text is lower-cased is not in the file. A vocabulary with a capital letter of ASCII
    has been made without.
    """
    tokens[:] = [_with_marks(token, kind) for token, kind in zip(tokens, kinds, strict=True)]
    words = [t for t, kind in zip(tokens, kinds, strict=True) if kind == NORMAL and t[0] != "["]
    lower = not any(re.search("[A-Z]", token) for token in words)
    lower = file.get("tokenizer.ggml.normalizer.lowercase", bool, lower)
    ids = {"cls": 101, "sep": 102, "unk": 100, "pad": 0, "mask": 103}
    unknown = file.get("tokenizer.ggml.unknown_token_id", int, ids["unk"])
    vocabulary = {token: place for place, token in enumerate(tokens)}
    model = models.WordPiece(vocabulary, unk_token=tokens[unknown], max_input_chars_per_word=100)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return _Built(backend, True, True, ids)


def _with_marks(token: str, kind: int) -> str:
    if token.startswith(SPACE) and kind != CONTROL:
        return token[1:]
    # Older converters leave everything in brackets as it is.
    bracketed = len(token) > 2 and token.startswith("[") and token.endswith("]")
    return token if kind == CONTROL or bracketed else f"##{token}"


def _unigram(file: GgufFile, tokens: list[str], kinds: list[int]) -> _Built:
    """sentencepiece's unigram model, as XLM-R has it."""
    scores = _scores(file, len(tokens))
    unknown = file.get("tokenizer.ggml.unknown_token_id", int, 2)
    if file.get("tokenizer.ggml.treat_whitespace_as_suffix", bool, False):
        raise TokenizerError(f"{file.path}: spaces behind words are not read")
    backend = Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), unknown, False))
    table = file.metadata.get("tokenizer.ggml.precompiled_charsmap")
    if table:
        backend.normalizer = normalizers.Precompiled(bytes(byte & 255 for byte in table))
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    space = pre_tokenizers.Metaspace(SPACE, "always" if prefix else "never", split=True)
    words = file.get("tokenizer.ggml.remove_extra_whitespaces", bool, True)
    steps = [pre_tokenizers.WhitespaceSplit(), space]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if words else space
    backend.decoder = decoders.Metaspace(SPACE, "always" if prefix else "never")
    return _Built(backend, False, True, {"eos": 1, "unk": 2, "pad": 0})


MODELS: dict[str, Callable[[GgufFile, list[str], list[int]], _Built]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "bert": _word_piece,
    "t5": _unigram,
}


def _add_special(backend: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """Tokens that are never split: control tokens as special, the user's as plain ones."""
    for wanted, special in ((CONTROL, True), (USER_DEFINED, False)):
        found = [t for t, kind in zip(tokens, kinds, strict=True) if kind == wanted]
        added = [AddedToken(t, normalized=False, special=special) for t in found]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)


def _named(file: GgufFile, tokens: list[str], ids: dict[str, int]) -> dict[str, int]:
    """The ids of special tokens by transformers' names."""
    keys = {
        "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask",
        "sep": "seperator", "cls": "cls",
    }  # fmt: skip
    found = dict(ids)
    for name, key in keys.items():
        full = f"tokenizer.ggml.{key}_token_id"
        if full in file.metadata:
            found[name] = file.get(full, int)
    if "cls" in ids and "tokenizer.ggml.cls_token_id" not in file.metadata:
        found["cls"] = found.get("bos", ids["cls"])
    for name, token_id in found.items():
        if not 0 <= token_id < len(tokens):
            raise TokenizerError(
                f"{file.path}: the {name} token has id {token_id}, of {len(tokens)} tokens"
            )
    return found


def _put_ends(
    file: GgufFile, tokenizer: PreTrainedTokenizerBase, built: _Built, named: dict[str, int]
) -> None:
    """BOS and EOS, or BERT's [CLS] and [SEP], as the file says, else as llama.cpp's default is."""
    bert = "cls" in built.ids
    asked = {
        "bos": file.get("tokenizer.ggml.add_bos_token", bool, built.bos),
        "eos": file.get("tokenizer.ggml.add_eos_token", bool, built.eos),
    }
    if bert:
        asked["eos"] = file.get("tokenizer.ggml.add_sep_token", bool, True)
    names = {"bos": "cls" if bert else "bos", "eos": "sep" if bert else "eos"}
    for end, wanted in asked.items():
        if wanted and names[end] not in named:
            raise TokenizerError(
                f"{file.path}: add_{end}_token is true, but there is no such token"
            )
    prefix = (named[names["bos"]],) if asked["bos"] else ()
    suffix = (named[names["eos"]],) if asked["eos"] else ()
    if prefix or suffix:
        set_ends(tokenizer.backend_tokenizer, prefix, suffix)


def _chat_template(file: GgufFile) -> Any:
    """The template, or the templates by name."""
    start = "tokenizer.chat_template"
    named = {
        key.removeprefix(start + "."): value
        for key, value in file.metadata.items()
        if key.startswith(start + ".") and isinstance(value, str)
    }
    own = file.get(start, str, "")
    return {**({"default": own} if own else {}), **named} if named else own
