"""Values of another type in the JSON files of a model folder: polyvec's own error, no traceback."""

import json
import random
import re
import shutil
import warnings

import numpy as np
import pytest
from folders import bert, modules
from late_folders import pylate
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW
from test_checksums import CHECKSUMS, KINDS, answers, of_bert

from polyvec import Embedder, MultiVectorEmbedder
from polyvec.errors import ModelError, PolyvecError

VALUES = [None, 5, -1, 0, 2.5, "x", "", [], {}, True, [1], {"a": 1}, [[1]], [None]]


def places(value, at=()):
    """The keys, one inside another, of each value in a JSON value, its own first."""
    yield at
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places(each, (*at, key))
    if isinstance(value, list):
        for number, each in enumerate(value[:2]):
            yield from places(each, (*at, number))


def replaced(value, at, new):
    if not at:
        return new
    copy = json.loads(json.dumps(value))
    inside = copy
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = new
    return copy


def cases(folder):
    for path in sorted(folder.rglob("*.json")):
        if path.name not in ("tokenizer.json", CHECKSUMS):
            value = json.loads(path.read_text())
            yield from ((path, value, at, new) for at in places(value) for new in VALUES)


def each_value(folder, count, load=answers):
    """How many of `count` changed values were refused."""
    (folder / CHECKSUMS).unlink(missing_ok=True)
    found = list(cases(folder))
    refused = 0
    for path, value, at, new in random.Random(0).sample(found, min(count, len(found))):
        path.write_text(json.dumps(replaced(value, at, new)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load(folder)
            except PolyvecError as error:
                refused += 1
                line = f"{path.name} {at} = {new!r}: {error}"
                assert "\n" not in str(error), line
                assert isinstance(error, ModelError), line
        path.write_text(json.dumps(value))
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_another_type_is_no_traceback(tmp_path, kind):
    KINDS[kind](tmp_path / "made").save_pretrained(tmp_path / "saved")
    assert each_value(tmp_path / "saved", 60) > 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_another_type_is_a_traceback(tmp_path, kind):
    KINDS[kind](tmp_path / "made").save_pretrained(tmp_path / "saved")
    assert each_value(tmp_path / "saved", 10_000) > 100


@pytest.mark.parametrize(
    ("key", "value"),
    [("depth", 0), ("depth", 2.5), ("depth", True), ("weights", [0, 0]), ("weights", ["1", 1])],
)
def test_a_hybrid_file_of_impossible_values_is_named(tmp_path, key, value):
    KINDS["hybrid"](tmp_path / "made").save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "hybrid.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    (tmp_path / "saved" / CHECKSUMS).unlink()
    with pytest.raises(ModelError, match=r"hybrid.json: .*(depth|weights)"):
        answers(tmp_path / "saved")


def late(folder):
    MultiVectorEmbedder.from_pretrained(folder).encode(["a cat"], role="query")


def plain(folder):
    Embedder.from_pretrained(folder).encode(["a cat"])


def test_nor_in_a_late_interaction_model(tmp_path):
    """PyLate's file of settings, then sentence-transformers'."""
    pylate(tmp_path / "pylate")
    MultiVectorEmbedder.from_pretrained(tmp_path / "pylate").save_pretrained(tmp_path / "ours")
    assert each_value(tmp_path / "pylate", 80, late) > 30
    assert each_value(tmp_path / "ours", 80, late) > 30


def test_nor_in_a_bag_of_words(tmp_path):
    words = BoW(["cat", "dog", "mat"], {"cat": 1.5})
    SentenceTransformer(modules=[words], device="cpu").save(str(tmp_path))
    assert each_value(tmp_path, 400, plain) > 100


WRONG = [
    ("polyvec.json", {"format": 99}, "format is 99, expected 1, the only format"),
    ("polyvec.json", {"tokenizer_contract": None}, "tokenizer_contract is None, expected a tab"),
    ("polyvec.json", {"tokenizer_contract": {"pad_id": "x"}}, "tokenizer_contract pad_id is 'x'"),
    ("polyvec.json", {"attention": 5}, "attention is 5, expected a string"),
    ("polyvec.json", {"attention": "sideways"}, "attention: attention 'sideways' is not known"),
    ("polyvec.json", {"blocked": [[1]]}, "blocked is .* expected a list of pairs"),
    ("polyvec.json", {"template": {"query": 5, "pool_prompt": True}}, "template: "),
    ("polyvec.json", {"prepending": {"x": 1}}, "prepending: "),
    ("config_sentence_transformers.json", {"prompts": []}, "prompts is .* expected a table"),
    ("config_sentence_transformers.json", {"prompts": {"query": 5}}, "prompts is .* and strings"),
    ("config_sentence_transformers.json", {"default_prompt_name": []}, "default_prompt_name is"),
    ("config_sentence_transformers.json", {"default_prompt_name": "qery"}, "mean 'query'"),
    ("config_sentence_transformers.json", {"similarity_fn_name": "cosin"}, "mean 'cosine'"),
    ("config.json", {"architectures": 5}, "architectures is 5, expected a list of strings"),
    ("config.json", {"architectures": [None]}, "architectures is .* expected a list of strings"),
    ("config.json", {"hidden_act": [1]}, "hidden_act"),
    ("2_Dense/config.json", {"in_features": -1}, "in_features is -1, expected a whole number"),
    ("2_Dense/config.json", {"out_features": None}, "out_features is None"),
    ("1_Pooling/config.json", {"include_prompt": "x"}, "include_prompt is 'x', expected true or"),
    ("sentence_bert_config.json", {"max_seq_length": "5"}, "max_seq_length '5'"),
    ("sentence_bert_config.json", {"do_lower_case": 1}, "do_lower_case 1"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    of_bert(folder / "made").save_pretrained(folder / "saved")
    (folder / "saved" / CHECKSUMS).unlink()
    return folder / "saved"


@pytest.mark.parametrize(("name", "changes", "message"), WRONG)
def test_the_file_and_key_are_named(saved, name, changes, message):
    path = saved / name
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), **changes}))
    try:
        with pytest.raises(ModelError, match=f"{re.escape(name)}.*{message}"):
            Embedder.from_pretrained(saved)
    finally:
        path.write_text(whole)


