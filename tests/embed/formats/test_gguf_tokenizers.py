"""Tokenizers of GGUF files: the ids that the named rule gives, by other implementations of it."""

from pathlib import Path
from typing import Any

import gguf_files
import pytest
import regex
import transformers as tf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from polyvec.embed.formats.gguf.file import GgufFile
from polyvec.embed.formats.gguf.tokenizers import SPLITS, read_tokenizer
from polyvec.errors import ModelError, TokenizerError

PROBES = [
    "",
    " ",
    "12345 67.8 and 1,234",
    "two  spaces\n\n lines\r\n\tand tabs   ",
    "don't WE'LL I'M 'S 's",
    "Cafe\u0301 Café x² ½ 漢字 한국어 العربية हिन्दी 👩‍👩‍👧 🎉",
    "def f(x):\n    return x**2  # a//b\n/",
    "  lead trail  ",
    "snake_case camelCase UPPERlower mixedCASE",
    "\u00a0nbsp\u3000wide",
    "https://example.org/a?b=c&d=e",
]
# OpenAI's and Meta's own patterns, as they are published with the models.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])  # fmt: skip
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")


def read(fields: dict[str, Any], arch: str = "llama"):
    """The tokenizer of these metadata."""
    values = {"general.architecture": arch, f"{arch}.context_length": 64, **fields}
    return read_tokenizer(GgufFile(Path("model.gguf"), values, {}))


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("gpt-2", GPT2), ("llama-bpe", LLAMA3), ("gpt-4o", O200K), ("tekken", TEKKEN)],
)
def test_pieces_of_the_published_pattern(name, pattern):
    """By another engine for regular expressions."""
    letters = bytes_to_unicode()
    for probe in PROBES:
        found = [piece for piece, _ in SPLITS[name].steps().pre_tokenize_str(probe)]
        words = regex.findall(pattern, probe)
        assert found == ["".join(letters[b] for b in word.encode()) for word in words], probe


def cut(pattern: str, pieces: list[str]) -> list[str]:
    """Every match, and what is between two of them."""
    found = (regex.split(f"({pattern})", piece) for piece in pieces)
    return [each for split in found for each in split if each]


def test_pieces_of_bloom():
    letters = bytes_to_unicode()
    for probe in PROBES:
        found = [piece for piece, _ in SPLITS["bloom"].steps().pre_tokenize_str(probe)]
        words = cut(r" ?[^(\s|.,!?…。，、।۔،)]+", [probe])
        assert found == ["".join(letters[b] for b in word.encode()) for word in words], probe


def test_pieces_of_falcon():
    """llama.cpp's steps, and the one of tokenizer.json that it has not: runs of digits."""
    letters = bytes_to_unicode()
    for probe in [*PROBES, "a 1 22 333 4444 55555 (12)", "$5+3=8 `a|b~c` ^_^ 1234567"]:
        found = [piece for piece, _ in SPLITS["falcon"].steps().pre_tokenize_str(probe)]
        words = cut(GPT2, cut(r"[\p{P}\$\+<=>\^~\|`]+", [probe]))
        pieces = ["".join(letters[b] for b in word.encode()) for word in words]
        assert found == cut("[0-9][0-9][0-9]", cut(r"\p{N}+", pieces)), probe


