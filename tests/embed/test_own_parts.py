"""Parts of a user's own package: by path in recipes and options, saved, loaded, trusted or not."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from numpy.testing import assert_array_equal

from polyvec import Embedder
from polyvec.cli import main
from polyvec.embed.compose import compose
from polyvec.embed.part import HiddenSize
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.embed.pooling.modules import POOLING_MODULES
from polyvec.embed.projection.modules import PROJECTIONS
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import ModelError, SettingsError

TEXTS = ["a cat sat on the mat", "the dog looks", "two very long text of cats"]
SOURCE = """
import torch
from torch import nn
from polyvec.embed.inputs.templates import Template
from polyvec.embed.part import HiddenSize, InFeatures
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import last, mean
from polyvec.embed.projection.trained import Projector


def halved(states_BTD, mask_BT, attention_mask_BT=None):
    return mean(states_BTD, mask_BT) / 2


class Scaled(PoolingModule):
    def __init__(self, hidden_size: HiddenSize, power: float = 1.0) -> None:
        super().__init__()
        self.hidden_size = self.out_features = hidden_size
        self.power = power
        self.scale_D = nn.Parameter(torch.rand(hidden_size))

    def vectors(self, states):
        return last(states.last_BTD, states.pooling_mask_BT) * self.scale_D**self.power


class Shift(Projector):
    def __init__(self, in_features: InFeatures, by: float) -> None:
        super().__init__(in_features, in_features)
        self.by = by
        self.noise_D = nn.Parameter(torch.rand(in_features))

    def project(self, vectors_BD):
        return vectors_BD + self.by * self.noise_D


FORM = Template.from_dict(
    {"name": "users", "query": "dog mat {text}", "pool_prompt": True}
)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The name of a module on the path; nothing has imported it yet."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "users_parts.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "package")
    yield "users_parts"
    sys.modules.pop("users_parts", None)


@pytest.fixture
def registered(monkeypatch):
    """Tables whose additions are undone."""
    for table in (POOLINGS, POOLING_MODULES, PROJECTIONS):
        monkeypatch.setattr(table, "_parts", dict(table._parts))


def settings(**parts) -> EmbedderSettings:
    return EmbedderSettings(backbone=str(checkpoint("meta-llama/")), **parts)


def own(kind: str, package: str) -> Embedder:
    """An embedder with one part of the package."""
    return compose(
        {
            "function": settings(pooling=f"{package}:halved"),
            "functions": settings(pooling=("mean", f"{package}:halved")),
            "module": settings(pooling=f"{package}:Scaled", pooling_settings={"power": 2}),
            "projection": settings(projections=({"kind": f"{package}:Shift", "by": 0.5},)),
        }[kind]
    )


KINDS = {"function": "halved", "functions": "halved", "module": "Scaled", "projection": "Shift"}


@pytest.mark.equality
@pytest.mark.parametrize("kind", KINDS)
def test_a_users_part_is_saved_and_loaded_only_if_trusted(kind, package, tmp_path):
    model = own(kind, package)
    vectors = model.encode(TEXTS)
    assert np.abs(vectors[:, -8:] - compose(settings()).encode(TEXTS)[:, -8:]).max() > 1e-3
    model.save_pretrained(tmp_path / "model")
    del sys.modules[package]
    message = rf"{package}:{KINDS[kind]}' is code outside polyvec.*trust_remote_code=True"
    with pytest.raises(ModelError, match=message) as caught:
        Embedder.from_pretrained(tmp_path / "model")
    assert package not in sys.modules and "\n" not in str(caught.value)
    again = Embedder.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert_array_equal(again.encode(TEXTS), vectors)
    assert again.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_transformers_refuses_a_users_part(kind, package, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    own(kind, package).save_pretrained(tmp_path / "model")
    with pytest.raises(Exception, match=r"users_parts|pooling_functions|polyvec"):
        st.SentenceTransformer(str(tmp_path / "model"), device="cpu")


@pytest.mark.equality
def test_a_part_registered_under_its_path_needs_no_trust(package, registered, tmp_path):
    model = own("module", package)
    model.save_pretrained(tmp_path / "model")
    name = f"{package}:Scaled"
    POOLING_MODULES.register(name)(POOLING_MODULES.find(name))
    again = Embedder.from_pretrained(tmp_path / "model")
    assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))


