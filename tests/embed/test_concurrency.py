"""Nothing shared changes while an Embedder works: threads, processes, copies and pickles."""

import copy
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from numpy.testing import assert_array_equal

from polyvec import Embedder
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.modes import evaluating
from polyvec.embed.compose import compose
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch
from polyvec.embed.pooling.lexical import Lexical
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import ModelError
from polyvec.recipe import load_recipe

WORDS = (*("the", "a", "cat", "dog", "sat", "on", "mat"), *("nobody", "looks", "very", "long"))
NUM_THREADS = 8
ONE_TOKEN = {"over": "last", "text_only": True, "top_k": 3}

# Every way in which a call once changed what other calls share.
EMBEDDERS: dict[str, dict] = {
    "plain": {"family": "meta-llama/"},
    "template": {"family": "meta-llama/", "template": "prompteol", "pooling": "last"},
    "geneol": {
        "family": "meta-llama/",
        "template": "prompteol",
        "pooling": "last",
        "variants": {"num_variants": 2, "max_new_tokens": 4},
    },
    "token prepending": {
        "family": "meta-llama/",
        "template": "token_prepending",
        "prepending": {"start": 1, "stop": 3},
    },
    "text only": {
        "family": "meta-llama/",
        "template": "promptreps",
        "pooling": "lexical",
        "pooling_settings": ONE_TOKEN,
    },
    "masks by hooks": {"family": "bigscience/bloom", "attention": "bidirectional"},
    "last-k": {"family": "meta-llama/", "attention": "last-2"},
    "all layers": {
        "family": "meta-llama/",
        "pooling": "layer_concat",
        "pooling_settings": {"layers": [1, 3]},
    },
    "attention weights": {"family": "meta-llama/", "pooling": "reba"},
    "native attention weights": {"family": "google-t5/", "pooling": "reba"},
    "static positions": {"family": "google-t5/"},
}


def build(name: str) -> Embedder:
    parts = dict(EMBEDDERS[name])
    return compose(EmbedderSettings(backbone=str(checkpoint(parts.pop("family"))), **parts))


def batches(seed: int = 0) -> list[list[str]]:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 9, (NUM_THREADS * 2, 3))
    return [[" ".join(draw.choice(WORDS, n)) for n in row] for row in lengths]


def in_threads(function, inputs: list) -> list:
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        return list(threads.map(function, inputs))


@pytest.mark.equality
@pytest.mark.parametrize("name", EMBEDDERS)
def test_eight_threads_give_the_vectors_of_one(name):
    model = build(name)
    expected = [model.encode(texts) for texts in batches()]
    for _ in range(3):
        for found, vectors in zip(in_threads(model.encode, batches()), expected, strict=True):
            assert_array_equal(found, vectors)


@pytest.mark.equality
@pytest.mark.parametrize("name", EMBEDDERS)
def test_pickles_and_copies_give_the_same_vectors(name):
    model = build(name)
    expected = [model.encode(texts) for texts in batches()]
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        for texts, vectors in zip(batches(), expected, strict=True):
            assert_array_equal(other.encode(texts), vectors)
        assert other.fingerprint() == model.fingerprint()
        assert [p.data_ptr() for p in other.parameters()] != [
            p.data_ptr() for p in model.parameters()
        ]
    assert_array_equal(model.encode(batches()[0]), expected[0])


@pytest.mark.equality
def test_a_pickle_is_used_by_threads_at_once():
    """Its first forward adds transformers' hooks, while others may iterate over them."""
    model = build("all layers")
    expected = [model.encode(texts) for texts in batches()]
    for _ in range(3):
        other = pickle.loads(pickle.dumps(model))
        for found, vectors in zip(in_threads(other.encode, batches()), expected, strict=True):
            assert_array_equal(found, vectors)


def encode_in_worker(model: Embedder, texts: list[str], num_threads: int) -> np.ndarray:
    torch.set_num_threads(num_threads)  # sums are split by it, and round otherwise
    return model.encode(texts)


@pytest.mark.equality
def test_spawned_workers_give_the_same_vectors():
    models = [build(name) for name in ("plain", "geneol", "token prepending", "masks by hooks")]
    threads = torch.get_num_threads()
    work = [(model, texts, threads) for model in models for texts in batches()[:2]]
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        for (model, texts, _), found in zip(
            work, workers.starmap(encode_in_worker, work), strict=True
        ):
            assert_array_equal(found, model.encode(texts))


