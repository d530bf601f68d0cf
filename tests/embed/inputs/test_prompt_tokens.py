"""Prompts with special tokens, truncation beside a prompt, tokens without an embedding."""

import itertools
import warnings

import numpy as np
import pytest
from families import build, tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from polyvec import Embedder
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.errors import InputError, TokenizerError

PROMPTS = ["<s>query: ", "<|user|>\nfind<|embed|>\n", "a <mask> b: ", "<|embed|>", "x <s> <s>y"]
TEXTS = ["cat", " cat", "a  cat", "", "\ncat", "Cat and <cat>"]


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """A Unigram of letters with Metaspace, as Llama's and T5's newer tokenizer.json."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyzCA<>|:\n▁/"))
    pieces = ["<unk>", *letters, "▁cat", "cat", "▁a", "▁find", "find", "▁query", "▁▁"]
    backend = Tokenizer(models.Unigram([(p, -float(len(p) < 2) * 4) for p in pieces], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    backend.add_special_tokens(["<s>", "<|user|>", "<|embed|>", AddedToken("<mask>", lstrip=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def prefixed() -> PreTrainedTokenizerFast:
    """Llama 2's older tokenizer.json, which prepends a space after special tokens, too."""
    made = metaspace("never")
    made.backend_tokenizer.pre_tokenizer = None
    made.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return made


@pytest.mark.parametrize("scheme", ["first", "always", "never", "prepend"])
@pytest.mark.parametrize(("prompt", "text"), [*itertools.product(PROMPTS, TEXTS)])
def test_ids_are_those_of_the_whole_string(scheme, prompt, text):
    """A text after a special token inside a prompt gains no "▁" (Metaspace "first")."""
    made = prefixed() if scheme == "prepend" else metaspace(scheme)
    expected = made.backend_tokenizer.encode(prompt + text, add_special_tokens=False).ids
    (found,) = TextTokenizer(made).encode([(Span(prompt, markup=True), Span(text))])
    assert found.ids.tolist() == expected


@pytest.mark.parametrize("scheme", ["first", "always", "never", "prepend"])
def test_special_tokens_of_a_text_stay_characters_behind_a_prompt(scheme):
    made = prefixed() if scheme == "prepend" else metaspace(scheme)
    spans = (Span("<s>a <mask> b", markup=True), Span("a <s>cat"))
    (found,) = TextTokenizer(made).encode([spans], text_mask=True)
    prompt = made.backend_tokenizer.encode("<s>a <mask> ba", add_special_tokens=False).ids
    assert found.ids[: len(prompt)].tolist() == prompt
    shown = made.convert_ids_to_tokens(found.ids.tolist())
    assert shown[len(prompt) :] == ["▁", "<", "s", ">", "cat"]
    assert found.text.tolist() == [False] * (len(prompt) - 1) + [True] * 6


@pytest.mark.parametrize("scheme", ["first", "always", "never", "prepend"])
def test_pieces_have_the_ids_of_each_by_itself(scheme):
    """As released code joins lists of ids: each begins a string of its own."""
    made = prefixed() if scheme == "prepend" else metaspace(scheme)
    pieces = ["<s>find", "a cat", "<|embed|>", "cat <mask>"]
    spans = tuple(Span(piece, markup=True, cut=True) for piece in pieces)
    expected = [made.backend_tokenizer.encode(p, add_special_tokens=False).ids for p in pieces]
    (found,) = TextTokenizer(made).encode([spans])
    assert found.ids.tolist() == [i for ids in expected for i in ids]


def test_a_special_token_across_the_border_is_characters():
    made = metaspace("first")
    (found,) = TextTokenizer(made).encode([(Span("<s>a <", markup=True), Span("s>cat"))])
    assert made.convert_ids_to_tokens(found.ids.tolist()).count("<s>") == 1


def test_which_tokens_belong_to_the_text():
    made = metaspace("first")
    spans = (Span("<s>find<|embed|>", pooled=False, markup=True), Span("cat"))
    (found,) = TextTokenizer(made).encode([spans])
    assert found.pooled.tolist() == [False, False, False, True]
    assert made.convert_ids_to_tokens(found.ids.tolist())[-1] == "cat"


