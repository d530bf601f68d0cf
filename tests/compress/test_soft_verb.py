"""polyvec compress --memory DIR."""

import json

import pytest
import torch

from polyvec.cli import main
from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.memory import Memory
from polyvec.compress.soft.settings import CompressorSettings
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings

TEXTS = ["The old man went down to the harbour to look for his boat.", "A cat sleeps in the sun."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    encoder = compose(EmbedderSettings("polyvec/nano-lm"))
    settings = CompressorSettings("strided", {"stride": 4})
    path = tmp_path_factory.mktemp("compressor") / "model"
    SoftCompressor(encoder, settings).save_pretrained(path)
    return path


def test_each_context_becomes_a_file_of_vectors(folder, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    out = tmp_path / "memories"
    command = ["compress", str(texts), "--each", "--memory", str(folder), "-o", str(out)]
    assert main([*command, "--rate", "0.5", "--question", "Who?"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == ["0.safetensors", "1.safetensors"]
    model = SoftCompressor.from_pretrained(folder)
    for line, text in zip(lines, TEXTS, strict=True):
        memory = Memory.load(out / line["file"])
        assert len(memory) == line["num_vectors"] == -(-line["num_tokens_in"] // 2)
        (again,) = model.compress([text], rate=2)
        torch.testing.assert_close(memory.tensors["states"], again.tensors["states"])
        assert model.generate(["Who?"], [memory]) == [line["answer"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give their folder with -o"),
        (["-o", "out", "--tokens", "5"], "--tokens does nothing with --memory"),
        (["-o", "out", "--rate", "2"], "not between 0 and 1"),
        (["-o", "out", "--keep", "boat"], "--keep does nothing"),
    ],
)
def test_options_that_do_nothing_are_refused(options, message, folder, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text(TEXTS[0])
    assert main(["compress", str(texts), "--memory", str(folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_compressor_is_refused(tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text(TEXTS[0])
    assert main(["compress", str(texts), "--memory", str(tmp_path), "-o", "out"]) == 2
    assert "not a soft compressor" in capsys.readouterr().err
