"""Chains of sentence-transformers' modules: their vectors, before and after saving."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from families import build, tokenizer
from numpy.testing import assert_allclose
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    LSTM,
    BoW,
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
    WeightedLayerPooling,
    WordEmbeddings,
    WordWeights,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import (
    PhraseTokenizer,
    WhitespaceTokenizer,
)
from sentence_transformers.sentence_transformer.modules.tokenizer.word import (
    TransformersTokenizerWrapper,
)
from torch import nn

from polyvec import Embedder
from polyvec.embed.projection.dense import ACTIVATIONS
from polyvec.embed.projection.dense import Dense as OurDense
from polyvec.errors import InputError, ModelError

TEXTS = ["The cat sat on the mat, while nobody looks!", "dog", "a very long text of two cats."]
VOCAB = [
    *("PADDING_TOKEN", "cat", "dog", "sat", "mat", "two", "cats", "Cat", "long_text", "very", "!"),
    *("text", "nobody", "The", "New_York", "looks", "it's"),
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    model = build("bert")
    model.config.output_hidden_states = True
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def transformer(folder: Path) -> Transformer:
    return Transformer(str(folder))


def words(tokens=None, vocab=VOCAB, size=32, **options) -> WordEmbeddings:
    torch.manual_seed(1)
    rows = torch.randn(len(vocab), size)
    rows[0] = 0
    tokens = tokens or WhitespaceTokenizer(vocab, do_lower_case=False)
    return WordEmbeddings(tokens, rows.numpy(), **options)


def seeded(make):
    torch.manual_seed(2)
    return make()


TOKENS = {"module_input_name": "token_embeddings"}
# After a transformer whose states have 32 dimensions.
AFTER_BERT = {
    "dropout": lambda: [Pooling(32), Dropout(0.5)],
    "dropout between": lambda: [Pooling(32), Dropout(0.5), Dense(32, 8), Normalize()],
    "two dense": lambda: [Pooling(32), Dense(32, 8), Dense(8, 12, activation_function=nn.GELU())],
    "normalize before dense": lambda: [Pooling(32), Normalize(), Dense(32, 8, bias=False)],
    "residual of another size": lambda: [Pooling(32), Dense(32, 8, use_residual=True)],
    "residual": lambda: [Pooling(32), Dense(32, 32, use_residual=True), Normalize()],
    "identity": lambda: [Pooling(32), Dense(32, 8, activation_function=None)],
    "layer norm": lambda: [Pooling(32), LayerNorm(32), Normalize()],
    "several poolings": lambda: [Pooling(32, ("max", "cls", "mean")), Dense(96, 8)],
    "weighted layers": lambda: [WeightedLayerPooling(32, 2, 1), Pooling(32)],
    "tokens: dense": lambda: [Dense(32, 8, **TOKENS), Pooling(8)],
    "tokens: dense and normalize": lambda: [
        *(Dense(32, 8, **TOKENS), Normalize(**TOKENS), Pooling(8, "max"), Normalize())
    ],
    "tokens: normalize": lambda: [Normalize(**TOKENS), Pooling(32, ("mean", "weightedmean"))],
    "tokens: dense after pooling": lambda: [Pooling(32), Dense(32, 8, **TOKENS)],
    "tokens: layers, then dense": lambda: [
        *(WeightedLayerPooling(32, 2, 1), Dense(32, 8, **TOKENS), Pooling(8))
    ],
    "tokens: dense, then layers": lambda: [
        *(Dense(32, 32, **TOKENS), WeightedLayerPooling(32, 2, 1), Pooling(32))
    ],
    "cnn": lambda: [CNN(32, 8, [1, 3]), Pooling(16)],
    "cnn with strides": lambda: [CNN(32, 8, [1, 3], [2, 2]), Pooling(16, ("mean", "max"))],
    "normalize before pooling": lambda: [Normalize(), Pooling(32)],
    "two poolings": lambda: [Pooling(32), Dense(32, 8), Pooling(32, "cls")],
}
AFTER_WORDS = {
    **{name: AFTER_BERT[name] for name in ("cnn", "tokens: dense", "dropout", "several poolings")},
    "mean": lambda: [Pooling(32)],
    "lstm": lambda: [LSTM(32, 8), Pooling(16, ("mean", "max"))],
    "lstm of two layers": lambda: [LSTM(32, 8, 2, 0.5, False), Pooling(8, "lasttoken")],
    "weights": lambda: [
        WordWeights(VOCAB, {"cat": 0.5, "the": 2.0, "mat": 3.0}, 0.25),
        Pooling(32, ("mean", "max", "mean_sqrt_len_tokens", "weightedmean")),
    ],
    "weights, cnn": lambda: [WordWeights(VOCAB, {"cat": 0.5}, 2), CNN(32, 8, [3]), Pooling(8)],
}
AFTER_WORDS["several poolings"] = lambda: [Pooling(32, ("max", "mean")), Dense(64, 8)]


def saved(modules, folder: Path) -> SentenceTransformer:
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def one_by_one(model, texts=TEXTS, **options) -> np.ndarray:
    """Their vectors of each text alone: a CNN of theirs sees the padding of a batch."""
    return np.stack([model.encode(text, **options) for text in texts])


def check(folder: Path, again: Path, texts=TEXTS, **options) -> Embedder:
    """Ours equals theirs, loaded and after saving, on both sides."""
    theirs = one_by_one(SentenceTransformer(str(folder), device="cpu"), texts, **options)
    ours = Embedder.from_pretrained(folder)
    assert_allclose(ours.encode(texts, **options), theirs, atol=1e-5)
    assert ours.get_embedding_dimension() == theirs.shape[1]
    ours.save_pretrained(again)
    loaded = Embedder.from_pretrained(again)
    assert_allclose(loaded.encode(texts, **options), theirs, atol=1e-5)
    assert loaded.fingerprint() == ours.fingerprint()
    assert_allclose(
        one_by_one(SentenceTransformer(str(again), device="cpu"), texts, **options),
        theirs,
        atol=1e-5,
    )
    return ours


@pytest.mark.equality
@pytest.mark.parametrize("name", AFTER_BERT)
def test_modules_after_a_transformer(name, bert, tmp_path):
    saved([transformer(bert), *seeded(AFTER_BERT[name])], tmp_path / "theirs")
    check(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.equality
@pytest.mark.parametrize("name", AFTER_WORDS)
def test_modules_after_word_embeddings(name, tmp_path):
    saved([words(), *seeded(AFTER_WORDS[name])], tmp_path / "theirs")
    ours = check(tmp_path / "theirs", tmp_path / "ours")
    together = ours.encode(TEXTS)
    assert_allclose(np.stack([ours.encode(text) for text in TEXTS]), together, atol=1e-6)


WORD_TOKENIZERS = {
    "lower case": lambda: WhitespaceTokenizer(VOCAB, do_lower_case=True),
    "stop words": lambda: WhitespaceTokenizer(VOCAB, stop_words=["cat", "mat", "two"]),
    "no stop words": lambda: WhitespaceTokenizer([*VOCAB, "", "the"], stop_words=[]),
}
HARD = ["The CAT, (dog) -- 'sat' it's", "cat", "!  ! \u00a0cat\u2003mat", "Two New York cats"]


@pytest.mark.equality
@pytest.mark.parametrize("name", WORD_TOKENIZERS)
def test_word_tokenizers(name, tmp_path):
    tokens = WORD_TOKENIZERS[name]()
    saved([words(tokens, list(tokens.vocab), max_seq_length=3), Pooling(32)], tmp_path / "theirs")
    check(tmp_path / "theirs", tmp_path / "ours", HARD)


@pytest.mark.equality
def test_phrases(tmp_path):
    pytest.importorskip("nltk")
    vocab = [*VOCAB, "cat_sat_on", "sat_on", "a__b", "new_york_city"]
    tokens = PhraseTokenizer(vocab, stop_words=["The"], max_ngram_length=3)
    saved([words(tokens, vocab), Pooling(32)], tmp_path / "theirs")
    texts = [*HARD, "the cat sat on New York City", "Long text. cat Sat on mat", "it's a dog's."]
    check(tmp_path / "theirs", tmp_path / "ours", texts)


def test_phrases_without_nltk_are_refused(tmp_path, monkeypatch):
    saved([words(), Pooling(32)], tmp_path / "theirs")
    path = tmp_path / "theirs" / "wordembedding_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "sentence_transformers.models.tokenizer.PhraseTokenizer"
    path.write_text(json.dumps(config))
    (tmp_path / "theirs" / "phrasetokenizer_config.json").write_text('{"vocab": ["cat"]}')
    monkeypatch.setitem(__import__("sys").modules, "nltk.tokenize.destructive", None)
    with pytest.raises(ModelError, match="pip install nltk"):
        Embedder.from_pretrained(tmp_path / "theirs")


@pytest.mark.equality
def test_texts_without_a_known_word_have_zeros(tmp_path):
    saved([words(), Pooling(32), Dense(32, 4)], tmp_path / "theirs")
    ours = check(tmp_path / "theirs", tmp_path / "ours", ["", "unknown words", "cat"])
    assert np.abs(ours.encode("")).max() > 0  # the bias of Dense


def test_of_no_words_there_is_no_largest(tmp_path):
    saved([words(), Pooling(32, "max")], tmp_path / "theirs")
    with pytest.raises(InputError, match=r"inputs\[1\] leaves no token to pool"):
        Embedder.from_pretrained(tmp_path / "theirs").encode(["cat", "zzz"])


@pytest.mark.equality
@pytest.mark.parametrize("cumulative", [True, False])
def test_bags_of_words(cumulative, tmp_path):
    bag = BoW(
        VOCAB,
        {"cat": 2.0, "dog": -0.5, "the": 3.0},
        unknown_word_weight=0.5,
        cumulative_term_frequency=cumulative,
    )
    saved([bag, *seeded(lambda: [Dense(len(VOCAB), 8), Normalize()])], tmp_path / "theirs")
    check(tmp_path / "theirs", tmp_path / "ours", [*TEXTS, "cat cat dog", "", "zzz"])
    saved([bag], tmp_path / "bare")
    check(tmp_path / "bare", tmp_path / "bare-again", [*TEXTS, "cat cat dog", "", "zzz"])


def test_a_bag_of_words_takes_no_pooling_and_no_length(tmp_path):
    saved([BoW(VOCAB)], tmp_path)
    with pytest.raises(InputError, match="pooling 'last': a bag of words"):
        Embedder.from_pretrained(tmp_path, pooling="last")
    with pytest.raises(InputError, match="max_seq_length does nothing"):
        Embedder.from_pretrained(tmp_path, max_seq_length=2)


@pytest.mark.equality
def test_prompts_of_word_embeddings_are_pooled(tmp_path):
    saved([words(), Pooling(32, include_prompt=False)], tmp_path / "theirs")
    check(tmp_path / "theirs", tmp_path / "ours", prompt="two cats ")


@pytest.mark.equality
def test_folders_of_before_sentence_transformers_5(tmp_path):
    """Old names of classes and keys, as of version 2."""
    saved([words(), *seeded(lambda: [CNN(32, 8, [1, 3]), LSTM(16, 4), Pooling(8)])], tmp_path / "t")
    folder = tmp_path / "t"
    for place, file in (("1_CNN", "cnn_config.json"), ("2_LSTM", "lstm_config.json")):
        text = (folder / place / file).read_text()
        (folder / place / file).write_text(text.replace("embedding_dim", "word_embedding_dim"))
    listed = json.loads((folder / "modules.json").read_text())
    for module in listed:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    (folder / "modules.json").write_text(json.dumps(listed))
    path = folder / "wordembedding_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = (
        "sentence_transformers.models.tokenizer.WhitespaceTokenizer.WhitespaceTokenizer"
    )
    path.write_text(json.dumps(config))
    check(folder, tmp_path / "ours")


# ---- what modules.json may say ------------------------------------------------------------------


def edited(folder: Path, change) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(change(listed)))


@pytest.mark.equality
@pytest.mark.parametrize(
    "change",
    [
        lambda m: [{**each, "idx": 9 - i} for i, each in enumerate(m)],
        lambda m: [{**each, "kwargs": ["task"]} for each in m],
        lambda m: [m[0], m[1], m[3], m[2]],
        lambda m: [m[0], m[1], m[2], {**m[3], "name": m[2]["name"]}],
        lambda m: [m[0], m[1], m[2], {**m[3], "path": ""}],
    ],
    ids=["idx descending", "kwargs", "another order", "a name twice", "a path twice"],
)
def test_the_order_of_the_list_counts(change, bert, tmp_path):
    chain = seeded(lambda: [Pooling(32), Dense(32, 32), Normalize()])
    saved([transformer(bert), *chain], tmp_path / "theirs")
    edited(tmp_path / "theirs", change)
    check(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.equality
def test_layers_that_the_transformer_does_not_give_have_no_weights(bert, tmp_path):
    chain = [transformer(bert), WeightedLayerPooling(32, 2, 1), Pooling(32)]
    saved(chain, tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "output_hidden_states": False}))
    with pytest.warns(UserWarning, match="1_WeightedLayerPooling: has no effect"):
        check(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.equality
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name, tmp_path):
    """The dense layer alone: their module on the same vectors."""
    theirs = Dense(32, 8, activation_function=getattr(nn, name)())
    theirs.save(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    activation = config["activation_function"].rpartition(".")[2]
    ours = OurDense(32, 8, activation=activation)
    ours.load_state_dict(theirs.state_dict())
    vectors = torch.randn(4, 32)
    right = theirs({"sentence_embedding": vectors})["sentence_embedding"]
    assert torch.equal(ours(vectors), right)


WRONG = {
    "2_Dense/config.json": [{"in_features": "32", "out_features": 8}, [1], 3],
    "1_Pooling/config.json": [[1], {"pooling_mode": 3}, {"pooling_mode": None}],
}


@pytest.mark.parametrize("file", WRONG)
def test_configurations_of_another_type_are_refused(file, bert, tmp_path):
    saved([transformer(bert), Pooling(32), Dense(32, 8)], tmp_path / "theirs")
    for wrong in WRONG[file]:
        (tmp_path / "theirs" / file).write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match=file.partition("/")[0]):
            Embedder.from_pretrained(tmp_path / "theirs")


REFUSED = {
    "dense before pooling": (lambda: [Dense(32, 8), Pooling(32)], "comes before the Pooling"),
    "tokens to a vector": (
        lambda: [Pooling(32), Dense(32, 8, **TOKENS, module_output_name="sentence_embedding")],
        "module_input_name 'token_embeddings' to module_output_name 'sentence_embedding'",
    ),
    "another key": (
        lambda: [Pooling(32), Normalize("token_weights_sum")],
        "module_input_name 'token_weights_sum'",
    ),
    "steps of other sizes": (
        lambda: [Dense(32, 8, **TOKENS), Dense(9, 8, **TOKENS), Pooling(8)],
        "Dense takes 9 dimensions, but gets 8",
    ),
    "weights of fewer words": (
        lambda: [WordWeights(["a", "b"], {"a": 2.0}), Pooling(32)],
        "WordWeights has 2 words, the tokenizer",
    ),
    "a step of another size": (
        lambda: [Dense(16, 8, **TOKENS), Pooling(8)],
        "Dense takes 16 dimensions, but gets 32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused(name, bert, tmp_path):
    make, message = REFUSED[name]
    SentenceTransformer(modules=[transformer(bert), *make()]).save(str(tmp_path / "theirs"))
    with pytest.raises(ModelError, match=message):
        Embedder.from_pretrained(tmp_path / "theirs")


def test_a_missing_key_and_an_unknown_one(tmp_path):
    saved([words(), CNN(32, 8, [3]), Pooling(8)], tmp_path / "theirs")
    path = tmp_path / "theirs" / "1_CNN" / "cnn_config.json"
    shutil.copy(path, tmp_path / "kept")
    path.write_text(json.dumps({"out_channels": 8}))
    with pytest.raises(ModelError, match=r"1_CNN: CNN: missing 1 required .*'in_embedding_dimen"):
        Embedder.from_pretrained(tmp_path / "theirs")
    path.write_text(json.dumps({**json.loads((tmp_path / "kept").read_text()), "pad": 1}))
    with pytest.raises(ModelError, match=r"1_CNN: CNN: .*unexpected keyword argument 'pad'"):
        Embedder.from_pretrained(tmp_path / "theirs")


def test_token_embeddings_are_those_that_are_pooled(bert, tmp_path):
    theirs = saved([transformer(bert), seeded(lambda: Dense(32, 8, **TOKENS)), Pooling(8)],
                   tmp_path / "theirs")  # fmt: skip
    ours = Embedder.from_pretrained(tmp_path / "theirs")
    (found,) = ours.encode([TEXTS[1]], output_value="token_embeddings")
    (right,) = theirs.encode([TEXTS[1]], output_value="token_embeddings")
    assert_allclose(found, right.numpy(), atol=1e-5)
    vectors, _ = ours.encode_vectors(TEXTS, output_value="token_embeddings")
    assert vectors.dimension == 8


@pytest.mark.equality
def test_pieces_of_a_hugging_face_tokenizer(tmp_path):
    tokens = TransformersTokenizerWrapper(tokenizer())
    vocab = [str(i) for i in range(len(tokenizer()))]
    model = SentenceTransformer(modules=[words(tokens, vocab), Pooling(32)], device="cpu")
    model.save(str(tmp_path / "theirs"))
    ours = Embedder.from_pretrained(tmp_path / "theirs")
    ids = [tokenizer()(text)["input_ids"] for text in TEXTS]
    rows = model[0].emb_layer.weight
    right = np.stack([rows[i].mean(0).detach().numpy() for i in ids])
    assert_allclose(ours.encode(TEXTS), right, atol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    again = Embedder.from_pretrained(tmp_path / "ours")
    assert_allclose(again.encode(TEXTS), right, atol=1e-5)


@pytest.mark.equality
def test_instructors_leave_the_instruction_out(tmp_path):
    """T5, Pooling without the prompt, Dense, Normalize, as hkunlp/instructor-base has them."""
    build("t5_encoder").save_pretrained(tmp_path / "t5")
    tokenizer(bos=False).save_pretrained(tmp_path / "t5")
    chain = seeded(lambda: [Dense(32, 24, bias=False, activation_function=nn.Identity())])
    pooling = Pooling(32, include_prompt=False)
    saved([transformer(tmp_path / "t5"), pooling, *chain, Normalize()], tmp_path / "theirs")
    for prompt in ("query of the cat: ", "the"):
        ours = check(tmp_path / "theirs", tmp_path / "ours", prompt=prompt)
        with_prompt = Embedder.from_parts(**{**ours._parts().keywords(), "pool_prompt": True})
        differs = with_prompt.encode(TEXTS, prompt=prompt) - ours.encode(TEXTS, prompt=prompt)
        assert np.abs(differs).max() > 1e-3
