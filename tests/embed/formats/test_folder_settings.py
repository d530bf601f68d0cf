"""Settings that sentence-transformers obeys: obeyed as it does, or refused by name."""

import json
import warnings

import numpy as np
import pytest
import torch
from folders import bert, modules, write

from polyvec import Embedder, load_recipe
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.projection.dense import Dense, Normalize
from polyvec.errors import HalfPrecisionWarning, ModelError, OwnCodeWarning, SkippedSettingWarning

LONG = "a cat sat on the mat and the dog looked while nobody looked " * 4
BERT = "sentence_bert_config.json"


@pytest.fixture
def folder(tmp_path):
    bert(tmp_path)
    modules(tmp_path, "mean")
    return tmp_path


def settings(folder, **values):
    write(folder / BERT, values)
    return folder


def by_sentence_transformers(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode([LONG, "the dog"])


def agrees(folder):
    ours = Embedder.from_pretrained(folder).encode([LONG, "the dog"], truncate="silent")
    return np.abs(ours - by_sentence_transformers(folder)).max() < 1e-5


@pytest.mark.medium
@pytest.mark.parametrize(
    "values",
    [
        {"max_seq_length": 8, "tokenizer_args": {"truncation_side": "left"}},
        {"max_seq_length": 16, "processor_kwargs": {"model_max_length": 8}},
        {"processing_kwargs": {"text": {"max_length": 6, "padding": True}}},
        {"max_seq_length": 20, "config_args": {"num_hidden_layers": 1}},
        {"max_seq_length": 9, "model_args": {"attn_implementation": "sdpa"}, "unpad_inputs": None},
        {
            "transformer_task": "feature-extraction",
            "module_output_name": "token_embeddings",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
        },
    ],
    ids=lambda values: "+".join(values),
)
def test_settings_are_obeyed(folder, values):
    assert agrees(settings(folder, **values))


@pytest.mark.medium
@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "distilbert", "camembert", "albert"])
def test_older_names_of_the_file(folder, name):
    """The first in sentence-transformers' order that is not empty."""
    write(folder / BERT, {})
    write(folder / f"sentence_{name}_config.json", {"max_seq_length": 7})
    assert Embedder.from_pretrained(folder).max_seq_length == 7
    assert agrees(folder)


def test_a_file_that_sentence_transformers_does_not_read_is_told(folder):
    (folder / BERT).rename(folder / "sentence_mpnet_config.json")
    with pytest.warns(SkippedSettingWarning, match="sentence_mpnet_config"):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_seq_len": 8}, "Did you mean 'max_seq_length'"),
        ({"model_args": {"variant": "fp16"}}, "model_kwargs 'variant'"),
        ({"processing_kwargs": {"text": {"add_special_tokens": False}}}, "add_special_tokens"),
        ({"processing_kwargs": {"text": {"truncation": False}}}, "truncation"),
        ({"modality_config": {"message": {"method": "forward"}}}, "chat template"),
        ({"modality_config": {"image": {"method": "forward"}}}, "reads no texts"),
        (
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler"}}},
            "output 'pooler'",
        ),
        ({"module_output_name": "sentence_embedding"}, "module_output_name"),
        ({"transformer_task": "text-generation"}, "reranker"),
        ({"query_length": 32}, "query_length"),
        ({"max_seq_length": 0}, "max_seq_length 0 is not a positive"),
        ({"tokenizer_name_or_path": "bert-base-uncased"}, "tokenizer_name_or_path"),
        ({"config_args": ["is_causal"]}, "expected a table"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_are_not_obeyed_are_refused(folder, values, message):
    with pytest.raises(ModelError, match=message):
        Embedder.from_pretrained(settings(folder, **values))


def test_a_folder_cannot_trust_its_own_code(folder):
    """trust_remote_code inside a folder is dropped."""
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, "auto_map": {"AutoModel": "own.Model"}})
    (folder / "own.py").write_text("raise RuntimeError('ran')")
    trust = {"trust_remote_code": True}
    settings(folder, model_args=trust, config_args=trust, tokenizer_args=trust)
    with pytest.warns(OwnCodeWarning, match="own"):
        Embedder.from_pretrained(folder)


STORED = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        (
            {"transformers": ">=99"},
            r"requires transformers>=99 .*pip install",
        ),
        ({"pytorch": "<1"}, "torch<1"),
        ({"python": "<3"}, "python<3"),
        (
            {"no-such-package": {"specifier": ">=1", "reason": "mask"}},
            "not installed; mask",
        ),
    ],
)
def test_unmet_requirements_are_an_error(folder, requirements, message):
    write(folder / STORED, {"requirements": requirements})
    with pytest.raises(ModelError, match=message) as caught:
        Embedder.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_requirements_that_are_met_or_cannot_be_read(folder):
    write(folder / STORED, {"requirements": {"torch": ">=2", "transformers": "five"}})
    with pytest.warns(SkippedSettingWarning, match="five"):
        Embedder.from_pretrained(folder)


