"""Embedder.encode and its kin: what comes out, for every kind of text, and what is refused."""

import copy
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from polyvec import Embedder
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.embed.projection.dense import Normalize
from polyvec.embed.projection.trained import TopK
from polyvec.errors import (
    CalibrationError,
    InputError,
    ModelError,
    SettingsError,
    ShapeError,
    TruncationWarning,
)
from polyvec.interfaces import DenseVectors, MultiVectors, RunOptions, SparseVectors

ODD_TEXTS = {
    "empty": "",
    "blank": " \n\t ",
    "nul": "a\x00b",
    "emoji": "👩‍👩‍👧‍👦 🎉",
    "right to left": "שלום עולם مرحبا",
    "combining": "e\u0301 n\u0303",
    "look-alikes": "[CLS] [SEP] [MASK] [PAD] </s> <|endoftext|>",
    "braces": "{text} {0} {{}} %s",
    "megabyte": "word " * 200_000,
    "one long word": "x" * 100_000,
    "line separators": "a\u2028b\x85c",
}


@pytest.fixture(scope="module")
def tiny(tiny_bert):
    return Embedder.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def peer(tiny_bert):
    st = pytest.importorskip("sentence_transformers")
    return st.SentenceTransformer(str(tiny_bert), device="cpu")


@pytest.mark.parametrize("kind", ODD_TEXTS)
def test_odd_texts_have_vectors_that_depend_on_nothing_else(tiny, kind):
    text = ODD_TEXTS[kind]
    alone = tiny.encode(text, truncate="silent")
    assert alone.shape == (32,)
    assert np.isfinite(alone).all()
    assert_allclose(
        tiny.encode(["before", text, "after it"], truncate="silent")[1], alone, atol=1e-5
    )


@pytest.mark.parametrize("kind", sorted(set(ODD_TEXTS) - {"look-alikes"}))
def test_odd_texts_agree_with_sentence_transformers(tiny, peer, kind):
    theirs = peer.encode(ODD_TEXTS[kind])
    assert_allclose(tiny.encode(ODD_TEXTS[kind], truncate="silent"), theirs, atol=1e-5)


def test_look_alikes_are_text_here_and_markup_there(tiny, peer):
    """The one place where we part from sentence-transformers on purpose (SILENT row 32)."""
    assert np.abs(tiny.encode("a [SEP] b") - peer.encode("a [SEP] b")).max() > 1e-3
    assert_allclose(tiny.encode("a [SEP] b"), peer.encode("a [ SEP ] b"), atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, r"inputs\[1\] is NoneType"),
        (3.5, r"inputs\[1\] is float"),
        (b"raw", r"inputs\[1\] is bytes.*decode"),
        (["nested"], r"inputs\[1\] is list"),
        ("lone \ud800", r"inputs\[1\] has a lone surrogate at character 5"),
    ],
)
def test_what_is_no_text_names_its_index(tiny, bad, message):
    with pytest.raises(InputError, match=message):
        tiny.encode(["fine", bad])
    with pytest.raises(InputError, match=message):
        list(tiny.encode_iter(iter(["fine", bad]), chunk_size=1))


@pytest.mark.parametrize("bad", [5, b"raw", {"a", "b"}, {"a": 1}])
def test_what_holds_no_ordered_texts_is_refused(tiny, bad):
    with pytest.raises(InputError, match=f"inputs is (a )?{type(bad).__name__}"):
        tiny.encode(bad)
    with pytest.raises(InputError, match="inputs is"):
        tiny.encode_iter(bad)


def test_one_string_is_not_a_stream(tiny):
    with pytest.raises(InputError, match="inputs is str"):
        tiny.encode_iter("a cat")


def test_an_empty_text_without_any_special_token_is_refused():
    from families import build, tokenizer

    from polyvec.embed.backbone.backbone import Backbone
    from polyvec.embed.inputs.tokens import TextTokenizer

    bare = Embedder.from_parts(
        Backbone(build("llama")), TextTokenizer(tokenizer(False, False)), pooling="last"
    )
    assert bare.encode(["a cat"]).shape == (1, 32)
    with pytest.raises(InputError, match=r"inputs\[1\] leaves no token to pool"):
        bare.encode(["a cat", ""])


