"""Model folders in and out, and against sentence-transformers on the same weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file

from polyvec import Embedder
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.formats.schema import POOLING_FLAGS
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.embed.pooling.modules import WeightedLayers
from polyvec.embed.projection.dense import Dense, LayerNorm, Normalize
from polyvec.errors import (
    DataError,
    HalfPrecisionWarning,
    InputError,
    ModelError,
    PickledWeightsWarning,
    TokenizerError,
    UndeclaredPoolingWarning,
)

TEXTS = ["a cat", "The Dog sat on the mat.", "", "word " * 100, "naïve café 漢字", "a cat"]


def st():
    return pytest.importorskip("sentence_transformers")


def peer(folder):
    return st().SentenceTransformer(str(folder), device="cpu")


@pytest.fixture
def folder(tiny_bert, tmp_path):
    """A copy of the tiny model that a test may break, as another program's, without checksums."""
    without = shutil.ignore_patterns("polyvec_checksums.json")
    return shutil.copytree(tiny_bert, tmp_path / "model", ignore=without)


def edit(path, **changes):
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def variants(base: Embedder) -> dict[str, Embedder]:
    """Embedders on the same transformer with every kind of part."""
    torch.manual_seed(1)
    make = lambda **parts: Embedder.from_parts(base.backbone, base.text_tokenizer, **parts)  # noqa: E731
    layers = WeightedLayers(2, 1)
    torch.nn.init.uniform_(layers.layer_weights)
    one_of_each = {name: make(pooling=name) for name in POOLINGS}
    return one_of_each | {
        "several": make(pooling=("first", "mean", "last")),
        "dense": make(projections=[Dense(32, 16), LayerNorm(16), Normalize()]),
        "dense residual": make(projections=[Dense(32, 16, activation="GELU", use_residual=True)]),
        "dense square residual": make(
            projections=[Dense(32, 32, bias=False, activation="Identity", use_residual=True)]
        ),
        "weighted layers": make(layers=layers, projections=[Normalize()]),
        "prompts": make(
            prompts=PromptTable({"query": "query: ", "passage": "passage: "}, "query"),
            similarity_fn_name="dot",
            pool_prompt=False,
        ),
        "short": make(truncate_dim=8, projections=[Normalize()]),
    }


OTHERS = [
    "several",
    "dense",
    "dense residual",
    "dense square residual",
    "weighted layers",
    "prompts",
    "short",
]
NAMES = [*POOLINGS, *OTHERS]
SHARED = [*POOLING_FLAGS, *OTHERS]  # what sentence-transformers has too


@pytest.fixture(scope="module")
def made(tiny_bert):
    return variants(Embedder.from_pretrained(tiny_bert))


@pytest.mark.equality
@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_is_bit_equal(made, name, tmp_path):
    made[name].save_pretrained(tmp_path / "model")
    again = Embedder.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(again.encode(TEXTS), made[name].encode(TEXTS))
    assert again.settings() == made[name].settings()
    assert again.fingerprint() == made[name].fingerprint()


@pytest.mark.parametrize("name", SHARED)
def test_sentence_transformers_loads_the_same_vectors(made, name, tmp_path):
    made[name].save_pretrained(tmp_path / "model")
    theirs = peer(tmp_path / "model")
    ours = made[name].encode(TEXTS)
    found = theirs.encode(TEXTS, normalize_embeddings=name == "short")
    assert_allclose(ours, found, atol=1e-5 * np.abs(ours).max())
    assert theirs.similarity_fn_name == made[name].similarity_fn_name
    assert theirs.max_seq_length == made[name].max_seq_length


@pytest.mark.parametrize("name", SHARED)
def test_what_sentence_transformers_saves_is_read(made, name, tmp_path):
    """Its newer schema: other class paths, `pooling_mode`, lengths in the tokenizer's config."""
    made[name].save_pretrained(tmp_path / "ours")
    theirs = peer(tmp_path / "ours")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = Embedder.from_pretrained(tmp_path / "theirs")
    found = again.encode(TEXTS)
    assert_allclose(found, made[name].encode(TEXTS), atol=1e-5 * np.abs(found).max())
    assert again.max_seq_length == made[name].max_seq_length


def test_every_legacy_pooling_flag_alone(folder):
    """Directories of before `pooling_mode`: one flag, nothing else."""
    for name, (flag, _) in POOLING_FLAGS.items():
        config = {"word_embedding_dimension": 32, flag: True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
        assert Embedder.from_pretrained(folder).pooling == (name,)


@pytest.mark.medium
def test_the_whole_matter_with_the_default_model(minilm, minilm_folder):
    """2,000 texts, agreement with sentence-transformers to 1e-5, whatever the batches."""
    from polyvec.data.docstrings import standard_library

    texts = [record.text[:400] for record in standard_library()[:300]]
    theirs = peer(minilm_folder).encode(texts)
    ours = minilm.encode(texts)
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(minilm.encode(texts[::-1], batch_size=7)[::-1] - theirs).max() < 1e-5


@pytest.mark.slow
def test_2000_texts_agree_with_sentence_transformers(minilm, minilm_folder):
    from polyvec.data.docstrings import standard_library

    texts = [record.text for record in standard_library()[:2000]]
    theirs = peer(minilm_folder).encode(texts)
    for order, batch_size in ((1, None), (-1, None), (1, 1), (1, 8), (1, 500)):
        ours = minilm.encode(texts[::order], batch_size=batch_size, truncate="silent")[::order]
        assert np.abs(ours - theirs).max() < 1e-5


def test_the_files_are_those_that_servers_read(folder):
    """Keys that text-embeddings-inference and llama.cpp look up without a default."""
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] is True
    assert pooling["pooling_mode_cls_token"] is False
    assert pooling["pooling_mode_lasttoken"] is False
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 64
    types = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    assert types == [
        f"sentence_transformers.models.{x}" for x in ("Transformer", "Pooling", "Normalize")
    ]
    assert not list(folder.rglob("*.bin"))