def test_a_sides_empty_prompt_keeps_the_default_from_it():
    """As sentence-transformers: the default was made for queries."""
    table = PromptTable({"query": "query: ", "document": ""}, "query")
    assert table.resolve(role="document").text == ""
    assert table.resolve(role="query").text == table.resolve().text == "query: "
    assert PromptTable({"query": "query: "}, "query").resolve(role="document").text == "query: "


def test_foreign_files_survive_a_save(folder):
    """A training run's checkpoints beside the model, and files of the user."""
    model = Embedder.from_pretrained(folder)
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "optimizer.pt").write_text("x")
    (folder / "notes.md").write_text("mine")
    (folder / "adapter_config.json").write_text("{}")  # of another model: it would be applied
    model.save_pretrained(folder)
    assert (folder / "checkpoint-500" / "optimizer.pt").read_text() == "x"
    assert (folder / "notes.md").read_text() == "mine"
    assert not (folder / "adapter_config.json").exists()
    assert np.array_equal(Embedder.from_pretrained(folder).encode("a cat"), model.encode("a cat"))


def test_dtype_auto_is_what_the_folder_stores(folder):
    model = Embedder.from_pretrained(folder)
    assert Embedder.from_pretrained(folder, dtype="auto").dtype == torch.float32
    model.to(torch.bfloat16).save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HalfPrecisionWarning)
        assert Embedder.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    assert Embedder.from_pretrained(folder).dtype == torch.float32


def test_a_recipe_takes_a_published_checkpoint(folder):
    """The Dense layer of its folder is kept; recipe and folder pool alike."""
    torch.manual_seed(0)
    published = Embedder.from_pretrained(folder)
    dense = Dense(32, 8, activation="Identity")
    Embedder.from_parts(
        published.backbone, published.text_tokenizer, projections=[dense, Normalize()]
    ).save_pretrained(folder / "released")
    toml = folder / "mine.toml"
    toml.write_text(
        '[system]\nname = "mine"\npaper = "arXiv:2108.08877"\ntasks = ["similarity"]\n'
        '[embedder]\nbackbone = "no/backbone"\npooling = "mean"\n'
    )
    found = load_recipe(toml).build("full", backbone=folder / "released")
    expected = Embedder.from_pretrained(folder / "released").encode(["a cat", "the dog"])
    assert np.abs(found.encode(["a cat", "the dog"]) - expected).max() < 1e-6


@pytest.mark.parametrize(
    "values",
    [
        {"model_args": {"torch_dtype": "bfloat16"}},
        {"model_kwargs": {"dtype": "float16"}},
        {"model_kwargs": {"dtype": "float32"}},
        {"config_kwargs": {"dtype": "bfloat16"}},
        {"config_args": {"dtype": "bfloat16"}, "model_args": {"dtype": "float32"}},
        {"model_kwargs": {"dtype": "auto"}},
        {},
    ],
    ids=str,
)
def test_the_folders_dtype_counts_where_none_is_asked_for(folder, values):
    from sentence_transformers import SentenceTransformer

    settings(folder, max_seq_length=32, **values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HalfPrecisionWarning)
        ours = Embedder.from_pretrained(folder, device="cpu")
    peer = SentenceTransformer(str(folder), device="cpu")
    assert ours.backbone.model.dtype == peer.dtype
    found, wanted = ours.encode(["the dog"]), peer.encode(["the dog"], normalize_embeddings=False)
    tolerance = 1e-5 if peer.dtype == torch.float32 else 0.05
    assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
    asked = Embedder.from_pretrained(folder, device="cpu", dtype="float32")
    assert asked.backbone.model.dtype == torch.float32


def test_a_dtype_that_is_not_known_is_named(folder):
    settings(folder, model_kwargs={"torch_dtype": "bfloat61"})
    with pytest.raises(ModelError, match=r"dtype 'bfloat61' is not known.*'bfloat16'"):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "classes",
    [None, 5, "modeling_x.X", ["modeling_x.X"], {"AutoModel": None}, {"AutoModel": "noclass"},
     {"AutoModel": ["modeling_x.X", None]}, {"AutoConfig": None}],
    ids=str,
)  # fmt: skip
def test_an_auto_map_that_names_no_classes_is_named(folder, classes, trusted):
    raw = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**raw, "auto_map": classes})
    with pytest.raises(ModelError, match=r"config\.json: auto_map is .*, expected") as error:
        Embedder.from_pretrained(folder, trust_remote_code=trusted)
    assert "\n" not in str(error.value)