def shown(words: TextTokenizer, *spans: Span) -> list[str]:
    return words.hf.convert_ids_to_tokens(words.encode([spans])[0].ids)


@pytest.mark.parametrize("pooled", [True, False])
def test_truncation_on_the_left_keeps_the_prompt(pooled):
    """SILENT row 44."""
    left = TextTokenizer(tokenizer(truncation_side="left"), max_length=6)
    spans = Span("query : ", markup=True, pooled=pooled), Span("a cat sat on the mat")
    assert shown(left, *spans) == ["<s>", "query", ":", "the", "mat", "</s>"]
    (tokens,) = left.encode([spans])
    assert (tokens.full_length, tokens.truncated) == (10, True)
    assert tokens.pooled.tolist() == [pooled, pooled, pooled, True, True, True]


def test_a_text_that_fits_is_whole_on_the_left():
    left = TextTokenizer(tokenizer(truncation_side="left"), max_length=8)
    spans = Span("query : ", markup=True), Span("on the mat")
    assert shown(left, *spans) == ["<s>", "query", ":", "on", "the", "mat", "</s>"]


def test_truncation_on_the_right_is_that_of_the_whole_string():
    """As in sentence-transformers, which joins prompt and text."""
    right = tokenizer()
    spans = Span("query : ", markup=True), Span("a cat sat on the mat")
    whole = right("query : a cat sat on the mat", truncation=True, max_length=6)["input_ids"]
    (found,) = TextTokenizer(right, max_length=6).encode([spans])
    assert found.ids.tolist() == whole