@pytest.mark.equality
def test_a_registered_name_is_what_is_saved(package, registered, tmp_path):
    POOLINGS.register("halved")(POOLINGS.find(f"{package}:halved"))
    PROJECTIONS.register("shift")(PROJECTIONS.find(f"{package}:Shift"))
    model = compose(settings(pooling="halved", projections=({"kind": "shift", "by": 1.0},)))
    model.save_pretrained(tmp_path / "model")
    assert_array_equal(
        Embedder.from_pretrained(tmp_path / "model").encode(TEXTS), model.encode(TEXTS)
    )
    types = [m["type"] for m in json.loads((tmp_path / "model" / "modules.json").read_text())]
    assert types[1:] == ["polyvec.pooling_functions", "polyvec.shift"]
    del PROJECTIONS._parts["shift"]
    with pytest.raises(ModelError, match="part 'shift' is not known"):
        Embedder.from_pretrained(tmp_path / "model")


@pytest.mark.equality
def test_a_pooling_by_path_is_an_option_of_the_embedder(package):
    folder, name = checkpoint("meta-llama/"), f"{package}:halved"
    mean = Embedder.from_pretrained(folder, pooling="mean")
    loaded = Embedder.from_pretrained(folder, pooling=name)
    built = Embedder.from_parts(mean.backbone, mean.text_tokenizer, pooling=name)
    assert_array_equal(loaded.encode(TEXTS), mean.encode(TEXTS) / 2)
    assert_array_equal(built.encode(TEXTS), mean.encode(TEXTS) / 2)
    scaled = Embedder.from_pretrained(folder, pooling=f"{package}:Scaled")
    assert scaled.encode(TEXTS).shape == (3, scaled.get_embedding_dimension())


def test_a_recipe_file_names_parts_of_a_users_package(package, tmp_path, capsys, monkeypatch):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        '[system]\nname = "Mine"\npaper = "none"\ntasks = []\n'
        f'[embedder]\nbackbone = "{checkpoint("meta-llama/")}"\n'
        f'template = "{package}:FORM"\npooling = "{package}:Scaled"\n'
        f'projections = [{{ kind = "{package}:Shift", by = 1 }}]\n'
    )
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n")
    assert main(["embed", "--model", str(recipe), str(texts)]) == 0
    (row,) = capsys.readouterr().out.splitlines()
    expected = compose(
        settings(
            template={"name": "users", "query": "dog mat {text}", "pool_prompt": True},
            pooling=f"{package}:Scaled",
            projections=({"kind": f"{package}:Shift", "by": 1.0},),
        )
    )
    np.testing.assert_allclose(
        json.loads(row)["embedding"], expected.encode("a cat"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"pooling": "layer", "pooling_settings": {"layer": "5"}},
            "pooling 'layer': setting 'layer' is '5', not int",
        ),
        ({"pooling": "layer"}, "pooling 'layer': setting 'layer' is missing"),
        ({"pooling": "special_mean"}, "setting 'tokens' is missing"),
        (
            {"pooling": "special_mean", "pooling_settings": {"tokens": "</s>"}},
            "setting 'tokens' is '</s>', not Sequence",
        ),
        ({"projections": ({"kind": "pca"},)}, "projection 'pca': setting 'k' is missing"),
        ({"projections": ({"kind": "pca", "k": 2.5},)}, "setting 'k' is 2.5, not int"),
        ({"projections": ({"k": 2},)}, "kind is None, expected a name"),
        ({"variants": {"num_variant": 2}}, "'num_variant' is not known. Did you mean"),
        ({"variants": {"temperature": "hot"}}, "'temperature' is 'hot', not float"),
        (
            {"template": "token_prepending", "prepending": {"start": "1"}},
            "setting 'start' is '1', not int",
        ),
        ({"pooling": "no_such_package:pool"}, "cannot be imported: No module named"),
        ({"pooling": "math:pi"}, "is float, expected a function"),
        ({"pooling": ()}, "pooling is empty"),
        ({"template": "math:pi"}, "is float, expected a Template"),
        ({"similarity": "cosin"}, "Did you mean 'cosine'"),
    ],
)
def test_wrong_settings_are_found_before_the_model_is_looked_up(parts, message):
    with pytest.raises(SettingsError, match=message) as caught:
        compose(EmbedderSettings(backbone="/no/such/folder", **parts))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"pooling": "special_mean", "pooling_settings": {"tokens": ["<gone>"]}},
            "'<gone>' is not",
        ),
        ({"pooling": "reba", "pooling_settings": {"pooling": "max"}}, "'max' is not known"),
        ({"projections": ({"kind": "pca", "k": 10**6},)}, "k is 1000000, expected at most"),
        ({"num_layers": 99}, "num_layers 99 is not between"),
    ],
)
def test_what_the_model_cannot_serve_is_refused_before_weights_load(parts, message, monkeypatch):
    loads = lambda *a, **k: pytest.fail("loads weights")  # noqa: E731
    monkeypatch.setattr("polyvec.embed.compose.load_transformer", loads)
    with pytest.raises(SettingsError, match=message):
        compose(settings(**parts))