def test_a_prompt_that_fills_the_model_is_refused(tiny_bert):
    model = Embedder.from_pretrained(tiny_bert)
    for model.pool_prompt in (True, False):
        with pytest.raises(InputError, match="prompt alone has 182 tokens, the model reads 64"):
            model.encode("a cat", prompt="very long prompt " * 60)


def test_shapes_and_kinds_of_result(tiny):
    assert tiny.encode("a").shape == (32,)
    assert tiny.encode(["a"]).shape == (1, 32)
    assert tiny.encode([]).shape == (0, 32)
    assert tiny.encode(iter(["a", "b"])).shape == (2, 32)
    assert tiny.encode(("a", "b")).dtype == np.float32
    assert isinstance(tiny.encode(["a"], convert_to_tensor=True), torch.Tensor)
    assert [v.shape for v in tiny.encode(["a", "b"], convert_to_numpy=False)] == [(32,), (32,)]
    assert tiny.encode(np.array(["a", "b"])).shape == (2, 32)
    states = tiny.encode(["a cat", "a"], output_value="token_embeddings")
    assert [len(s) for s in states] == [4, 3]
    assert_allclose(
        tiny.encode("a cat", normalize_embeddings=True), _unit(states[0].mean(0)), atol=1e-5
    )


def test_sentence_transformers_positional_order(tiny):
    """encode(texts, prompt_name, prompt, batch_size, ...): code in the wild relies on it."""
    assert_allclose(tiny.encode(["a"], None, "p ", 1), tiny.encode(["p a"]), atol=1e-6)


def test_results_come_in_input_order_with_duplicates(tiny):
    texts = ["dog", "a cat sits here", "dog", "a", "a cat sits here"]
    expected = np.stack([tiny.encode(text) for text in texts])
    assert_allclose(tiny.encode(texts), expected, atol=1e-5)


def test_equal_texts_are_computed_once(tiny):
    _, report = tiny.encode_with_report(["a cat"] * 50)
    assert (report.num_texts, report.num_tokens) == (50, 4)


def test_a_stream_needs_one_window_at_a_time(tiny):
    taken = 0

    def stream():
        nonlocal taken
        for number in range(100):
            taken += 1
            yield f"text {number}"

    chunks = tiny.encode_iter(stream(), chunk_size=10)
    assert next(chunks).shape == (10, 32)
    assert taken == 10
    rest = np.concatenate(list(chunks))
    assert_allclose(rest[-1], tiny.encode("text 99"), atol=1e-5)


def test_windows_change_nothing(tiny):
    texts = [f"text {i} " * (i % 7 + 1) for i in range(40)]
    whole = tiny.encode(texts)
    assert_allclose(np.concatenate(list(tiny.encode_iter(texts, chunk_size=7))), whole, atol=1e-5)


