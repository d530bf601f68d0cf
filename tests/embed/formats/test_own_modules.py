"""modules.json with the folder's own code, against sentence-transformers on the same folder."""

import copy
import json
import shutil
import textwrap

import pytest
from numpy.testing import assert_allclose

from polyvec import Embedder
from polyvec.errors import InputError, ModelError

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = ["a cat", "The Dog sat on the mat.", "word " * 100, "naïve café 漢字", "a cat"]
CODE = """
    import json, os, torch
    from torch import nn
    from transformers import AutoModel, AutoTokenizer
    from sentence_transformers import models
    from sentence_transformers.models import Module, Transformer

    class Doubled(Transformer):
        def forward(self, features, **kwargs):
            features = super().forward(features, **kwargs)
            features["token_embeddings"] = features["token_embeddings"] ** 2 + 1
            return features

    class Upper(Transformer):
        def preprocess(self, texts, *args, **kwargs):
            return super().preprocess([t + " mat" for t in texts], *args, **kwargs)

    class Old(nn.Module):  # jina-v3's form: of before sentence-transformers 5
        def __init__(self, model_name_or_path, max_seq_length=None, model_args=None,
                     tokenizer_args=None, config_args=None, do_lower_case=False, **kwargs):
            super().__init__()
            self.auto_model = AutoModel.from_pretrained(model_name_or_path, **model_args)
            self.tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)
            self.max_seq_length, self.do_lower_case = max_seq_length, do_lower_case
        def tokenize(self, texts, **kwargs):
            return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt",
                                  max_length=self.max_seq_length)
        def forward(self, features, task=None):
            keys = ("input_ids", "attention_mask")
            out = self.auto_model(**{k: features[k] for k in keys})
            features["token_embeddings"] = out.last_hidden_state - 0.5
            return features
        @staticmethod
        def load(input_path):
            raise AssertionError("sentence-transformers calls the constructor")

    class Short(Old):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, model_args={})
            self.max_seq_length = 5
        @classmethod
        def load(cls, path, **kwargs):
            return cls(path)

    class Bare(nn.Module):
        @staticmethod
        def load(input_path):
            return Bare()

    class MaxMin(Module):
        config_keys = ["scale"]
        def __init__(self, scale=1.0):
            super().__init__()
            self.scale = scale
        def forward(self, features):
            states, mask = features["token_embeddings"], features["attention_mask"][..., None]
            top = states.masked_fill(mask == 0, -1e9).max(1).values
            low = states.masked_fill(mask == 0, 1e9).min(1).values
            features["sentence_embedding"] = torch.cat([top, low], dim=-1) * self.scale
            return features
        def save(self, *args, **kwargs): ...

    class Shift(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = nn.Parameter(torch.tensor(by))
        def forward(self, features):
            features["sentence_embedding"] = features["sentence_embedding"] + self.by
            return features
        @staticmethod
        def load(input_path):
            return Shift(json.load(open(os.path.join(input_path, "config.json")))["by"])

    class Pooling(models.Pooling):
        config_keys = [*models.Pooling.config_keys, "power"]
        def __init__(self, *args, power=1, **kwargs):
            super().__init__(*args, **kwargs)
            self.power = power
        def forward(self, features):
            features = super().forward(features)
            features["sentence_embedding"] = features["sentence_embedding"] ** self.power
            return features

    class Weigh(nn.Module):
        def forward(self, features):
            ids = features["input_ids"]
            features["token_embeddings"] = features["token_embeddings"] * (ids % 3)[..., None]
            return features
        @staticmethod
        def load(input_path):
            return Weigh()

    class Layers(nn.Module):
        def forward(self, features):
            features["token_embeddings"] = features["all_layer_embeddings"][1]
            return features
        @staticmethod
        def load(input_path):
            return Layers()
"""
ST = "sentence_transformers.models."
POOLED = ("1_Pooling", f"{ST}Pooling")
FIRST = ("", f"{ST}Transformer")
CHAINS = {
    "a transformer": [("", "custom_st.Doubled"), POOLED],
    "a transformer of the old form": [("", "custom_st.Old"), POOLED],
    "a pooling": [FIRST, ("3_MaxMin", "custom_st.MaxMin")],
    "a step after the pooling": [
        FIRST, POOLED, ("4_Shift", "custom_st.Shift"), ("2_Normalize", f"{ST}Normalize"),
    ],
    "a step over tokens": [FIRST, ("", "custom_st.Weigh"), POOLED],
    "all of them": [("", "custom_st.Doubled"), ("3_MaxMin", "custom_st.MaxMin"),
                    ("4_Shift", "custom_st.Shift")],
}  # fmt: skip