@pytest.mark.equality
def test_an_excluded_prompt_is_saved_with_a_pooling_module(tmp_path):
    parts = {"pooling": "layer", "pooling_settings": {"layer": 2}, "prompts": {"q": "dog mat "}}
    model = compose(settings(**parts, pool_prompt=False, default_prompt="q"))
    pooled = compose(settings(**parts, pool_prompt=True, default_prompt="q"))
    assert np.abs(model.encode(TEXTS) - pooled.encode(TEXTS)).max() > 1e-3
    model.save_pretrained(tmp_path / "model")
    again = Embedder.from_pretrained(tmp_path / "model")
    assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize("pooling", [[], "mean", [3], None])
def test_a_damaged_list_of_poolings_is_refused(tmp_path, tiny_bert, pooling):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "polyvec.pooling_functions"
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / listed[1]["path"] / "config.json").write_text(json.dumps({"pooling": pooling}))
    with pytest.raises(ModelError, match="expected a list of names"):
        Embedder.from_pretrained(folder)


class Doubled(PoolingModule):
    """Keeps another setting than it was given."""

    def __init__(self, hidden_size: HiddenSize, k: int = 2) -> None:
        super().__init__()
        self.hidden_size = self.out_features = hidden_size
        self.k = k * 2

    def vectors(self, states):
        return states.last_BTD[:, 0] * self.k


class Loose(PoolingModule):
    """Has a tensor that no state dict holds."""

    def __init__(self, hidden_size: HiddenSize) -> None:
        super().__init__()
        self.hidden_size = self.out_features = hidden_size
        self.scale = torch.rand(hidden_size)

    def vectors(self, states):
        return states.last_BTD[:, 0] * self.scale


@pytest.mark.parametrize(
    ("part", "message"), [(Doubled(32), "other settings"), (Loose(32), "register_buffer")]
)
def test_a_part_that_would_load_as_another_one_is_not_saved(part, message, tmp_path):
    embedder = Embedder.from_pretrained(checkpoint("meta-llama/"))
    mine = Embedder.from_parts(embedder.backbone, embedder.text_tokenizer, pooling=part)
    with pytest.raises(ModelError, match=message):
        mine.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_name_in_two_tables_is_refused(monkeypatch):
    monkeypatch.setitem(POOLINGS._parts, "layer", lambda states, mask, attention_mask=None: states)
    settings = EmbedderSettings("nowhere", pooling="layer")
    with pytest.raises(SettingsError, match="register yours under another name"):
        compose(settings)


def test_a_pooling_named_like_a_projection_is_not_saved(monkeypatch, tmp_path):
    monkeypatch.setitem(POOLING_MODULES._parts, "gate", Plain)
    embedder = Embedder.from_pretrained(checkpoint("meta-llama/"))
    mine = Embedder.from_parts(embedder.backbone, embedder.text_tokenizer, pooling=Plain(32))
    with pytest.raises(ModelError, match="register it under another name"):
        mine.save_pretrained(tmp_path / "model")


class Plain(PoolingModule):
    """The first state."""

    def __init__(self, hidden_size: HiddenSize) -> None:
        super().__init__()
        self.hidden_size = self.out_features = hidden_size

    def vectors(self, states):
        return states.last_BTD[:, 0]
