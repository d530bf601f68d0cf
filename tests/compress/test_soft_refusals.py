"""What soft compressors refuse in one clear line: odd calls, edited memories, broken folders."""

import functools
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from polyvec.cli import main
from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.memory import Memory, joined
from polyvec.compress.soft.settings import CompressorSettings
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import DataError, InputError, ModelError, PolyvecError, TruncationWarning

TEXT = "The old man went down to the harbour to look for his boat, and found it gone."


@functools.cache
def compressor(carrier="hidden", **options):
    torch.manual_seed(0)
    encoder = compose(EmbedderSettings("polyvec/nano-lm"))
    settings = CompressorSettings("slots", {"num": 2}, carrier=carrier, **options)
    return SoftCompressor(encoder, settings).eval()


@pytest.fixture
def saved(tmp_path):
    """A function that saves a memory, edited, and gives its path."""

    def write(carrier, change=lambda name, tensor: tensor, **facts):
        path = tmp_path / "memory.safetensors"
        (memory,) = compressor(carrier).compress([TEXT])
        memory.save(path)
        with safe_open(path, "pt") as file:
            facts = {**file.metadata(), **facts}
        tensors = {name: change(name, each) for name, each in load_file(path).items()}
        save_file({name: each.contiguous() for name, each in tensors.items()}, path, facts)
        return path

    return write


@pytest.mark.parametrize("carrier", ["hidden", "kv"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, each: each.flatten(), "its shapes are"),
        (lambda name, each: each[None], "its shapes are"),
        (lambda name, each: each[..., :0, :], "its shapes are"),
        (lambda name, each: each.long(), "whole numbers"),
        (lambda name, each: each * float("nan"), "not finite"),
    ],
)
def test_a_memory_with_other_tensors_is_refused(carrier, change, message, saved):
    with pytest.raises(DataError, match=message):
        Memory.load(saved(carrier, change))


@pytest.mark.parametrize(
    "facts",
    [{"num_context": "-5"}, {"num_context": "0"}, {"next_position": "99999999999"}],
)
def test_a_memory_of_an_impossible_length_is_refused(facts, saved):
    with pytest.raises(DataError, match="tokens, up to position"):
        Memory.load(saved("kv", **facts))


def test_keys_without_values_or_of_other_lengths_are_refused(saved):
    path = saved("kv", lambda name, each: each[:, :, :1] if name == "values" else each)
    with pytest.raises(DataError, match="its shapes are"):
        Memory.load(path)


@pytest.mark.parametrize(
    ("carrier", "change"),
    [
        ("hidden", lambda name, each: torch.cat([each, each], -1)),
        ("kv", lambda name, each: torch.cat([each, each], -1)),
        ("kv", lambda name, each: each[:-1]),
    ],
)
def test_a_memory_of_other_sizes_is_refused_before_it_is_read(carrier, change, saved):
    memory = Memory.load(saved(carrier, change))
    with pytest.raises(ModelError, match="sizes"):
        compressor(carrier).generate(["What?"], [memory])


def test_half_precision_is_read(saved):
    memory = Memory.load(saved("kv", lambda name, each: each.half()))
    assert len(compressor("kv").generate(["What?"], [memory], max_tokens=2)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.compress(None), "texts is NoneType"),
        (lambda m: m.compress([None]), "text 0 is NoneType, expected a text"),
        (lambda m: m.compress([TEXT, " \n"]), "text 1 is empty"),
        (lambda m: m.compress(["a \ud800 b"]), "lone surrogate"),
        (lambda m: m.compress([TEXT], 5), "question"),
        (lambda m: m.compress([TEXT], rate=4), "leave rate out"),
        (lambda m: m.compress([TEXT], rate=0), "rate is 0"),
        (lambda m: m.compress([TEXT], rate=0.5), "rate is 0.5"),
        (lambda m: m.compress([TEXT], batch_size=0), "batch_size is 0"),
        (lambda m: m.generate(["a"], m.compress([TEXT]), max_tokens=0), "max_tokens is 0"),
        (lambda m: m.generate(["a"], m.compress([TEXT]), prompt="anser"), "Did you mean 'answer'"),
        (lambda m: m.score("answer", ["a", "b"], m.compress([TEXT])), "for each target"),
        (lambda m: m.score("answer", ["a"]), "either memories or contexts"),
        (lambda m: joined([]), "no memory"),
    ],
)
def test_odd_calls_are_one_clear_line(call, message):
    with pytest.raises(PolyvecError, match=message) as caught:
        call(compressor())
    assert isinstance(caught.value, InputError) and "\n" not in str(caught.value)


def test_a_text_whose_end_is_not_read_is_told():
    model = compressor(max_context=8)
    with pytest.warns(TruncationWarning, match=r"1 of 2 texts .* 8 tokens.*text 1, \d+ tokens"):
        model.compress(["The old man.", TEXT])


@pytest.mark.medium
def test_a_folder_that_lost_its_weights_is_refused(tmp_path):
    folder = tmp_path / "model"
    compressor().save_pretrained(folder)
    parts = folder / "parts.safetensors"
    whole = load_file(parts)
    save_file({name: whole[name] for name in whole if name != "memory.vectors_MD"}, parts)
    with pytest.raises(ModelError, match=r"memory\.vectors_MD is missing"):
        SoftCompressor.from_pretrained(folder)
    save_file({**whole, "memory.more": torch.ones(1)}, parts)
    with pytest.raises(ModelError, match=r"memory\.more does not fit"):
        SoftCompressor.from_pretrained(folder)
    for data in (b"x", None):
        parts.unlink()
        if data is not None:
            parts.write_bytes(data)
        with pytest.raises(DataError, match="cannot be read"):
            SoftCompressor.from_pretrained(folder)
    settings = json.loads((folder / "compressor.json").read_text())
    (folder / "compressor.json").write_text(json.dumps(settings)[:-5])
    with pytest.raises(DataError, match="not a soft compressor"):
        SoftCompressor.from_pretrained(folder)


@pytest.mark.medium
def test_memories_take_no_place_of_a_file(tmp_path, capsys):
    folder = tmp_path / "model"
    compressor().save_pretrained(folder)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    assert main(["compress", str(text), "--memory", str(folder), "-o", str(text)]) == 2
    assert "not a folder" in capsys.readouterr().err
    assert text.read_text() == TEXT
