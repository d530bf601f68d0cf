"""Damage of a model folder that polyvec saved is refused, or told."""

import json
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from damage import changed_bytes
from families import tokenizer
from folders import bert, modules
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import BertModel

from polyvec import Embedder
from polyvec.embed.inputs.templates import Template
from polyvec.embed.projection.dense import Dense
from polyvec.errors import ChangedFileWarning, ModelError, PolyvecError
from polyvec.index.hybrid import HybridEmbedder

TEXTS = ["a cat sat on the mat", "the dog"]
CHECKSUMS = "polyvec_checksums.json"


def of_bert(folder):
    """Every kind of file: a module with weights, prompts, ranges of int8."""
    bert(folder / "base")
    modules(folder / "base", "mean")
    plain = Embedder.from_pretrained(folder / "base")
    made = Embedder.from_parts(plain.backbone, plain.text_tokenizer, projections=[Dense(32, 8)])
    made.prompts = {"query": "query: ", "document": "text: "}
    made.calibrate(["a cat", "a dog", "the mat"])
    return made


def of_adapter(folder):
    """A base and its adapter in one folder."""
    bert(folder / "base")
    modules(folder / "base", "mean")
    settings = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=2,
        target_modules=["query"],
        init_lora_weights=False,
    )
    model = BertModel.from_pretrained(folder / "base", add_pooling_layer=False)
    get_peft_model(model, settings).save_pretrained(folder / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "adapter" / name).rename(folder / "base" / name)
    return Embedder.from_pretrained(folder / "base")


def of_table(folder):
    """A static table of words."""
    words = tokenizer()
    table = StaticEmbedding(words, embedding_weights=torch.randn(len(words), 8))
    SentenceTransformer(modules=[table], device="cpu").save(str(folder / "base"))
    return Embedder.from_pretrained(folder / "base")


def of_two(folder):
    """Two models whose scores are fused."""
    return HybridEmbedder([of_table(folder / "1"), of_table(folder / "2")], [0.25, 0.75])


KINDS = {"bert": of_bert, "adapter": of_adapter, "table": of_table, "hybrid": of_two}


@pytest.fixture(params=KINDS)
def saved(request, tmp_path):
    KINDS[request.param](tmp_path / "made").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def loaded(folder):
    kind = HybridEmbedder if (folder / "hybrid.json").is_file() else Embedder
    return kind.from_pretrained(folder)


def answers(folder):
    model = loaded(folder)
    vectors = model.encode(TEXTS, role="query")
    return vectors, np.asarray(model.similarity(vectors, model.encode(TEXTS, role="document")))


def each_byte(folder, count, seed):
    """How many of `count` changed bytes were refused, told, and changed nothing."""
    expected, found = answers(folder), Counter()
    for where in changed_bytes(folder, count, seed):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                got = answers(folder)
            except PolyvecError:
                found["refused"] += 1
                continue
        if any(issubclass(each.category, ChangedFileWarning) for each in told):
            found["told"] += 1
            continue
        found["nothing"] += 1
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=where)
    return found


def test_a_changed_byte_is_noticed(saved):
    found = each_byte(saved, 40, seed=0)
    assert found["refused"] > 10 and found["nothing"] < 20, found


@pytest.mark.medium
def test_200_changed_bytes_are_noticed(saved):
    found = each_byte(saved, 200, seed=1)
    assert found["refused"] > 50 and found["nothing"] < 100, found


def test_changed_weights_are_refused_with_what_to_do(tmp_path):
    of_bert(tmp_path / "made").save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "2_Dense" / "model.safetensors"
    save_file({name: -value for name, value in load_file(path).items()}, path)
    with pytest.raises(ModelError, match=f"2_Dense.*not what save_pretrained wrote.*{CHECKSUMS}"):
        Embedder.from_pretrained(tmp_path / "saved")
    path.unlink()
    with pytest.raises(ModelError, match=r"2_Dense.*missing"):
        Embedder.from_pretrained(tmp_path / "saved")
    save_file({"linear.weight": torch.ones(8, 32), "linear.bias": torch.zeros(8)}, path)
    (tmp_path / "saved" / CHECKSUMS).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Embedder.from_pretrained(tmp_path / "saved")


def test_an_edited_setting_is_obeyed_and_told_once(tmp_path):
    of_bert(tmp_path / "made").save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_seq_length": 7}))
    (tmp_path / "saved" / "README.md").write_text("Mine.")
    with pytest.warns(ChangedFileWarning, match=r"sentence_bert_config\.json; damaged") as told:
        model = Embedder.from_pretrained(tmp_path / "saved")
    assert model.max_seq_length == 7 and len(told) == 1
    assert "README" not in str(told[0].message), "a card decides nothing"
    model.save_pretrained(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Embedder.from_pretrained(tmp_path / "saved").max_seq_length == 7


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"crc32": 5}', '{"crc32": {"config.json": 5}}', '{"crc32": {"../x": "0"}}', "{"],
)
def test_damaged_checksums_are_named(tmp_path, content):
    of_table(tmp_path / "made").save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / CHECKSUMS).write_text(content)
    with pytest.raises(ModelError, match=CHECKSUMS):
        Embedder.from_pretrained(tmp_path / "saved")


def test_what_sentence_transformers_saves_over_ours_is_loaded(tmp_path):
    """Its files win, with a warning; ours of the model before are not mixed with them."""
    folder = tmp_path / "saved"
    of_bert(tmp_path).save_pretrained(folder)
    theirs = SentenceTransformer(str(folder), device="cpu")
    theirs[0].auto_model.encoder.layer[0].output.dense.weight.data.mul_(2)
    theirs.save_pretrained(str(folder))
    assert (folder / "polyvec_calibration.safetensors").is_file(), "left behind, with old ranges"
    with pytest.warns(ChangedFileWarning, match="sentence-transformers has saved a model over"):
        ours = Embedder(folder)
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=2e-6)
    assert ours.calibration is None
    ours.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChangedFileWarning)
        again = Embedder(folder)
    np.testing.assert_allclose(again.encode(TEXTS), theirs.encode(TEXTS), atol=2e-6)


def test_settings_of_ours_do_not_reach_a_model_saved_over_them(tmp_path):
    """polyvec.json asks for a template, which the other model has never had."""
    bert(tmp_path / "base")
    modules(tmp_path / "base", "mean")
    folder = tmp_path / "saved"
    plain = Embedder(tmp_path / "base")
    template = Template("mine", ("find: {text}",), ("find: {text}",), pool_prompt=True)
    Embedder.from_parts(plain.backbone, plain.text_tokenizer, template=template).save_pretrained(
        folder
    )
    theirs = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    theirs.save_pretrained(str(folder))
    with pytest.warns(ChangedFileWarning, match=r"polyvec\.json"):
        ours = Embedder(folder)
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=2e-6)