def test_a_truncation_side_set_after_loading_is_saved(folder, tmp_path):
    for side in ("left", "right"):
        model = Embedder.from_pretrained(folder)
        model.text_tokenizer.hf.truncation_side = side
        expected = model.encode([LONG], truncate="silent")
        model.save_pretrained(tmp_path / side)
        again = Embedder.from_pretrained(tmp_path / side)
        assert again.text_tokenizer.hf.truncation_side == side
        assert np.abs(again.encode([LONG], truncate="silent") - expected).max() == 0
        assert np.abs(by_sentence_transformers(tmp_path / side)[0] - expected).max() < 1e-5
        folder = tmp_path / side


@pytest.mark.medium
@pytest.mark.parametrize(
    ("prompts", "default"),
    [({"query": "the dog "}, "query"), ({"any": "the dog "}, "any"), ({"document": "cat "}, None)],
)
def test_a_side_without_a_prompt_does_not_get_the_default(folder, tmp_path, prompts, default):
    from sentence_transformers import SentenceTransformer

    stored = {"prompts": prompts, "default_prompt_name": default}
    write(folder / "config_sentence_transformers.json", stored)
    ours = Embedder.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "saved")
    for model in (
        SentenceTransformer(str(folder), device="cpu"),
        SentenceTransformer(str(tmp_path / "saved"), device="cpu"),
        Embedder.from_pretrained(tmp_path / "saved"),
    ):
        for side in ("encode_query", "encode_document", "encode"):
            found, wanted = getattr(ours, side)(["a cat"]), getattr(model, side)(["a cat"])
            np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("content", ["[1]", "null", "3", '"x"'])
@pytest.mark.parametrize(
    "name", ["config.json", BERT, "tokenizer_config.json", "modules.json", "1_Pooling/config.json",
             "config_sentence_transformers.json"],
)  # fmt: skip
def test_json_of_another_kind_is_named(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=rf"{name}: expected (an object|a list of modules)"):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "1_Pooling/config.json"])
def test_a_pointer_of_git_lfs_is_named(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3\n")
    with pytest.raises(ModelError, match=rf"{name}: a pointer of git-lfs"):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize("value", ["8", 0, 8.0, 10_000, True])
def test_a_stored_truncate_dim_is_a_number_of_dimensions(folder, value):
    write(folder / "config_sentence_transformers.json", {"truncate_dim": value})
    with pytest.raises(ModelError, match=r"truncate_dim .* is not a whole number between 1"):
        Embedder.from_pretrained(folder)


@pytest.mark.medium
def test_an_encoder_made_causal_is_refused_by_sentence_transformers(folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    causal = Embedder.from_pretrained(folder, attention="causal")
    causal.save_pretrained(tmp_path / "saved")
    again = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(again.encode([LONG]), causal.encode([LONG]), atol=1e-5)
    with pytest.raises(ValueError, match=r"polyvec\.own_way"):
        SentenceTransformer(str(tmp_path / "saved"), device="cpu")


@pytest.mark.medium
@pytest.mark.parametrize("prompt", ["the dog ", "the dog", "dog: ", "cat <mask> "])
@pytest.mark.parametrize("marks_spaces", [False, True])
def test_of_a_prompt_that_is_not_pooled_the_tokens_it_has_alone_are_left_out(
    folder, prompt, marks_spaces
):
    """As sentence-transformers counts them: a space may be a token at the end of a prompt only."""
    from sentence_transformers import SentenceTransformer

    if marks_spaces:
        backend = json.loads((folder / "tokenizer.json").read_text())
        vocab = backend["model"]["vocab"]
        # Free rows are named as pieces of sentencepiece.
        renamed = {"▁" + name if name.isalpha() else name: row for name, row in vocab.items()}
        free = next(name for name in renamed if name.startswith("##"))
        renamed["▁"] = renamed.pop(free)
        backend["model"]["vocab"] = renamed
        backend["model"]["type"] = "WordLevel"
        for key in ("continuing_subword_prefix", "max_input_chars_per_word"):
            backend["model"].pop(key, None)
        backend["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True,
        }  # fmt: skip
        backend["decoder"] = None
        write(folder / "tokenizer.json", backend)
    pooling = json.loads((folder / "1_Pooling/config.json").read_text())
    write(folder / "1_Pooling/config.json", pooling | {"include_prompt": False})
    texts = ["a cat sat", "looked"]
    ours = Embedder.from_pretrained(folder).encode(texts, prompt=prompt)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts, prompt=prompt)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
