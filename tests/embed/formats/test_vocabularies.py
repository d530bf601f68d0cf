"""Sentencepiece files without tokenizer.json, compared with sentencepiece's own encode."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from polyvec.embed.formats.tokenizer import load_tokenizer
from polyvec.embed.inputs.contract import PROBES, bare, read_contract
from polyvec.errors import MissingExtraError, TokenizerError

LINES = [
    "the cat sat on the mat .",
    "two very long text while nobody looks",
    "Ünïcode Café and 漢字とかな 한국어 Привет",
    "numbers 1 2 3 42 100 3.14 and (brackets) don't; it's #1",
    "snake_case camelCase UPPER https://example.org/a?b=c",
]
BPE = {
    "model_type": "bpe",
    "vocab_size": 350,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}
# Without bytes: letters that the file does not have are unknown.
BPE_OF_LETTERS = {"model_type": "bpe", "vocab_size": 350}
UNIGRAM = {"model_type": "unigram", "vocab_size": 120}
T5 = UNIGRAM | {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
DEBERTA = UNIGRAM | {
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "pad_piece": "[PAD]",
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
    "unk_piece": "[UNK]",
}
LLAMA = {"tokenizer_class": "LlamaTokenizer"}


def vocabulary(root: Path, name: str, **settings) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = root / "corpus.txt"
    corpus.write_text("\n".join(LINES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(root / "made"),
        minloglevel=3,
        hard_vocab_limit=False,
        **settings,
    )
    shutil.move(root / "made.model", root / name)
    for extra in (corpus, root / "made.vocab"):
        extra.unlink()
    return root / name


@pytest.mark.parametrize(
    ("kind", "name", "settings", "config", "ends"),
    [
        ("xlm-roberta", "sentencepiece.bpe.model", UNIGRAM, {}, ("<s>", "</s>")),
        ("camembert", "sentencepiece.bpe.model", UNIGRAM, {}, ("<s>", "</s>")),
        ("t5", "spiece.model", T5, {}, ("</s>",)),
        ("mt5", "spiece.model", T5, {}, ("</s>",)),
        ("deberta-v2", "spm.model", DEBERTA, {}, ("[CLS]", "[SEP]")),
        ("big_bird", "spiece.model", UNIGRAM, {}, ("[CLS]", "[SEP]")),
        ("llama", "tokenizer.model", BPE, LLAMA, ("<s>",)),
        ("llama", "tokenizer.model", BPE_OF_LETTERS, LLAMA, ("<s>",)),
        ("mistral", "tokenizer.model", BPE, {}, ("<s>",)),
        ("mistral", "tokenizer.model", BPE_OF_LETTERS, {}, ("<s>",)),
        ("mistral", "tokenizer.model", BPE, LLAMA | {"add_eos_token": True}, ("<s>", "</s>")),
        ("llama", "tokenizer.model", BPE, LLAMA | {"add_bos_token": False}, ()),
        ("gemma2", "tokenizer.model", BPE, {"tokenizer_class": "GemmaTokenizer"}, ("<bos>",)),
    ],
)
def test_pieces_are_those_of_sentencepiece(tmp_path, kind, name, settings, config, ends):
    file = vocabulary(tmp_path, name, **settings)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_tokenizer(tmp_path)
    from sentencepiece import SentencePieceProcessor

    own, backend = SentencePieceProcessor(model_file=str(file)), bare(found)
    unknown = own.id_to_piece(own.unk_id())
    for probe in (*PROBES, "the cat", "\tthe  cat "):
        ids = backend.encode(probe, add_special_tokens=False).ids
        pieces = [backend.id_to_token(i) for i in ids]
        expected = [own.id_to_piece(i) for i in own.encode(probe)]
        assert [unknown if p == found.unk_token else p for p in pieces] == expected, probe
    contract = read_contract(found, None)
    added = (*contract.prefix, *contract.suffix)
    assert tuple(found.convert_ids_to_tokens(list(added))) == ends
    # What is saved needs no conversion any more.
    found.save_pretrained(tmp_path / "saved")
    again = bare(load_tokenizer(tmp_path / "saved"))
    assert all(again.encode(p).ids == backend.encode(p).ids for p in PROBES)


def test_without_sentencepiece_the_pip_command_is_named(tmp_path, monkeypatch):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyvec\[sentencepiece\]'"):
        load_tokenizer(tmp_path)


def test_a_damaged_file_is_an_error(tmp_path):
    pytest.importorskip("sentencepiece")
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"not a model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    with pytest.raises(TokenizerError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path)
