"""Routers: queries and documents go through different modules, as in sentence-transformers."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from families import build, tokenizer
from numpy.testing import assert_allclose
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
)

from polyvec import Embedder
from polyvec.embed.formats.reading import read_parts
from polyvec.embed.projection.fitted import Whitening
from polyvec.errors import InputError, ModelError

TEXTS = ["the cat sat on the mat", "dog", "a very long text of two cats"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    build("bert").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def static() -> StaticEmbedding:
    torch.manual_seed(3)
    return StaticEmbedding(tokenizer(), embedding_weights=torch.randn(len(tokenizer()), 32))


def dense(seed: int) -> Dense:
    torch.manual_seed(seed)
    return Dense(32, 32)


def static_queries(bert: Path, **options) -> list:
    """A table for queries, a transformer for documents."""
    routes = {"query": [static()], "document": [Transformer(str(bert)), Pooling(32)]}
    return [Router(routes, **options), Normalize()]


def two_transformers(bert: Path) -> list:
    other = Transformer(str(bert))
    torch.nn.init.normal_(other.model.embeddings.word_embeddings.weight)
    query, document = [other, Pooling(32, "cls")], [Transformer(str(bert)), Pooling(32)]
    return [Router.for_query_document(query, document)]


def shared_transformer(bert: Path) -> list:
    body, last = Transformer(str(bert)), dense(4)
    return [
        Router.for_query_document(
            [body, Pooling(32), dense(1), last], [body, Pooling(32, "max"), last]
        )
    ]


def in_the_middle(bert: Path) -> list:
    router = Router({"query": [dense(1)], "document": [dense(2), Normalize()]}, "document")
    return [Transformer(str(bert)), Pooling(32), router]


def before_pooling(bert: Path) -> list:
    body = Transformer(str(bert))
    torch.manual_seed(5)
    tokens = Dense(32, 32, module_input_name="token_embeddings")
    return [Router({"query": [body, tokens], "document": [body]}, "query"), Pooling(32)]


def by_mappings(bert: Path) -> list:
    routes = {"table": [static()], "model": [Transformer(str(bert)), Pooling(32)]}
    mappings = {("query", "text"): "table", ("document", None): "model", (None, "text"): "model"}
    return [Router(routes, route_mappings=mappings)]


MODELS = {
    make.__name__: make
    for make in (static_queries, two_transformers, shared_transformer, in_the_middle,
                 before_pooling, by_mappings)
}  # fmt: skip


def check(folder: Path, again: Path, *, default: bool = True) -> Embedder:
    """All three calls equal theirs; so do those of what we save, on both sides."""
    theirs = SentenceTransformer(str(folder), device="cpu")
    right = [theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)]
    right += [theirs.encode(TEXTS)] if default else []

    def assert_right(model):
        found = [model.encode_query(TEXTS), model.encode_document(TEXTS)]
        found += [model.encode(TEXTS)] if default else []
        for each, expected in zip(found, right, strict=True):
            assert_allclose(each, expected, atol=1e-5)

    ours = Embedder.from_pretrained(folder)
    assert_right(ours)
    ours.save_pretrained(again)
    loaded = Embedder.from_pretrained(again)
    assert_right(loaded)
    assert_right(SentenceTransformer(str(again), device="cpu"))
    assert loaded.fingerprint() == ours.fingerprint()
    return loaded


@pytest.mark.equality
@pytest.mark.parametrize("name", MODELS)
def test_routes(name, bert, tmp_path):
    SentenceTransformer(modules=MODELS[name](bert)).save(str(tmp_path / "theirs"))
    check(tmp_path / "theirs", tmp_path / "ours")
    assert Embedder.from_pretrained(tmp_path / "theirs").num_parameters == sum(
        p.numel() for p in SentenceTransformer(str(tmp_path / "theirs")).parameters()
    )


@pytest.mark.equality
def test_every_way_to_encode_takes_the_route(bert, tmp_path):
    SentenceTransformer(modules=static_queries(bert)).save(str(tmp_path / "theirs"))
    ours = Embedder.from_pretrained(tmp_path / "theirs")
    query = ours.encode_query(TEXTS)
    assert abs(query - ours.encode_document(TEXTS)).max() > 0.1
    (chunk,) = ours.encode_iter(TEXTS, role="query")
    assert_allclose(chunk, query, atol=1e-6)
    vectors, _ = ours.encode_vectors(TEXTS, role="query")
    assert_allclose(vectors.to_dense(), query, atol=1e-6)
    assert ours.prompt_key(role="query") != ours.prompt_key(role="document")
    assert len(ours.tokenize(["dog"], role="query")[0][0]) == 1  # no special tokens
    short = ours.encode_query(TEXTS, truncate_dim=8)
    assert_allclose((short**2).sum(axis=1), 1, atol=1e-6)


@pytest.mark.equality
def test_the_first_route_is_the_default_unless_there_is_none(bert, tmp_path):
    SentenceTransformer(modules=static_queries(bert)).save(str(tmp_path / "first"))
    check(tmp_path / "first", tmp_path / "first-again")
    modules = static_queries(bert, allow_empty_key=False)
    SentenceTransformer(modules=modules).save(str(tmp_path / "none"))
    ours = check(tmp_path / "none", tmp_path / "none-again", default=False)
    with pytest.raises(InputError, match=r"role None has no route .* Known: document, query"):
        ours.encode(TEXTS)


def test_a_role_without_a_route(bert, tmp_path):
    router = Router({"query": [static()]})
    SentenceTransformer(modules=[router]).save(str(tmp_path / "theirs"))
    ours = Embedder.from_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match="role 'document' has no route") as raised:
        ours.encode_document(TEXTS)
    assert "use encode_query, or pass role=" in str(raised.value)


@pytest.mark.equality
def test_asym_of_before_sentence_transformers_5(bert, tmp_path):
    """The old class, its config.json, and the old names of modules."""
    SentenceTransformer(modules=in_the_middle(bert)).save(str(tmp_path / "theirs"))
    folder = tmp_path / "theirs" / "2_Router"
    config = json.loads((folder / "router_config.json").read_text())
    config["types"] = {
        name: "sentence_transformers.models." + kind.rpartition(".")[2]
        for name, kind in config["types"].items()
    }
    config["parameters"] = {"allow_empty_key": True}
    (folder / "router_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    folder.rename(tmp_path / "theirs" / "2_Asym")
    listed = json.loads((tmp_path / "theirs" / "modules.json").read_text())
    listed[2] |= {"path": "2_Asym", "type": "sentence_transformers.models.Asym"}
    (tmp_path / "theirs" / "modules.json").write_text(json.dumps(listed))
    check(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.equality
def test_a_route_of_another_name(bert, tmp_path):
    router = Router({"query": [dense(1)], "doc": [dense(2)], "other one/x": [dense(3)]})
    modules = [Transformer(str(bert)), Pooling(32), router]
    prompts = {"query": "the ", "usual": "a "}
    theirs = SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name="usual")
    theirs.save(str(tmp_path / "theirs"))
    ours = Embedder.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = Embedder.from_pretrained(tmp_path / "ours")
    for role in ("query", "doc", "other one/x", None):
        right = theirs.encode(TEXTS, task=role, prompt_name="query" if role == "query" else None)
        for model in (ours, again):
            assert_allclose(model.encode(TEXTS, role=role), right, atol=1e-5)
    with pytest.raises(InputError, match="role 'text' has no route"):
        ours.encode(TEXTS, role="text")


BROKEN = {
    "no structure": (lambda c: {"types": c["types"]}, "expected types, structure"),
    "an unknown module": (
        lambda c: {**c, "structure": {"query": ["nothing"]}}, "expected types, structure"
    ),
    "an unknown default": (
        lambda c: {**c, "parameters": {"default_route": "other"}}, "route 'other' is not among",
    ),
    "a path out of the folder": (
        lambda c: {"types": {"../x": "sentence_transformers.models.Dense"},
                   "structure": {"query": ["../x"]}}, "points outside",
    ),
    "keys that are no pairs": (
        lambda c: {**c, "parameters": {"route_mappings": {"query": "query"}}}, "is not a pair",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_router_that_cannot_be_read(name, bert, tmp_path):
    change, message = BROKEN[name]
    SentenceTransformer(modules=static_queries(bert)).save(str(tmp_path / "theirs"))
    path = tmp_path / "theirs" / "router_config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ModelError, match=message):
        Embedder.from_pretrained(tmp_path / "theirs")


def test_routes_of_other_sizes_are_refused(bert, tmp_path):
    torch.manual_seed(0)
    small = StaticEmbedding(tokenizer(), embedding_weights=torch.randn(len(tokenizer()), 16))
    router = Router({"query": [small], "document": [Transformer(str(bert)), Pooling(32)]})
    SentenceTransformer(modules=[router]).save(str(tmp_path / "theirs"))
    with pytest.raises(ModelError, match="gives 32 dimensions, another one 16"):
        Embedder.from_pretrained(tmp_path / "theirs")


def test_a_limit_and_a_calibration_hold_for_all_routes(bert, tmp_path):
    SentenceTransformer(modules=two_transformers(bert)).save(str(tmp_path / "theirs"))
    ours = Embedder.from_pretrained(tmp_path / "theirs")
    ours.max_seq_length = 4
    ours.calibrate(TEXTS)
    ours.save_pretrained(tmp_path / "ours")
    again = Embedder.from_pretrained(tmp_path / "ours")
    for model in (ours, again):
        assert len(model.tokenize([TEXTS[0]], role="query")[0][0]) == 4
        assert len(model.tokenize([TEXTS[0]], role="document")[0][0]) == 4
    found = again.encode_query(TEXTS, precision="int8", truncate="silent")
    assert (found == ours.encode_query(TEXTS, precision="int8", truncate="silent")).all()


def test_a_save_replaces_a_folder_without_config_json(bert, tmp_path):
    SentenceTransformer(modules=static_queries(bert)).save(str(tmp_path / "theirs"))
    ours = Embedder.from_pretrained(tmp_path / "theirs")
    for _ in range(2):
        ours.save_pretrained(tmp_path / "ours")
    right = ours.encode_query(TEXTS)
    assert_allclose(Embedder.from_pretrained(tmp_path / "ours").encode_query(TEXTS), right)


def test_each_route_is_fitted_on_its_own_vectors(bert, tmp_path):
    SentenceTransformer(modules=two_transformers(bert)).save(str(tmp_path / "theirs"))
    parts = read_parts(tmp_path / "theirs")
    routes = {
        task: dataclasses.replace(route, projections=[Whitening(32, 4)])
        for task, route in parts.routes.items()
    }
    model = Embedder.from_parts(
        **{**parts.keywords(), "routes": routes, "projections": [Whitening(32, 4)]}
    )
    texts = [f"{a} {b}" for a in ("the", "a", "two") for b in ("cat", "dog", "mat", "text")]
    with pytest.raises(InputError, match=r"fit each with role=.*query"):
        model.fit(texts)
    plain = Embedder.from_pretrained(tmp_path / "theirs")
    for role in ("query", "document"):
        model.fit(texts, role=role)
        vectors = plain.encode(texts, role=role)
        expected = Whitening(32, 4).fit(vectors)(torch.from_numpy(vectors))
        assert_allclose(model.encode(texts, role=role), expected, atol=1e-4)