def test_a_bare_checkpoint_warns_that_its_pooling_is_a_guess(folder):
    for name in ("modules.json", "sentence_bert_config.json", "polyvec.json"):
        (folder / name).unlink()
    with pytest.warns(UndeclaredPoolingWarning, match="using 'mean'"):
        bare = Embedder.from_pretrained(folder)
    assert bare.pooling == ("mean",)
    assert not bare.normalizes
    assert Embedder.from_pretrained(folder, pooling="first").pooling == ("first",)


def test_a_bare_causal_checkpoint_takes_the_last_token(tmp_path):
    from families import build, tokenizer

    model = build("llama")
    model.config.architectures = ["LlamaForCausalLM"]
    model.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", architectures=["LlamaForCausalLM"])
    tokenizer().save_pretrained(tmp_path)
    with pytest.warns(UndeclaredPoolingWarning, match="using 'last'"):
        assert Embedder.from_pretrained(tmp_path).pooling == ("last",)


BREAKAGES = {
    "modules of its own code": (
        lambda f: (f / "modules.json").write_text(
            '[{"idx":0,"name":"0","path":"","type":"custom_st.Transformer"}]'
        ),
        "own code",
    ),
    "unknown module": (
        lambda f: (f / "modules.json").write_text(
            '[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformr"}]'
        ),
        "Did you mean 'Transformer'",
    ),
    "path out of the folder": (
        lambda f: (f / "modules.json").write_text(
            '[{"idx":0,"name":"0","path":"../x","type":"sentence_transformers.models.Transformer"}]'
        ),
        "points outside the model's folder",
    ),
    "no list of modules": (
        lambda f: (f / "modules.json").write_text('{"idx": 0}'),
        "expected a list of modules",
    ),
    "a key gone": (
        lambda f: (
            edit(f / "1_Pooling" / "config.json"),
            (f / "modules.json").write_text(
                (f / "modules.json").read_text().replace("Normalize", "LayerNorm")
            ),
            (f / "2_Normalize").rename(f / "2_LayerNorm"),
            (f / "2_LayerNorm" / "config.json").write_text("{}"),
        ),
        "key 'dimension' is missing",
    ),
    "cannot read the tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "cannot read the tokenizer",
    ),
    "no JSON": (lambda f: (f / "modules.json").write_text("{"), "modules.json: not JSON"),
    "unknown pooling": (
        lambda f: edit(f / "1_Pooling" / "config.json", pooling_mode="meen"),
        "Did you mean 'mean'",
    ),
    "unknown pooling key": (
        lambda f: edit(f / "1_Pooling" / "config.json", pooling_mode_cls_tokens=True),
        "Did you mean 'pooling_mode_cls_token'",
    ),
    "flags against mode": (
        lambda f: edit(f / "1_Pooling" / "config.json", pooling_mode="cls"),
        "contradict pooling_mode",
    ),
    "no pooling at all": (
        lambda f: (f / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}'),
        "declares no pooling",
    ),
    "pooling config gone": (lambda f: (f / "1_Pooling" / "config.json").unlink(), "missing"),
    "weights gone": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "weights cut": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:999]
        ),
        "truncated",
    ),
    "config gone": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "code of its own": (
        lambda f: edit(f / "config.json", auto_map={"AutoModel": "x.Y"}, model_type="own"),
        "trust_remote_code=True",
    ),
    "unknown similarity": (
        lambda f: edit(f / "config_sentence_transformers.json", similarity_fn_name="cos"),
        "similarity_fn_name 'cos'",
    ),
    "another shape": (lambda f: edit(f / "config.json", intermediate_size=128), "has shape"),
    "more layers than weights": (
        lambda f: edit(f / "config.json", num_hidden_layers=3),
        "weights are missing",
    ),
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_folder_that_is_not_what_it_declares_is_refused(folder, kind):
    """SILENT row 10 and its kin: one line that names the file."""
    breakage, message = BREAKAGES[kind]
    breakage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        Embedder.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def pickle_weights(folder):
    """Replace the safetensors of a folder with a pickle, as older programs wrote them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "polyvec_checksums.json").unlink(missing_ok=True)


def test_pickled_weights_are_read_by_the_weights_only_loader(made, tmp_path):
    """Of the transformer and of a Dense module, with a notice."""
    made["dense"].save_pretrained(tmp_path / "model")
    pickle_weights(tmp_path / "model")
    pickle_weights(tmp_path / "model" / "2_Dense")
    with pytest.warns(PickledWeightsWarning, match=r"pytorch_model\.bin"):
        found = Embedder.from_pretrained(tmp_path / "model")
    assert np.array_equal(found.encode(["a cat"]), made["dense"].encode(["a cat"]))


class Malicious:
    def __reduce__(self):
        return print, ("this code must not run",)


@pytest.mark.parametrize("inside", [".", "2_Dense"])
def test_a_pickle_with_code_is_refused(made, tmp_path, capsys, inside):
    made["dense"].save_pretrained(tmp_path / "model")
    folder = tmp_path / "model" / inside
    (folder / "model.safetensors").unlink()
    (tmp_path / "model" / "polyvec_checksums.json").unlink()
    torch.save({"weight": Malicious()}, folder / "pytorch_model.bin")
    with pytest.warns(PickledWeightsWarning), pytest.raises(ModelError, match="could run code"):
        Embedder.from_pretrained(tmp_path / "model")
    assert "must not run" not in capsys.readouterr().out


def test_a_tokenizer_that_changed_since_the_save_is_refused(tmp_path):
    """SILENT row 7, after the fact: someone's tool dropped the end token."""
    from families import build
    from families import tokenizer as words

    folder = tmp_path / "model"
    Embedder.from_parts(
        Backbone(build("bert")), TextTokenizer(words(), max_length=48)
    ).save_pretrained(folder)
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    stored["post_processor"]["single"].pop()
    path.write_text(json.dumps(stored))
    with pytest.raises(TokenizerError, match=r"had suffix \[2\] when .* now it has \[\]"):
        Embedder.from_pretrained(folder)