@pytest.mark.equality
def test_two_embedders_share_a_tokenizer_and_a_backbone():
    """The pooling that reads the text mask must not leave the other without its own."""
    lm = build("text only")
    backbone = Backbone(lm.backbone.model, 0, lm=lm.backbone.lm)
    words = TextTokenizer(lm.tokenizer, max_length=64)
    vocabulary = backbone.lm_head.weight.shape[0]
    prompts = PromptTable({"p": "two very long "}, "p")

    def make(pooling) -> Embedder:
        return Embedder.from_parts(backbone, words, pooling=pooling, prompts=prompts)

    text_only = make(Lexical(vocabulary, **ONE_TOKEN))
    alone = [text_only.encode(texts) for texts in batches()]
    assert max((v > 0).sum(axis=1).max() for v in alone) <= 3
    others = [make("mean"), make("last"), make(Lexical(vocabulary, "last"))]
    expected = [[model.encode(texts) for texts in batches()] for model in others]
    work = [(text_only, alone), *zip(others, expected, strict=True)]
    calls = [
        (model, texts, vectors)
        for texts_number, texts in enumerate(batches())
        for model, of_model in work
        for vectors in [of_model[texts_number]]
    ]
    for call, found in zip(calls, in_threads(lambda c: c[0].encode(c[1]), calls), strict=True):
        assert_array_equal(found, call[2])


@pytest.mark.equality
def test_a_model_that_writes_runs_as_it_did_for_others():
    """Variants are written causally; a bidirectional embedder beside them stays bidirectional."""
    model = build("plain")
    lm = checkpoint("meta-llama/")
    settings = EmbedderSettings(
        backbone=str(lm),
        attention="bidirectional",
        variants={"num_variants": 2, "max_new_tokens": 6},
    )
    writer = compose(settings)
    reader = Embedder.from_parts(writer.backbone, writer.text_tokenizer, pooling="mean")
    expected = [reader.encode(texts) for texts in batches()]
    assert np.abs(expected[0] - model.encode(batches()[0])).max() > 1e-3
    written = [writer.encode(texts) for texts in batches()[:3]]
    jobs = [(writer, t) for t in batches()[:3]] + [(reader, t) for t in batches()]
    found = in_threads(lambda job: job[0].encode(job[1]), jobs)
    for got, vectors in zip(found, [*written, *expected], strict=True):
        assert_array_equal(got, vectors)


def test_encode_moves_no_global_random_state():
    model = build("geneol")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.encode(["a cat"])
    assert torch.equal(torch.rand(3), expected)


def test_a_model_that_is_not_training_is_never_switched(monkeypatch):
    model = build("plain")
    monkeypatch.setattr(type(model.backbone.model), "train", lambda *a: pytest.fail("switched"))
    model.encode(["a cat"])


def test_encoding_restores_the_mode_of_each_module():
    model = build("plain").train()
    frozen = model.backbone.model.get_input_embeddings().eval()
    model.encode(["a cat"])
    assert model.training and model.backbone.model.training and not frozen.training


def test_two_threads_may_both_show_a_bar(capsys):
    model = build("plain")
    jobs = batches()
    expected = [model.encode(texts) for texts in jobs]
    show = lambda texts: model.encode(texts, show_progress_bar=True)  # noqa: E731
    for found, vectors in zip(in_threads(show, jobs), expected, strict=True):
        assert_array_equal(found, vectors)


@pytest.mark.parametrize("name", ["masks by hooks", "token prepending"])
def test_layer_hooks_refuse_gradient_checkpointing(name):
    """The layers computed again in the backward pass would miss their masks, without an error."""
    model = build(name)
    (tokens,) = model.tokenize(["a cat"])
    batch = TokenBatch.of([0], tokens)
    model.backbone.model.activation_checkpointing_enable()
    with torch.no_grad():
        model.train()(batch)
    with pytest.raises(ModelError, match="gradient checkpointing would lose"):
        model(batch)


FRESH = """
import pickle, sys
import numpy as np
path, out = sys.argv[1:]
with open(path, "rb") as file:
    embedder, texts = pickle.load(file)
np.save(out, embedder.encode(texts))
"""


@pytest.mark.medium
@pytest.mark.parametrize("recipe", ["token-prepending", "reba"])
def test_a_fresh_process_unpickles_what_needs_all_layers(recipe, tmp_path):
    """transformers registers what a model can record in its constructor, which pickle skips."""
    embedder, texts = load_recipe(recipe).build("nano"), ["a cat", "the river flows"]
    path, out = tmp_path / "embedder.pickle", tmp_path / "out.npy"
    path.write_bytes(pickle.dumps((embedder, texts)))
    subprocess.run([sys.executable, "-c", FRESH, str(path), str(out)], check=True)
    np.testing.assert_allclose(np.load(out), embedder.encode(texts), atol=1e-6)


def test_blocks_that_overlap_share_a_model_in_training_mode():
    """As in threads: the first one to leave must not switch dropout on for the other."""
    embedder = Embedder.from_pretrained(checkpoint("meta-llama/")).train()
    first, second = evaluating(embedder), evaluating(embedder.backbone.model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(module.training for module in embedder.backbone.model.modules())
    second.__exit__(None, None, None)
    assert all(module.training for module in embedder.modules())