@pytest.fixture
def make(tiny_bert, tmp_path):
    """A copy of the tiny model with a chain of modules and the code that they name."""

    def written(chain, include_prompt=True):
        folder = shutil.copytree(tiny_bert, tmp_path / "model")
        (folder / "custom_st.py").write_text(textwrap.dedent(CODE))
        (folder / "broken_st.py").write_text("class X(")
        listed = [
            {"idx": i, "name": str(i), "path": path, "type": kind}
            for i, (path, kind) in enumerate(chain)
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
        for place, config in (("3_MaxMin", {"scale": 2.0}), ("4_Shift", {"by": 0.25})):
            (folder / place).mkdir()
            (folder / place / "config.json").write_text(json.dumps(config))
        pooling = folder / "1_Pooling" / "config.json"
        config = {**json.loads(pooling.read_text()), "include_prompt": include_prompt}
        pooling.write_text(json.dumps(config))
        return folder

    return written


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_vectors_are_sentence_transformers(chain, make):
    folder = make(chain)
    peer = sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", trust_remote_code=True
    )
    model = Embedder.from_pretrained(folder, device="cpu", trust_remote_code=True)
    found = model.encode(TEXTS, truncate="silent")
    assert_allclose(found, peer.encode(TEXTS), atol=2e-5)
    assert model.get_embedding_dimension() == found.shape[1]
    again = Embedder.from_pretrained(folder, device="cpu", trust_remote_code=True)
    assert again.fingerprint() == model.fingerprint() and model.described()
    assert_allclose(copy.deepcopy(model).encode(TEXTS, truncate="silent"), found, atol=1e-5)
    with pytest.raises(ModelError, match=r"own code.* (are|is) not saved"):
        model.save_pretrained(folder.parent / "saved")
    half = Embedder.from_pretrained(folder, dtype="bfloat16", device="cpu", trust_remote_code=True)
    assert half.encode(TEXTS, truncate="silent").shape == found.shape


@pytest.mark.parametrize(
    "chain",
    [CHAINS["a step over tokens"], [FIRST, ("1_Pooling", "custom_st.Pooling")]],
    ids=["sentence-transformers' pooling", "a pooling of its own"],
)
def test_a_prompt_is_left_out_where_the_pooling_says_so(chain, make):
    folder = make(chain, include_prompt=False)
    config = folder / "1_Pooling" / "config.json"
    if chain[-1][1].startswith("custom_st."):
        config.write_text(json.dumps({**json.loads(config.read_text()), "power": 2}))
    peer = sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", trust_remote_code=True
    )
    model = Embedder.from_pretrained(folder, device="cpu", trust_remote_code=True)
    wanted = peer.encode(TEXTS, prompt="the dog: ")
    assert_allclose(model.encode(TEXTS, prompt="the dog: ", truncate="silent"), wanted, atol=2e-5)


def test_code_is_not_run_without_trust(make):
    for chain in (CHAINS["a transformer"], CHAINS["a step after the pooling"]):
        folder = make(chain)
        (folder / "custom_st.py").write_text("raise AssertionError('run')")
        with pytest.raises(ModelError, match=r"custom_st\.\w+ is the model's own code.*trust"):
            Embedder.from_pretrained(folder)
        shutil.rmtree(folder)


REFUSED = {
    "texts of its own": ([("", "custom_st.Upper"), POOLED], "Upper tokenizes in its own way"),
    "no auto_model": ([("", "custom_st.Bare"), POOLED], "Bare replaces the transformer but has no"),
    "features we have not": ([FIRST, ("", "custom_st.Layers"), POOLED], "Layers.*cannot be run"),
    "no such class": ([FIRST, POOLED, ("", "custom_st.Nothing")], "Nothing.*cannot be loaded"),
    "no such file": ([FIRST, POOLED, ("", "gone.Nothing")], "gone.Nothing.*cannot be loaded"),
    "another repository": ([FIRST, POOLED, ("", "org/repo--st.X")], "st.X.*cannot be loaded"),
    "another module's name": (
        [FIRST, POOLED, ("", "custom_st.Weigh"), ("", f"{ST}Normalise")],
        "Did you mean 'Normalize'",
    ),
    "code with an error": ([FIRST, POOLED, ("", "broken_st.X")], "SyntaxError"),
    "no vectors": ([FIRST, ("", "custom_st.Weigh")], "give no sentence_embedding"),
    "behind a table": (
        [("", f"{ST}StaticEmbedding"), ("", "custom_st.Weigh")],
        "run behind a Transformer only",
    ),
}


@pytest.mark.parametrize(("chain", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_run_is_named_in_one_line(chain, message, make):
    with pytest.raises(ModelError, match=message) as error:
        Embedder.from_pretrained(make(chain), device="cpu", trust_remote_code=True)
    assert "\n" not in str(error.value)


def test_own_modules_are_not_replaced(make):
    folder = make(CHAINS["a pooling"])
    with pytest.raises(InputError, match="does not replace"):
        Embedder.from_pretrained(folder, trust_remote_code=True, pooling="mean")


@pytest.mark.parametrize("kind", ["custom_st.Old", "custom_st.Doubled", "custom_st.Short"])
@pytest.mark.parametrize("length", [None, 4])
def test_the_length_is_the_modules_or_the_callers(kind, length, make):
    folder = make([("", kind), POOLED])
    peer = sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", trust_remote_code=True
    )
    if length is not None:
        peer.max_seq_length = length
    model = Embedder.from_pretrained(
        folder, device="cpu", trust_remote_code=True, max_seq_length=length
    )
    assert model.max_seq_length == peer.max_seq_length
    found = model.encode(TEXTS, truncate="silent")
    assert_allclose(found, peer.encode(TEXTS), atol=2e-5)