def test_a_length_beyond_the_positions_is_capped_with_a_warning(folder):
    edit(folder / "sentence_bert_config.json", max_seq_length=512)
    with pytest.warns(UserWarning, match="exceeds the model's 64 positions; using 64"):
        assert Embedder.from_pretrained(folder).max_seq_length == 64
    with pytest.raises(InputError, match="64 positions"):
        Embedder.from_pretrained(folder, max_seq_length=100)


def test_half_precision_on_a_processor_without_it_is_told(folder, monkeypatch):
    """SILENT row 17."""
    monkeypatch.setattr("polyvec.embed.formats.transformer._cpu_computes", lambda name: False)
    with pytest.warns(HalfPrecisionWarning, match="80 times slower"):
        half = Embedder.from_pretrained(folder, dtype="bfloat16", device="cpu")
    assert half.dtype == torch.bfloat16
    assert half.encode("a cat").dtype == np.float32
    assert Embedder.from_pretrained(folder).dtype == torch.float32
    with pytest.raises(InputError, match="Did you mean 'bfloat16'"):
        Embedder.from_pretrained(folder, dtype="bfloat61")


def test_half_precision_weights_are_computed_in_float32(folder):
    """A checkpoint stored in half precision is computed in float32 unless asked otherwise."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path, {"format": "pt"})
    edit(folder / "config.json", dtype="float16")
    assert Embedder.from_pretrained(folder).dtype == torch.float32


def test_an_unknown_option_is_refused(folder):
    with pytest.raises(TypeError, match="'devize'"):
        Embedder.from_pretrained(folder, devize="cpu")


def test_saving_replaces_a_model_and_nothing_else(made, tmp_path):
    made["mean"].save_pretrained(tmp_path / "model")
    made["dense"].save_pretrained(tmp_path / "model")
    assert Embedder.from_pretrained(tmp_path / "model").get_embedding_dimension() == 16
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("years of work")
    with pytest.raises(DataError, match="not overwritten"):
        made["mean"].save_pretrained(other)
    assert (other / "chapter.tex").read_text() == "years of work"


@pytest.mark.equality
def test_a_failed_save_leaves_the_old_model(made, tmp_path, monkeypatch):
    made["mean"].save_pretrained(tmp_path / "model")
    before = made["mean"].encode("a cat")
    monkeypatch.setattr("polyvec.embed.formats.writing._write_settings", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made["dense"].save_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(
        Embedder.from_pretrained(tmp_path / "model").encode("a cat"), before
    )
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.equality
def test_what_is_pushed_is_what_is_saved(made, monkeypatch):
    pushed = {}

    class Hub:
        def __init__(self, token=None):
            pushed["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            pushed["private"] = private
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, commit_message):
            pushed["vectors"] = Embedder.from_pretrained(folder_path).encode(TEXTS)
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    model = made["dense"]
    address = model.push_to_hub("me/it", private=True, token="t", commit_message="first")
    assert (address, pushed["private"], pushed["token"]) == ("https://hub/me/it", True, "t")
    np.testing.assert_array_equal(pushed["vectors"], model.encode(TEXTS))


def test_lower_casing_of_the_folder_is_done(folder):
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    assert Embedder.from_pretrained(folder).text_tokenizer.lower_case
