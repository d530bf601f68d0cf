"""Words instead of word pieces: the tokenizers of sentence-transformers' WordEmbeddings and BoW.

Words that the vocabulary does not have are left out, and so are stop words.
"""

import abc
import json
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from polyvec.embed.inputs.contract import TokenizerContract, bare
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.tables import never_empty
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer, Tokens
from polyvec.errors import ModelError


class Words(abc.ABC):
    """A vocabulary and how text is split into its words.

    It has those names of a Hugging Face tokenizer that the rest of an embedder reads.
    """

    kind: str  # sentence-transformers' class
    file: str  # its configuration
    is_fast = True
    pad_token_id = bos_token_id = eos_token_id = mask_token_id = None
    bos_token = eos_token = mask_token = None
    truncation_side = "right"

    def __init__(
        self, vocab: Sequence[str], stop_words: Sequence[str] = (), do_lower_case: bool = False
    ) -> None:
        self.vocab, self.stop_words = list(vocab), sorted(set(stop_words))
        self.do_lower_case = do_lower_case
        self._stop = frozenset(stop_words)
        self._ids = {word: place for place, word in enumerate(vocab)}

    @abc.abstractmethod
    def ids(self, text: str) -> list[int]:
        """The ids of the known words of a text."""

    def settings(self) -> dict[str, Any]:
        """sentence-transformers' configuration of this tokenizer."""
        return {
            "vocab": self.vocab,
            "stop_words": self.stop_words,
            "do_lower_case": self.do_lower_case,
        }

    def _first_known(self, forms: Sequence[str]) -> list[int]:
        """The id of the first form that is known, unless one before it is a stop word."""
        for form in forms:
            if form in self._stop:
                return []
            if form in self._ids:
                return [self._ids[form]]
        return []

    def get_vocab(self) -> dict[str, int]:
        """Ids by word."""
        return dict(self._ids)

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def backend_tokenizer(self) -> "Words":
        return self

    def to_str(self) -> str:
        """Everything that decides the ids, as JSON."""
        return json.dumps({"kind": self.kind, **self.settings()}, sort_keys=True)


class WhitespaceWords(Words):
    """Words between white space: as they stand, else without punctuation around them, else in
    lower case."""

    kind, file = "WhitespaceTokenizer", "whitespacetokenizer_config.json"

    def ids(self, text: str) -> list[int]:
        found: list[int] = []
        for word in (text.lower() if self.do_lower_case else text).split():
            stripped = word.strip(string.punctuation)
            found += self._first_known([word, *([stripped] if stripped else []), stripped.lower()])
        return found


class PhraseWords(Words):
    """NLTK's words, of which those that make a phrase of the vocabulary become one ("New_York")."""

    kind, file = "PhraseTokenizer", "phrasetokenizer_config.json"

    def __init__(
        self,
        vocab: Sequence[str],
        stop_words: Sequence[str] = (),
        do_lower_case: bool = False,
        ngram_separator: str | None = "_",
        max_ngram_length: int = 5,
    ) -> None:
        super().__init__(vocab, stop_words, do_lower_case)
        try:
            from nltk.tokenize.destructive import NLTKWordTokenizer
        except ImportError:
            raise ModelError(
                "the model's PhraseTokenizer needs the package 'nltk'. Install it: pip install nltk"
            ) from None
        self._split = NLTKWordTokenizer().tokenize
        self.ngram_separator, self.max_ngram_length = ngram_separator, max_ngram_length
        separator = ngram_separator or ""
        self._phrases = {
            word
            for word in self.vocab
            if separator
            and separator in word
            and separator * 2 not in word
            and word.count(separator) < max_ngram_length
        }
        self._lengths = sorted({p.count(separator) + 1 for p in self._phrases}, reverse=True)

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "ngram_separator": self.ngram_separator,
            "max_ngram_length": self.max_ngram_length,
        }

    def ids(self, text: str) -> list[int]:
        words = list(self._split(text))
        for length in self._lengths:
            for place in range(len(words)):
                if place > len(words) - length:
                    break
                phrase = (self.ngram_separator or "").join(words[place : place + length])
                for form in (phrase, phrase.lower()):
                    if form in self._phrases:
                        words[place : place + length] = [form]
                        break
        found: list[int] = []
        for word in words:
            stripped = word.lower().strip(string.punctuation)
            forms = [word, word.lower(), *([stripped] if stripped else [])]
            found += self._first_known(forms)
        return found


class Pieces(Words):
    """A Hugging Face tokenizer's pieces, its special tokens included."""

    kind, file = "TransformersTokenizerWrapper", "tokenizer.json"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(list(tokenizer.get_vocab()))
        self.tokenizer = tokenizer
        self._backend = bare(tokenizer, specials_are_text=True)

    def ids(self, text: str) -> list[int]:
        return list(self._backend.encode(text).ids)

    def settings(self) -> dict[str, Any]:
        return {"tokenizer": json.loads(self._backend.to_str())}


# Those that a folder's JSON file makes.
WORDS: dict[str, type[Words]] = {words.kind: words for words in (WhitespaceWords, PhraseWords)}


class WordTokenizer(TextTokenizer):
    """Tokens of a text by its words; the interface of a TextTokenizer over other tokenizers.

    A prompt is joined to its text, and pooled like it, as in sentence-transformers.
    """

    zero_if_empty = True

    def __init__(self, words: Words, *, max_length: int | None = None) -> None:
        self.hf: Any = words
        self.lower_case = False
        self.max_length = max_length

    @property
    def max_length(self) -> int | None:
        return self.contract.max_length

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        self.contract = TokenizerContract((), (), 0, value, len(self.hf))

    def _read(self, max_length: int | None) -> None:
        """Nothing: words have no special tokens, so both ways of reading them are the same."""

    def special_tokens(self) -> dict[str, str | None]:
        return {"bos": None, "eos": None, "mask": None}

    def check_ends(self, template: Template) -> None:
        """Nothing is added at the ends."""

    def check_rows(self, rows: int | None) -> None:
        """Every word has a row: the reader has compared their numbers."""

    def encode(self, batch: Sequence[tuple[Span, ...]], *, text_mask: bool = False) -> list[Tokens]:
        return [self._tokens("".join(span.text for span in spans)) for spans in batch]

    def _tokens(self, text: str) -> Tokens:
        every = np.asarray(self.hf.ids(text), np.int32)
        ids = every[: self.max_length]
        yes = np.ones(len(ids), bool)
        return never_empty(Tokens(ids, yes, yes, np.zeros(len(ids), np.int8), len(every)))