def embedder(words: PreTrainedTokenizerFast, **options) -> Embedder:
    return Embedder.from_parts(
        Backbone(build("bert")), TextTokenizer(words, max_length=48), **options
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_longer_than_the_model_is_an_error(side):
    model = embedder(tokenizer(truncation_side=side))
    model.max_seq_length = 6
    with pytest.raises(InputError, match="the prompt alone has 8 tokens, the model reads 6"):
        model.encode("a cat", prompt="a cat sat on the mat ")


def test_a_token_without_an_embedding_is_an_error_before_anything_is_read():
    words = tokenizer()
    words.add_tokens(["zebra"])
    model = embedder(words)
    with pytest.raises(TokenizerError, match=rf"token 'zebra' \(id {len(words) - 1}\) has no row"):
        model.encode("a cat")


def test_a_special_token_without_an_embedding_is_an_error_only_where_it_occurs():
    """[PAD] that was added for training is never read: masks come from lengths."""
    words = tokenizer()
    words.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<new>"]})
    padded = Backbone(build("bert"), words.pad_token_id, layout="padded")
    model = Embedder.from_parts(padded, TextTokenizer(words, max_length=48))
    together = model.encode(["a [PAD] <new>", "cat"])
    assert np.allclose(together[1], model.encode("cat"), atol=1e-6)
    with pytest.raises(TokenizerError, match=r"inputs\[0\]: token '<new>' .* has no row"):
        model.encode("a cat", prompt="<new>")


def test_tokens_added_after_loading_are_an_error_until_the_table_has_rows(tmp_path):
    model = embedder(tokenizer())
    model.encode("a zebra")
    model.tokenizer.add_tokens(["zebra"])
    for call in (lambda: model.encode("a cat"), lambda: model.save_pretrained(tmp_path / "bad")):
        with pytest.raises(TokenizerError, match="'zebra'"):
            call()
    model.backbone.model.resize_token_embeddings(len(model.tokenizer))
    ((tokens,),) = model.tokenize(["a zebra"])
    assert model.tokenizer.convert_ids_to_tokens(tokens.ids)[-2] == "zebra"
    expected = model.encode(["a zebra", "a cat"])
    model.save_pretrained(tmp_path / "saved")
    assert np.array_equal(
        Embedder.from_pretrained(tmp_path / "saved").encode(["a zebra", "a cat"]), expected
    )


def test_no_limit_is_the_models_own():
    model = embedder(tokenizer())
    model.max_seq_length = None
    assert model.max_seq_length == 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode("a " * 600, truncate="silent")


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "8", True, 2])
def test_a_length_that_is_none_is_an_error(wrong):
    with pytest.raises((InputError, TokenizerError), match="max_seq_length"):
        embedder(tokenizer()).max_seq_length = wrong


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "8", True, 33])
def test_a_dimension_that_is_none_is_an_error(wrong):
    model = embedder(tokenizer())
    with pytest.raises(InputError, match="truncate_dim"):
        model.encode("a cat", truncate_dim=wrong)
    with pytest.raises(InputError, match="truncate_dim"):
        next(model.encode_iter(["a cat"], truncate_dim=wrong))
    with pytest.raises(InputError, match="truncate_dim"):
        model.encode_vectors(["a cat"], truncate_dim=wrong)
    with pytest.raises(InputError, match="truncate_dim"):
        model.truncate_dim = wrong
    assert model.encode("a cat", truncate_dim=np.int64(4)).shape == (4,)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_seq_length": 0}, "max_seq_length is 0"),
        ({"max_seq_length": -3}, "max_seq_length is -3"),
        ({"truncate_dim": 0}, "truncate_dim is 0"),
        ({"truncate_dim": "8"}, "truncate_dim is '8'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
    ],
)
def test_impossible_options_of_loading(option, message):
    with pytest.raises(InputError, match=message):
        Embedder.from_pretrained("nowhere", **option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "passage"}, r"role 'passage' is not known.*document, query"),
        ({"role": ""}, "role '' is not known"),
        ({"role": 3}, "role 3 is not known"),
        ({"prompt": 3}, "prompt is int, not a string"),
        ({"prompt": ["a"]}, "prompt is list, not a string"),
        ({"prompt_name": "qeury"}, "Did you mean 'query'"),
        ({"prompt_name": ["query"]}, r"prompt_name \['query'\] is not stored"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": 3.5}, "device 3.5 cannot be used"),
        ({"batch_size": 0}, "batch_size is 0, expected a whole number from 1"),
        ({"batch_size": -2}, "batch_size is -2"),
        ({"batch_size": "32"}, "batch_size is '32'"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"truncate": "right"}, "truncate='right' is not known"),
        ({"precision": "int4"}, "int4"),
        ({"precision": None}, "None"),
        ({"calibration": 3, "precision": "int8"}, "calibration is int"),
        ({"output_value": None}, "output_value None is not known"),
        ({"output_value": "words"}, "output_value 'words' is not known"),
    ],
)
def test_impossible_options_of_encode(options, message):
    model = embedder(tokenizer(), prompts=PromptTable({"query": "query : "}))
    with pytest.raises(InputError, match=message):
        model.encode("a cat", **options)


def test_the_role_of_encode_query_is_its_own():
    with pytest.raises(InputError, match="encode_query takes no role"):
        embedder(tokenizer()).encode_query("a cat", role="document")


def test_a_prompt_of_the_table_is_a_string():
    with pytest.raises(InputError, match="prompts is str, not a table"):
        PromptTable("query: ")
    with pytest.raises(InputError, match="prompt 'query' is int, not a string"):
        PromptTable({"query": 3})


def test_encode_vectors_takes_a_generator():
    model = embedder(tokenizer())
    found, report = model.encode_vectors(text for text in ["a cat", "a dog"])
    assert np.array_equal(found.values_NE, model.encode(["a cat", "a dog"]))
    assert report.num_texts == 2


def test_an_empty_text_is_an_error_before_anything_is_computed(monkeypatch):
    """Without special tokens; sentence-transformers raises, or pools the padding of a batch."""
    model = embedder(tokenizer(False, False))
    monkeypatch.setattr(Backbone, "forward", None)  # not to be called
    for inputs in (["a cat", ""], ["a cat"] * 9000 + ["  "]):
        with pytest.raises(InputError, match=rf"inputs\[{len(inputs) - 1}\] leaves no token"):
            model.encode(inputs)
