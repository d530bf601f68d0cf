"""Constrained decoding: whatever is drawn among the allowed tokens, the text is of the schema.

jsonschema is the judge. Drawing uniformly visits what a model would hardly write.
"""

import gc
import json
import weakref

import jsonschema
import numpy as np
import pytest
import torch
from schemas import SCHEMAS, TEXT, record
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from polyvec.errors import GenerationError
from polyvec.llm import constraint
from polyvec.llm.constraint import compile_schema
from polyvec.nano import nano_lm_path

MOST_TOKENS = 400


@pytest.fixture(scope="module")
def nano():
    return AutoTokenizer.from_pretrained(nano_lm_path())


@pytest.fixture(scope="module")
def sentencepiece():
    """As Llama 2's: spaces are ▁, one is put before the text, other characters are bytes."""
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    characters = [chr(i) for i in range(33, 127)] + ["▁", "é"]
    merges = [("▁", "{"), ("▁", '"'), ('"', ":"), ("▁", "a"), ("}", "}"), ('"', "}"), ("\\", "n")]
    words = [*symbols, *characters, *map("".join, merges)]
    vocab = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


def drawn(tokenizer, schema, seeds, num_logits=None, ends=None):
    """Texts of uniform draws among the allowed tokens, and whether each ended."""
    ends = [tokenizer.eos_token_id] if ends is None else ends
    new = compile_schema(schema, tokenizer, num_logits or len(tokenizer), ends)
    for seed in seeds:
        generator, made, ids = np.random.default_rng(seed), new(), []
        while len(ids) < MOST_TOKENS:
            allowed_V = made.allowed(ids)
            assert allowed_V.dtype == torch.bool
            token = int(generator.choice(allowed_V.nonzero()[:, 0].numpy()))
            if token in ends:
                break
            ids.append(token)
            if made.is_done(ids):
                break
        yield tokenizer.decode(ids, skip_special_tokens=True), len(ids) < MOST_TOKENS


@pytest.mark.parametrize(
    "kind",
    ["nano", "sentencepiece", pytest.param("smollm2_tokenizer", marks=pytest.mark.medium)],
)
@pytest.mark.parametrize("name", SCHEMAS)
def test_draws_are_of_the_schema(name, kind, request):
    for text, ended in drawn(request.getfixturevalue(kind), SCHEMAS[name], range(10)):
        assert ended, text
        jsonschema.validate(json.loads(text), SCHEMAS[name])


def test_spaces_are_few(nano):
    """At most one after a comma or colon: blanks without end are a small model's usual failure."""
    schema = record(a={"type": "array", "items": {"type": "null"}, "maxItems": 3}, b=TEXT)
    for text, _ in drawn(nano, schema, range(20)):
        compact = json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
        spaced = json.dumps(json.loads(text), ensure_ascii=False)
        assert len(compact) <= len(text) <= len(spaced)


def test_an_unbounded_string_may_be_written_forever(nano):
    """So the docstring asks for maxLength, at which only the closing quote is left."""
    quote, letter = nano.encode('"a', add_special_tokens=False)
    for schema, goes_on in (({"type": "string"}, True), ({**TEXT, "maxLength": 99}, False)):
        made = compile_schema(schema, nano, len(nano), [2])()
        assert made.allowed([quote, *[letter] * 98])[letter]
        assert made.allowed([quote, *[letter] * 99])[letter] == goes_on


def test_the_end_comes_where_the_value_is_complete(nano):
    made = compile_schema(SCHEMAS["integer range"], nano, len(nano), [2])()
    assert not made.allowed([])[2]
    ids = nano.encode("12", add_special_tokens=False)
    assert made.allowed(ids)[2] and not made.is_done(ids)  # 123 is in the range, too
    more = [*ids, *nano.encode("34", add_special_tokens=False)]
    made = compile_schema(SCHEMAS["integer range"], nano, len(nano), [2])()
    assert made.is_done(more)


def test_special_tokens_and_padded_logits_are_never_allowed(nano):
    num_logits = len(nano) + 64
    made = compile_schema(SCHEMAS["a string"], nano, num_logits, [2])()
    allowed_V = made.allowed(nano.encode('"a', add_special_tokens=False))
    assert len(allowed_V) == num_logits and allowed_V.sum() > 1000
    assert not allowed_V[len(nano) :].any() and not allowed_V[nano.all_special_ids].any()


def test_fewer_logits_than_tokens(nano):
    made = compile_schema(SCHEMAS["a string"], nano, len(nano) - 100, [2, len(nano) - 1])()
    assert len(made.allowed([])) == len(nano) - 100


@pytest.mark.parametrize("ends", [[], [2, 5]])
def test_no_end_or_several(nano, ends):
    for text, ended in drawn(nano, SCHEMAS["record"], range(3), ends=ends):
        assert ended
        jsonschema.validate(json.loads(text), SCHEMAS["record"])


def test_answers_of_one_schema_do_not_disturb_each_other(nano):
    new = compile_schema(SCHEMAS["a string"], nano, len(nano), [2])
    first, second = new(), new()
    start_V = new().allowed([])
    first.allowed(nano.encode('"abc', add_special_tokens=False))
    assert torch.equal(second.allowed([]), start_V)


def test_keys_come_in_the_order_of_the_schema(nano):
    for text, _ in drawn(nano, record(z={"type": "null"}, a={"type": "null"}), range(5)):
        assert list(json.loads(text)) == ["z", "a"]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "null"}}, "not"),
        ({"oneOf": [{"type": "integer", "minimum": 3}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "pattern": "^(?=a)b"}, "look-around"),
        ({"type": "string", "format": "color"}, "color"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"enum": []}, "Unsatisfiable|enum"),
        ({"const": "\u0000"}, "no value satisfies it"),
        ({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}, "uniqueItems"),
    ],
)
def test_schemas_that_cannot_be_held_to_are_refused(nano, schema, message):
    with pytest.raises(GenerationError, match=message) as caught:
        compile_schema(schema, nano, len(nano), [2])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 350


def test_a_tokenizer_that_changes_texts_is_refused(minilm_folder):
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    with pytest.raises(GenerationError, match="tokenizer") as caught:
        compile_schema({"type": "null"}, tokenizer, len(tokenizer), [0])
    assert "\n" not in str(caught.value)


def test_a_tokenizer_is_read_once_and_not_kept_alive(monkeypatch):
    reads = []
    read = constraint._read_tokenizer
    monkeypatch.setattr(constraint, "_read_tokenizer", lambda *a: reads.append(a[1]) or read(*a))
    tokenizer = AutoTokenizer.from_pretrained(nano_lm_path())
    for schema in ({"type": "null"}, {"type": "boolean"}):
        compile_schema(schema, tokenizer, len(tokenizer), [2])
    assert len(reads) == 1
    alive = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert alive() is None


def test_a_missing_package_is_named(monkeypatch, nano):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    monkeypatch.setattr(constraint, "_TOKENIZERS", {})
    with pytest.raises(ImportError, match=r"polyvec\[llm\]"):
        compile_schema({"type": "null"}, nano, len(nano), [2])
