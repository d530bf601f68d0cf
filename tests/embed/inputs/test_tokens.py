"""Spans, the tokenizer contract, truncation and batches."""

import numpy as np
import pytest
from families import tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from polyvec.embed.inputs.contract import read_contract
from polyvec.embed.inputs.named_templates import TEMPLATES
from polyvec.embed.inputs.prompts import PromptTable, render
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch, budget_batches
from polyvec.errors import InputError, TokenizerError
from polyvec.interfaces import Prompt


def words(text_tokenizer: TextTokenizer, *spans: Span) -> list[str]:
    return text_tokenizer.hf.convert_ids_to_tokens(text_tokenizer.encode([spans])[0].ids)


@pytest.mark.parametrize(
    ("bos", "eos", "prefix", "suffix"),
    [
        (True, True, (1,), (2,)),
        (False, True, (), (2,)),
        (True, False, (1,), ()),
        (False, False, (), ()),
    ],
)
def test_the_contract_is_what_the_tokenizer_does(bos, eos, prefix, suffix):
    contract = read_contract(tokenizer(bos, eos), 48)
    assert (contract.prefix, contract.suffix) == (prefix, suffix)


def test_a_promised_eos_that_is_not_added_is_an_error():
    """Plant SILENT row 7, as e5-mistral under transformers 5."""
    broken = tokenizer(True, True, add_eos_token=True)
    broken.backend_tokenizer.post_processor = tokenizer(
        True, False
    ).backend_tokenizer.post_processor
    with pytest.raises(TokenizerError, match=r"add_eos_token=true.*no EOS"):
        read_contract(broken, 48)


def test_a_doubled_eos_is_an_error():
    from tokenizers import processors

    doubled = tokenizer()
    doubled.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    with pytest.raises(TokenizerError, match="EOS 2 times"):
        read_contract(doubled, 48)


def test_no_room_for_text_is_an_error():
    with pytest.raises(TokenizerError, match="no room"):
        read_contract(tokenizer(), 2)


def test_eos_survives_truncation():
    text_tokenizer = TextTokenizer(tokenizer(), max_length=5)
    (tokens,) = text_tokenizer.encode([(Span("a cat sat on the mat"),)])
    assert text_tokenizer.hf.convert_ids_to_tokens(tokens.ids) == ["<s>", "a", "cat", "sat", "</s>"]
    assert tokens.truncated
    assert tokens.full_length == 8


def test_a_text_at_the_limit_is_not_cut():
    (tokens,) = TextTokenizer(tokenizer(), max_length=8).encode([(Span("a cat sat on the mat"),)])
    assert not tokens.truncated
    assert len(tokens) == 8


def test_truncation_on_the_left_keeps_the_end():
    left = TextTokenizer(tokenizer(truncation_side="left"), max_length=4)
    assert words(left, Span("a cat sat on the mat")) == ["<s>", "the", "mat", "</s>"]


def test_special_tokens_in_a_text_are_characters():
    """SILENT row 32: a text is data."""
    found = words(TextTokenizer(tokenizer()), Span("a </s> cat"))
    assert found[0] == "<s>"
    assert found.count("</s>") == 1
    assert "<" in found


def test_special_tokens_in_a_prompt_are_special():
    found = words(
        TextTokenizer(tokenizer()), Span("query <mask> ", markup=True), Span("a </s> cat")
    )
    assert found[:4] == ["<s>", "query", "<mask>", "a"]
    assert found.count("</s>") == 1


def test_pooled_flags_follow_the_spans():
    text_tokenizer = TextTokenizer(tokenizer())
    prompt = Span("query : ", pooled=False, markup=True)
    (tokens,) = text_tokenizer.encode([(prompt, Span("a cat"))])
    shown = dict(
        zip(text_tokenizer.hf.convert_ids_to_tokens(tokens.ids), tokens.pooled, strict=True)
    )
    assert shown == {
        "<s>": False,
        "query": False,
        ":": False,
        "a": True,
        "cat": True,
        "</s>": True,
    }


def test_a_token_over_the_border_belongs_to_the_text():
    """A prompt that ends in the middle of a word: what they form together is pooled."""
    text_tokenizer = TextTokenizer(tokenizer(False, False))
    (tokens,) = text_tokenizer.encode([(Span("do", pooled=False), Span("g sat"))])
    assert text_tokenizer.hf.convert_ids_to_tokens(tokens.ids) == ["dog", "sat"]
    assert tokens.pooled.tolist() == [True, True]


def test_lower_casing_comes_before_tokens():
    cased = TextTokenizer(tokenizer(), lower_case=True)
    assert words(cased, Span("A CAT")) == ["<s>", "a", "cat", "</s>"]