def byte_level(steps, normalizer=None, **options) -> Tokenizer:
    fields = gguf_files.bpe_fields()
    vocab = {token: place for place, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    found = Tokenizer(models.BPE(vocab, merges, **options))
    found.pre_tokenizer, found.normalizer = steps, normalizer
    return found


def test_ids_of_smollm():
    """The hub's tokenizer: single digits, then GPT-2's rule, no normalisation."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    expected = byte_level(pre_tokenizers.Sequence([digits, own]))
    found, other = read(gguf_files.bpe_fields("smollm")), read(gguf_files.bpe_fields("gpt-2"))
    assert [ids(found, p) for p in PROBES] == [expected.encode(p).ids for p in PROBES]
    assert ids(other, PROBES[2]) != ids(found, PROBES[2])


@pytest.mark.parametrize(
    ("name", "cls"),
    [("qwen2", tf.Qwen2Tokenizer), ("qwen35", tf.Qwen3_5Tokenizer), ("gpt-2", tf.GPT2Tokenizer)],
)
def test_ids_of_transformers_own_class(name, cls):
    """Qwen 2's normalises to NFC, which transformers' reader of GGUF files leaves out."""
    fields = gguf_files.bpe_fields(name)
    vocab = {token: place for place, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    theirs = cls(vocab=vocab, merges=merges, unk_token="<s>", bos_token="<s>", eos_token="</s>")
    found = read(fields)
    assert [ids(found, p) for p in PROBES] == [ids(theirs, p) for p in PROBES]


def test_llama_3_takes_whole_words_whatever_the_merges_give():
    """ignore_merges, as in its tokenizer.json; it adds BOS if the file does not say."""
    fields = gguf_files.bpe_fields("llama-bpe")
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "zqxj"]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 1]
    found = read(fields)
    assert found("zqxj").tokens() == ["<s>", "zqxj"]
    assert read({**fields, "tokenizer.ggml.pre": "gpt-2"})("zqxj").tokens() == list("zqxj")


def test_normalisation_of_olmo():
    steps = pre_tokenizers.ByteLevel(add_prefix_space=False)
    expected = byte_level(steps, normalizers.NFC())
    found = read(gguf_files.bpe_fields("olmo"))
    assert [ids(found, p) for p in PROBES] == [expected.encode(p).ids for p in PROBES]


@pytest.mark.parametrize("pre", ["deepseek-llm", "default", "new-thing", None])
def test_another_pre_tokenizer_is_refused(pre):
    fields = gguf_files.bpe_fields()
    fields["tokenizer.ggml.pre"] = pre
    with pytest.raises(TokenizerError, match=r"pre-tokenizer.*Known: bloom, .*safetensors"):
        read({k: v for k, v in fields.items() if v is not None})


def test_another_algorithm_is_refused():
    with pytest.raises(TokenizerError, match=r"tokenizer 'rwkv' is not read. Known: bert, gpt2"):
        read({"tokenizer.ggml.model": "rwkv"})


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepieces_bpe(prefix, tmp_path):
    """sentencepiece's own ids, a text that starts with a space included."""
    processor, fields = gguf_files.sentencepiece_fields(tmp_path, "bpe")
    found = read({**fields, "tokenizer.ggml.add_space_prefix": prefix})
    for probe in PROBES[1:]:
        if prefix:
            assert ids(found, probe) == processor.encode(probe), probe
        assert found.decode(ids(found, probe)) == probe
    assert found("a")["input_ids"][0] == 1
    assert found("a")["input_ids"][-1] != 2


def test_sentencepieces_unigram(tmp_path):
    """sentencepiece's own ids, moved as XLM-R's are."""
    processor, fields = gguf_files.sentencepiece_fields(tmp_path, "unigram")
    found = read(fields, "bert")
    for probe in PROBES:
        moved = [each + 1 if each else 3 for each in processor.encode(probe)]
        assert ids(found, probe) == moved, probe
        assert found(probe)["input_ids"] == [0, *moved, 2]


def test_the_tokenizer_of_t5(tmp_path):
    """sentencepiece's own ids, and EOS, though no key of the file says so."""
    processor, fields = gguf_files.sentencepiece_fields(tmp_path, "t5")
    found = read(fields, "t5")
    for probe in PROBES:
        assert found(probe)["input_ids"] == [*processor.encode(probe), 1], probe
    assert len(found) == processor.vocab_size()


@pytest.mark.parametrize("old", [True, False])
def test_bert(old):
    words = gguf_files.words_of_bert()
    vocab = {word: place for place, word in enumerate(words)}
    theirs = tf.BertTokenizer(vocab=vocab)
    found = read(gguf_files.word_piece_fields(words, old=old), "bert")
    for probe in [*PROBES, "the unknownword [unused0] [MASK] longer"]:
        assert found(probe)["input_ids"] == theirs(probe)["input_ids"], probe


def test_a_vocabulary_with_capitals_is_not_lower_cased():
    words = [*gguf_files.words_of_bert(), "The", "Café"]
    found = read(gguf_files.word_piece_fields(words), "bert")
    assert found("The the Café").tokens() == ["[CLS]", "The", "the", "Café", "[SEP]"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, ["a"]),
        ({"add_bos_token": True}, ["<s>", "a"]),
        ({"add_eos_token": True}, ["a", "</s>"]),
        ({"add_bos_token": True, "add_eos_token": True}, ["<s>", "a", "</s>"]),
    ],
)
def test_bos_and_eos_as_the_file_says(flags, expected):
    flags = {f"tokenizer.ggml.{key}": value for key, value in flags.items()}
    assert read({**gguf_files.bpe_fields(), **flags})("a").tokens() == expected


def test_tokens_of_padding_are_left_out():
    """llama.cpp fills the vocabulary up to the rows of the table."""
    fields = gguf_files.bpe_fields()
    count = len(fields["tokenizer.ggml.tokens"])
    fields["tokenizer.ggml.tokens"] += [f"[PAD{count}]", f"[PAD{count + 1}]"]
    fields["tokenizer.ggml.token_type"] += [5, 5]
    assert len(read(fields)) == count


def test_the_users_own_tokens_are_not_split():
    fields = gguf_files.bpe_fields()
    fields["tokenizer.ggml.tokens"] += ["<think>", "<|tool|>"]
    fields["tokenizer.ggml.token_type"] += [4, 3]
    found = read(fields)
    assert found("a<think>b<|tool|>").tokens() == ["a", "<think>", "b", "<|tool|>"]
    added = found.backend_tokenizer.get_added_tokens_decoder().values()
    assert [token.content for token in added if token.special] == ["<s>", "</s>", "<|tool|>"]


def test_chat_templates_by_name():
    fields = gguf_files.bpe_fields()
    one = {"tokenizer.chat_template": "A"}
    assert read({**fields, **one}).chat_template == "A"
    two = {**one, "tokenizer.chat_template.tool_use": "B"}
    assert read({**fields, **two}).chat_template == {"default": "A", "tool_use": "B"}


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "token 'a' has two ids"),
        ({"token_type": [1]}, "not lists of the same length"),
        ({"tokens": "abc"}, "tokens is 'abc', expected list"),
        ({"merges": ["a b c"]}, "merges are not pairs"),
        ({"merges": ["zz qq"]}, "cannot build the tokenizer"),
        ({"eos_token_id": 10_000}, "the eos token has id 10000, of"),
        ({"add_eos_token": "yes"}, "add_eos_token is 'yes', expected bool"),
    ],
)
def test_what_is_damaged_is_named(wrong, match):
    fields = gguf_files.bpe_fields()
    fields |= {f"tokenizer.ggml.{key}": value for key, value in wrong.items()}
    with pytest.raises(ModelError, match=match):
        read(fields)