def nothing(ranges):
    return {}


def narrow(ranges):
    return {"ranges": ranges[0]}


def turned(ranges):
    return {"ranges": ranges.flip(0).contiguous()}


def endless(ranges):
    return {"ranges": ranges * np.inf}


@pytest.mark.parametrize("change", [nothing, narrow, turned, endless])
def test_damaged_ranges_of_int8_are_named(tmp_path, change):
    of_bert(tmp_path / "made").save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / CHECKSUMS).unlink()
    path = tmp_path / "saved" / "polyvec_calibration.safetensors"
    save_file(change(load_file(path)["ranges"]), path)
    with pytest.raises(ModelError, match=r"polyvec_calibration\.safetensors: damaged"):
        Embedder.from_pretrained(tmp_path / "saved")


def test_prompts_of_the_call_are_the_callers_mistake(tmp_path):
    bert(tmp_path)
    modules(tmp_path, "mean")
    with pytest.raises(PolyvecError, match="default prompt 'x' is not stored"):
        Embedder.from_pretrained(tmp_path, default_prompt_name="x")


@pytest.mark.parametrize("content", ["9" * 5000, "[" * 5000])
def test_numbers_and_brackets_that_python_does_not_read(saved, tmp_path, content):
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": ' + content)
    with pytest.raises(ModelError, match=r"config\.json: not JSON"):
        plain(tmp_path / "model")


def test_a_module_whose_path_no_file_system_has(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    listed = json.loads((tmp_path / "model" / "modules.json").read_text())
    listed[-1]["path"] = "a" * 1000
    (tmp_path / "model" / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ModelError, match=r"modules\.json: path 'aaa.*: File name too long"):
        plain(tmp_path / "model")


@pytest.mark.parametrize("number", [True, 1.0, "1"])
def test_the_format_is_a_whole_number(saved, tmp_path, number):
    shutil.copytree(saved, tmp_path / "model")
    own = json.loads((tmp_path / "model" / "polyvec.json").read_text())
    (tmp_path / "model" / "polyvec.json").write_text(json.dumps({**own, "format": number}))
    with pytest.raises(ModelError, match=r"polyvec\.json: format is "), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain(tmp_path / "model")