def test_the_tokenizers_own_padding_and_truncation_are_not_used(minilm):
    """The default model's tokenizer.json pads and cuts to 128; the model reads 256."""
    (tokens,) = minilm.text_tokenizer.encode([(Span("word " * 200),)])
    assert len(tokens) == 202


def test_ids_are_those_of_transformers(minilm):
    texts = ["Hello, world!", "", "naïve café 漢字 🎉", "x" * 500, "tabs\tand\nlines"]
    ours = minilm.text_tokenizer.encode([(Span(text),) for text in texts])
    for text, tokens in zip(texts, ours, strict=True):
        theirs = minilm.tokenizer(text, truncation=True, max_length=256)["input_ids"]
        assert tokens.ids.tolist() == theirs


def test_batches_hold_every_row_once_and_keep_the_budget():
    lengths = np.random.default_rng(0).integers(1, 200, 500).tolist()
    batches = list(budget_batches(lengths, batch_tokens=512, batch_size=32))
    assert sorted(row for batch in batches for row in batch) == list(range(500))
    for batch in batches:
        assert len(batch) <= 32
        assert len(batch) * max(lengths[row] for row in batch) <= 512


def test_a_text_longer_than_the_budget_is_a_batch_of_its_own():
    assert list(budget_batches([3, 900, 4], batch_tokens=100)) == [[1], [2, 0]]


def test_padding_waste_of_token_sorted_batches_is_small():
    lengths = np.random.default_rng(0).integers(8, 256, 2000).tolist()
    batches = list(budget_batches(lengths, batch_tokens=2048))
    padded = sum(len(b) * max(lengths[r] for r in b) for b in batches)
    assert padded / sum(lengths) < 1.03


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_nothing_is_refused(size):
    with pytest.raises(InputError, match="at least 1"):
        list(budget_batches([1], batch_tokens=8, batch_size=size))


def test_runs_of_equal_length():
    tokens = TextTokenizer(tokenizer()).encode([(Span(t),) for t in ("a cat", "a dog", "mat")])
    assert TokenBatch.of(range(3), tokens).runs() == [(2, 4), (1, 3)]


def test_an_empty_stored_prompt_is_not_set():
    """SILENT row 13: "document": "" must not shadow "passage"."""
    table = PromptTable({"query": "query: ", "document": "", "passage": "passage: "})
    assert table.resolve(role="document") == Prompt("passage", "passage: ", "document")
    assert table.resolve(role="query") == Prompt("query", "query: ", "query")
    assert table.resolve() == Prompt()


def test_given_words_win_over_names_and_default():
    table = PromptTable({"a": "A ", "b": "B "}, "a")
    assert table.resolve() == Prompt("a", "A ")
    assert table.resolve(prompt_name="b") == Prompt("b", "B ", given=True)
    assert table.resolve(prompt="C ", prompt_name="b").text == "C "
    assert table.resolve(prompt="").text == ""
    assert table.resolve(role="query") == Prompt("a", "A ", "query")


def test_an_unknown_prompt_name_is_told_with_a_suggestion():
    with pytest.raises(InputError, match="Did you mean 'query'"):
        PromptTable({"query": "q: "}).resolve(prompt_name="qeury")
    with pytest.raises(InputError, match="default prompt"):
        PromptTable({}, "gone")


def test_braces_in_a_text_stay():
    assert render("{text} {0}", Prompt(None, "p: ")) == (
        Span("p: ", markup=True),
        Span("{text} {0}"),
    )


def test_pieces_are_tokenised_one_by_one():
    """A released model that joined lists of ids never saw a token across two of them."""
    text_tokenizer = TextTokenizer(tokenizer(bos=False, eos=False))
    for pieces, expected in ((False, ["cat"]), (True, ["c", "a", "##t"])):
        template = Template("t", ("c{text}",), ("c{text}",), pool_prompt=True, pieces=pieces)
        assert words(text_tokenizer, *template.render("at")[0]) == expected


def test_brackets_are_tokens_of_their_own():
    """SGPT's: GPT-2's vocabulary has merges such as ".]"."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", *letters, "[a", ".]"])}
    backend = Tokenizer(models.BPE(vocab, [("[", "a"), (".", "]")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    (spans,) = TEMPLATES["sgpt_specb"].render("a.", "query")
    assert words(TextTokenizer(hf), *spans) == ["[", "a", ".", "]"]
    joined = Template("joined", ("[{text}]",), ("[{text}]",), pool_prompt=True)
    assert words(TextTokenizer(hf), *joined.render("a.")[0]) == ["[a", ".]"]