def test_truncations_are_counted_and_reported(tiny):
    """SILENT row 14."""
    texts = ["short", "word " * 100, "word " * 80, "word " * 100]
    with pytest.warns(TruncationWarning, match=r"3 of 4 texts.*64 tokens.*first: index 1, 102"):
        tiny.encode(texts)
    with pytest.raises(InputError, match=r"inputs\[1\] has 102 tokens, the model reads 64"):
        tiny.encode(texts, truncate="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.encode(texts, truncate="silent")
        _, report = tiny.encode_with_report(texts, options=RunOptions(truncate="silent"))
    assert (report.num_truncated, report.first_truncated) == (3, (1, 102))


def test_prompts_of_roles(tiny_bert):
    """SILENT row 13, and the report says which prompt was used."""
    prompts = {"query": "query: ", "document": "", "passage": "passage: "}
    model = Embedder.from_pretrained(tiny_bert, prompts=prompts)
    assert_allclose(model.encode_query("a"), model.encode("query: a"), atol=1e-6)
    assert_allclose(model.encode_document("a"), model.encode("passage: a"), atol=1e-6)
    assert_allclose(model.encode("a", prompt_name="query"), model.encode_query("a"), atol=1e-6)
    assert_allclose(model.encode_query("a", prompt="x "), model.encode("x a"), atol=1e-6)
    _, report = model.encode_with_report(["a"], prompt_name="passage")
    assert report.prompt.name == "passage"


def test_prompt_in_the_pool_or_not_as_in_sentence_transformers(tiny_bert, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    model = Embedder.from_pretrained(tiny_bert)
    found = []
    for pool_prompt in (True, False):
        model.pool_prompt = pool_prompt
        model.save_pretrained(tmp_path / "model")
        peer = st.SentenceTransformer(str(tmp_path / "model"), device="cpu")
        texts = ["a cat", "the dog sat"]
        found.append(model.encode(texts, prompt="represent this: "))
        assert_allclose(found[-1], peer.encode(texts, prompt="represent this: "), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_truncate_dim_gives_unit_vectors_of_a_normalising_model(tiny):
    vectors = tiny.encode(["a cat", "dog"], truncate_dim=8)
    assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert_allclose(vectors[0], _unit(tiny.encode("a cat")[:8]), atol=1e-6)
    with pytest.raises(InputError, match="truncate_dim 33"):
        tiny.encode("a", truncate_dim=33)


@pytest.mark.equality
def test_integers_need_a_calibration_that_is_saved(tiny_bert, tmp_path):
    """SILENT row 16."""
    model = Embedder.from_pretrained(tiny_bert)
    with pytest.raises(CalibrationError, match="calibrate"):
        model.encode("a", precision="int8")
    model.calibrate(["a cat", "the dog", "mat", "a long text of many words"])
    one = model.encode("a cat", precision="int8")
    assert one.dtype == np.int8
    # In a batch a value may round to the other side of a bucket's border.
    in_batch = model.encode(["dog", "a cat"], precision="int8")[1]
    assert np.abs(in_batch.astype(int) - one).max() <= 1
    model.save_pretrained(tmp_path / "model")
    again = Embedder.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(again.encode("a cat", precision="int8"), one)
    with pytest.raises(CalibrationError, match="dimensions"):
        model.encode("a", precision="int8", truncate_dim=8)


def test_nothing_is_computed_before_a_wrong_option_is_refused(tiny):
    def never():
        raise AssertionError("a text was taken")
        yield ""

    for options in ({"precision": "int7"}, {"precision": "uint8"}, {"truncate_dim": 99}):
        with pytest.raises((InputError, CalibrationError)):
            tiny.encode(never(), **options)
    with pytest.raises(InputError, match="output_value"):
        tiny.encode(never(), output_value="pooler")
    with pytest.raises(InputError, match="truncate="):
        tiny.encode(never(), truncate="maybe")


def test_a_vector_that_is_not_finite_is_an_error(tiny_bert):
    model = Embedder.from_pretrained(tiny_bert)
    with torch.no_grad():
        model.backbone.model.get_input_embeddings().weight[1000] = float("nan")
    bad = model.tokenizer.convert_ids_to_tokens(1000)
    with pytest.raises(ModelError, match=r"inputs\[1\] holds NaN"):
        model.encode(["fine", bad])


@pytest.mark.equality
def test_encode_leaves_the_training_mode_as_it_was(tiny_bert):
    model = Embedder.from_pretrained(tiny_bert).train()
    model.backbone.model.config.hidden_dropout_prob = 0.5
    a, b = model.encode("a cat"), model.encode("a cat")
    np.testing.assert_array_equal(a, b)
    assert model.training


def test_gradients_reach_the_weights(tiny_bert):
    from polyvec.embed.inputs.spans import Span
    from polyvec.embed.inputs.tokens import TokenBatch

    model = Embedder.from_pretrained(tiny_bert)
    batch = TokenBatch.of([0], model.text_tokenizer.encode([(Span("a cat"),)]))
    model(batch)[0, 0].backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for name, p in model.named_parameters()
        if "pooler" not in name and "key.bias" not in name
    )


def test_similarity_is_the_models_own(tiny):
    vectors = tiny.encode(["a cat", "dog", "mat"])
    assert_allclose(tiny.similarity(vectors, vectors), vectors @ vectors.T, atol=1e-5)
    assert tiny.similarity(vectors[0], vectors[1]).shape == (1, 1)
    assert_allclose(
        tiny.similarity_pairwise(vectors[:2], vectors[1:]),
        [vectors[0] @ vectors[1], vectors[1] @ vectors[2]],
        atol=1e-5,
    )


def test_fingerprint_changes_with_whatever_changes_vectors(tiny_bert):
    base = Embedder.from_pretrained(tiny_bert)
    prints = {base.fingerprint(), Embedder.from_pretrained(tiny_bert).fingerprint()}
    assert len(prints) == 1
    for change in (
        {"pooling": "first"},
        {"max_seq_length": 32},
        {"truncate_dim": 8},
        {"prompts": {"query": "q "}},
        {"similarity_fn_name": "dot"},
    ):
        prints.add(Embedder.from_pretrained(tiny_bert, **change).fingerprint())
    with torch.no_grad():
        base.backbone.model.get_input_embeddings().weight[0, 0] += 1e-3
    prints.add(base.fingerprint())
    assert len(prints) == 7


def counted(model, monkeypatch) -> list[str]:
    """One entry for each time that all weights are hashed."""
    from polyvec.embed import fingerprints

    hashed: list[str] = []
    whole = fingerprints._fingerprint

    def noted(*arguments):
        hashed.append(whole(*arguments))
        return hashed[-1]

    monkeypatch.setattr(fingerprints, "_fingerprint", noted)
    return hashed


def test_a_fingerprint_is_computed_once(tiny_bert, monkeypatch):
    model = Embedder.from_pretrained(tiny_bert)
    hashed = counted(model, monkeypatch)
    assert len({model.fingerprint() for _ in range(5)}) == 1
    model.encode(["a cat"])
    assert model.fingerprint() == hashed[0]
    assert len(hashed) == 1
    assert len({model.vectors_fingerprint() for _ in range(5)} | {model.fingerprint()}) == 2
    assert len(hashed) == 2


def _step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(TokenBatch.of_ids([np.array([5, 6, 7])])).sum().backward()
    optimizer.step()


def _load(model):
    model.load_state_dict({name: x.clone() * 2 for name, x in model.state_dict().items()})


def _edit(model):
    model.backbone.model.get_input_embeddings().weight.data.mul_(1.5)


def _replace(model):
    weight = model.backbone.model.get_input_embeddings().weight
    weight.data = weight.data + 1


CHANGES = {
    "optimizer step": _step,
    "load_state_dict": _load,
    ".data edited": _edit,
    ".data replaced": _replace,
    "half": lambda model: model.half(),
    "max_seq_length": lambda model: setattr(model, "max_seq_length", 9),
    "pool_prompt": lambda model: setattr(model, "pool_prompt", False),
    "truncate_dim": lambda model: setattr(model, "truncate_dim", 4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_has_another_fingerprint(tiny_bert, change, monkeypatch):
    model = Embedder.from_pretrained(tiny_bert)
    before = model.fingerprint(), model.vectors_fingerprint()
    CHANGES[change](model)
    after = model.fingerprint(), model.vectors_fingerprint()
    assert after[0] != before[0] and after[1] != before[1]
    fresh = copy.deepcopy(model)
    assert (fresh.fingerprint(), fresh.vectors_fingerprint()) == after


def test_prompts_and_similarity_are_in_the_fingerprint_but_not_in_that_of_vectors(tiny_bert):
    plain = Embedder.from_pretrained(tiny_bert)
    for change in ({"prompts": {"query": "q "}}, {"similarity_fn_name": "dot"}):
        other = Embedder.from_pretrained(tiny_bert, **change)
        assert other.vectors_fingerprint() == plain.vectors_fingerprint()
        assert other.fingerprint() != plain.fingerprint()


def test_equal_prompt_keys_give_equal_vectors(tiny_bert):
    model = Embedder.from_pretrained(tiny_bert, prompts={"query": "q ", "other": "q "})
    assert model.takes_prompt("query") and not model.takes_instruction("query")
    key = model.prompt_key(role="query")
    assert key == model.prompt_key(prompt_name="other") == model.prompt_key("q ") == ("q ", None)
    assert key != model.prompt_key()
    assert_allclose(model.encode_query("a"), model.encode("a", prompt_name="other"), atol=0)


def test_the_texts_have_three_names_of_which_one_is_used(tiny):
    one = tiny.encode(inputs=["a cat"])
    for how in ({"sentences": ["a cat"]}, {"texts": ["a cat"]}):
        np.testing.assert_array_equal(tiny.encode(**how), one)
        np.testing.assert_array_equal(tiny.encode_query(**how), tiny.encode_query(["a cat"]))
    with pytest.raises(InputError, match="once, as inputs, sentences or texts; got inputs and"):
        tiny.encode(["a"], sentences=["a"])
    with pytest.raises(InputError, match="got none"):
        tiny.encode()
    assert tiny.encode_document("a", None, "p ").shape == (32,)


def test_tokens_are_those_that_encode_reads(tiny_bert):
    model = Embedder.from_pretrained(tiny_bert, prompts={"query": "q: "})
    model.pool_prompt = False
    texts = ["a cat", "the dog sat on the mat"]
    tokens = model.tokenize(texts, role="query")
    assert [len(each) for each in tokens] == [1, 1]
    batch = TokenBatch.of([0, 1], [one for (one,) in tokens])
    with torch.inference_mode():
        assert_allclose(model(batch), model.encode_query(texts), atol=1e-6)
    with pytest.raises(InputError, match=r"inputs\[1\] is int"):
        model.tokenize(["a", 1])


def test_vectors_come_in_the_form_that_suits_them(tiny):
    texts = ["a cat", "the dog sat on the mat", "a cat"]
    dense, report = tiny.encode_vectors(texts)
    assert isinstance(dense, DenseVectors) and report.num_texts == 3
    np.testing.assert_array_equal(dense.to_dense(), tiny.encode(texts))
    several, _ = tiny.encode_vectors(texts, output_value="token_embeddings")
    assert isinstance(several, MultiVectors) and len(several) == 3
    states = tiny.encode(texts, output_value="token_embeddings")
    for row, expected in enumerate(states):
        np.testing.assert_array_equal(several[row], expected)


@pytest.mark.parametrize("steps", [[TopK(32, 5)], [TopK(32, 5), Normalize()]])
def test_sparse_vectors_are_those_of_encode(tiny, steps, monkeypatch):
    model = Embedder.from_parts(tiny.backbone, tiny.text_tokenizer, projections=steps)
    texts = [f"text {number} of a cat" for number in range(20)]
    sparse, _ = model.encode_vectors(texts)
    assert isinstance(sparse, SparseVectors) and sparse.dimension == 32
    assert len(sparse.values_Z) == 100
    np.testing.assert_array_equal(sparse.to_dense(), model.encode(texts))
    shorter, _ = model.encode_vectors(texts, truncate_dim=8, normalize_embeddings=True)
    expected = model.encode(texts, truncate_dim=8, normalize_embeddings=True)
    monkeypatch.setattr("polyvec.embed.encode_methods.DENSE_ELEMENTS", 96)  # blocks of 3 rows
    np.testing.assert_array_equal(shorter.to_dense(), expected)
    in_blocks, _ = model.encode_vectors(texts)
    np.testing.assert_array_equal(in_blocks.to_dense(), sparse.to_dense())
    assert len(model.encode_vectors([])[0]) == 0


def test_sparse_vectors_are_never_one_dense_array(monkeypatch):
    """A dense [N, V] of a vocabulary would not fit the memory."""
    from families import build, tokenizer

    from polyvec.embed.backbone.backbone import Backbone
    from polyvec.embed.encoding import EncodeRun
    from polyvec.embed.inputs.tokens import TextTokenizer

    model = Embedder.from_parts(
        Backbone(build("llama")), TextTokenizer(tokenizer(False, False)), projections=[TopK(32, 2)]
    )
    largest = 0
    windows = EncodeRun.windows

    def watched(run, *arguments):
        nonlocal largest
        for window in windows(run, *arguments):
            largest = max(largest, sum(x.numel() for x in window if not x.is_sparse))
            yield window

    monkeypatch.setattr(EncodeRun, "windows", watched)
    model.encode_vectors(["a cat", "dog"])
    assert largest == 0


def test_max_seq_length_is_checked_against_the_positions(tiny_bert):
    model = Embedder.from_pretrained(tiny_bert)
    model.max_seq_length = 10
    assert model.encode_with_report(["word " * 50])[1].num_tokens == 10
    with pytest.raises(InputError, match="64 positions"):
        model.max_seq_length = 65


def test_unknown_poolings_and_similarities_are_refused(tiny):
    with pytest.raises(SettingsError, match="Did you mean 'mean'"):
        Embedder.from_parts(tiny.backbone, tiny.text_tokenizer, pooling="meen")
    with pytest.raises(ModelError, match="Did you mean 'cosine'"):
        Embedder.from_parts(tiny.backbone, tiny.text_tokenizer, similarity_fn_name="cosin")
    with pytest.raises(InputError, match="default prompt"):
        Embedder.from_parts(tiny.backbone, tiny.text_tokenizer, prompts=PromptTable({}, "q"))


def test_the_default_model_is_what_it_is(minilm):
    assert minilm.get_embedding_dimension() == minilm.get_sentence_embedding_dimension() == 384
    assert minilm.max_seq_length == 256
    assert minilm.backbone.layout == "packed"
    cat, kitten, car = minilm.encode(["a cat", "a kitten", "a car engine"])
    assert cat @ kitten > 0.7 > cat @ car


def _unit(vector):
    return vector / np.linalg.norm(vector)


def test_a_fingerprint_sees_a_row_set_through_data(tiny_bert):
    """How rows of new tokens are usually set; .data changes no version counter."""
    embedder = Embedder.from_pretrained(tiny_bert)
    weight = embedder.backbone.model.get_input_embeddings().weight
    for row in range(0, len(weight), 613):
        before = embedder.fingerprint()
        weight.data[row] = 7
        assert embedder.fingerprint() != before, row


def test_a_pooling_of_another_shape_is_refused(tiny_bert):
    """numpy would broadcast one number to all dimensions."""
    POOLINGS.register("test narrow")(lambda states, mask, attention_mask=None: states[:, 0, :1])
    try:
        embedder = Embedder.from_pretrained(tiny_bert, pooling="test narrow")
        with pytest.raises(ShapeError, match=r"'test narrow' gave vectors of shape \(2, 1\)"):
            embedder.encode(["a", "b c"])
    finally:
        del POOLINGS._parts["test narrow"]


@pytest.mark.parametrize("options", [{"batch_size": 2}, 16, "silent"], ids=str)
def test_options_of_another_kind_are_named(tiny, options):
    for encode in (tiny.encode_vectors, tiny.encode_with_report):
        with pytest.raises(InputError, match=r"options is a \w+; pass .*RunOptions\(batch_size"):
            encode(["a text"], options=options)
    with pytest.raises(InputError, match="options is a"):
        list(tiny.encode_iter(["a text"], options=options))


def test_prompts_are_replaced_as_a_whole(tiny_bert):
    """A change of one entry would be lost without a word, so it is an error."""
    embedder = Embedder.from_pretrained(tiny_bert)
    before = embedder.fingerprint()
    with pytest.raises(TypeError):
        embedder.prompts["query"] = "the "
    embedder.prompts = {"query": "the "}
    assert embedder.fingerprint() != before
    np.testing.assert_array_equal(embedder.encode_query("cat"), embedder.encode("the cat"))
    with pytest.raises(InputError, match="prompt 'query' is int"):
        embedder.prompts = {"query": 3}
