"""The tokenizer of a folder: ids of tokenizer.json, promised ends, vocabularies, saves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

from polyvec import Embedder
from polyvec.embed.formats.tokenizer import load_tokenizer
from polyvec.embed.inputs.contract import PROBES, bare, read_contract
from polyvec.errors import InputError, TokenizerError

TEXTS = ["the cat sat on the mat", "two very long text", "dog"]


def change(path: Path, **settings) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **settings}))


def folder(root: Path, words: PreTrainedTokenizerFast, kind: str = "bert") -> Path:
    """A tiny model that pools the last token, as sentence-transformers writes it."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    if kind == "bert":
        model = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    else:
        model = Qwen2Model(Qwen2Config(num_key_value_heads=2, **sizes))
    model.save_pretrained(root)
    words.save_pretrained(root)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    types = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ]
    (root / "modules.json").write_text(json.dumps(types))
    (root / "1_Pooling").mkdir()
    change(root / "1_Pooling/config.json", word_embedding_dimension=32, pooling_mode_lasttoken=True)
    change(root / "sentence_bert_config.json", max_seq_length=32, do_lower_case=False)
    return root


def vectors_of_sentence_transformers(path: Path) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu").encode(TEXTS)


def ids(words: PreTrainedTokenizerFast, text: str) -> list[int]:
    return bare(words).encode(text).ids


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
@pytest.mark.parametrize(
    "name",
    [None, "BertTokenizer", "RobertaTokenizer", "GPT2TokenizerFast", "LlamaTokenizer",
     "GemmaTokenizer", "XLMRobertaTokenizer", "Qwen2Tokenizer", "T5TokenizerFast", "Unheard"],
)  # fmt: skip
def test_ids_are_those_of_tokenizer_json_whatever_class_is_named(tmp_path, kind, name):
    """SILENT row 33; the reference is tokenizers' own reader."""
    tokenizer().save_pretrained(tmp_path)
    change(tmp_path / "config.json", model_type=kind)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("tokenizer_class")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | ({"tokenizer_class": name} if name else {}))
    )
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    for probe in (*PROBES, *TEXTS):
        assert ids(found, probe) == own.encode(probe).ids


def test_a_save_has_equal_vectors_here_and_in_sentence_transformers(tmp_path):
    """transformers gives a qwen2 folder its own tokenizer, whatever tokenizer.json says."""
    embedder = Embedder.from_pretrained(folder(tmp_path / "made", tokenizer(), "qwen2"))
    expected = embedder.encode(TEXTS)
    embedder.save_pretrained(tmp_path / "saved")
    assert np.abs(vectors_of_sentence_transformers(tmp_path / "saved") - expected).max() < 1e-5
    assert np.array_equal(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), expected)


@pytest.mark.parametrize("bos", [True, False])
def test_promised_ends_are_added(tmp_path, bos):
    """SILENT row 35: e5-mistral (BOS in tokenizer.json) and gte-Qwen2 (none)."""
    tokenizer(bos, False).save_pretrained(tmp_path)
    change(tmp_path / "tokenizer_config.json", add_eos_token=True, add_bos_token=bos)
    found = load_tokenizer(tmp_path)
    contract = read_contract(found, None)
    assert (contract.prefix, contract.suffix) == ((1,) if bos else (), (2,))
    found.save_pretrained(tmp_path / "saved")
    again = read_contract(load_tokenizer(tmp_path / "saved"), None)
    assert (again.prefix, again.suffix) == (contract.prefix, contract.suffix)


def test_the_vector_of_a_promised_eos_is_pooled(tmp_path):
    """The reference is the same model with a tokenizer.json that adds EOS."""
    right = folder(tmp_path / "right", tokenizer(False, True), "qwen2")
    expected = Embedder.from_pretrained(right).encode(TEXTS)
    promised = folder(tmp_path / "promised", tokenizer(False, False), "qwen2")
    change(promised / "tokenizer_config.json", add_eos_token=True, tokenizer_class="Qwen2Tokenizer")
    embedder = Embedder.from_pretrained(promised)
    assert np.array_equal(embedder.encode(TEXTS), expected)
    embedder.save_pretrained(tmp_path / "saved")
    assert np.abs(vectors_of_sentence_transformers(tmp_path / "saved") - expected).max() < 1e-5


def test_what_tokenizer_json_adds_beyond_the_promise_stays(tmp_path):
    """As in transformers 5, where tokenizer.json decides."""
    tokenizer(True, True).save_pretrained(tmp_path)
    change(tmp_path / "tokenizer_config.json", add_eos_token=False, add_bos_token=False)
    contract = read_contract(load_tokenizer(tmp_path), None)
    assert (contract.prefix, contract.suffix) == ((1,), (2,))


def test_ends_beside_byte_level_and_tokens_with_colons(tmp_path):
    """gte-Qwen2's post-processor is ByteLevel, whose trimmed offsets stay."""
    vocab = {c: i for i, c in enumerate(["<|end:of|>", *"abcdefgh", "Ġ", "Ġa", "Ġb"])}
    backend = Tokenizer(models.BPE(vocab, [("Ġ", "a"), ("Ġ", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end:of|>")
    words.save_pretrained(tmp_path)
    change(tmp_path / "tokenizer_config.json", add_eos_token=True)
    found = bare(load_tokenizer(tmp_path)).encode("a b")
    assert found.tokens == ["a", "Ġb", "<|end:of|>"]
    assert found.offsets[1] == (2, 3)


def test_a_promise_without_a_name_is_an_error(tmp_path):
    words = tokenizer(True, False)
    words.eos_token = None
    words.save_pretrained(tmp_path)
    change(tmp_path / "tokenizer_config.json", add_eos_token=True)
    with pytest.raises(TokenizerError, match=r"add_eos_token=true.*no eos_token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["bert", "qwen2", "xlm-roberta", "llama", "t5"])
def test_a_folder_without_a_vocabulary_is_refused(tmp_path, kind):
    """SILENT row 34: transformers invents one of 1 to 7 tokens."""
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    change(tmp_path / "config.json", model_type=kind)
    with pytest.raises(TokenizerError, match=r"no tokenizer \(neither tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_class_that_does_not_read_the_vocabulary_is_an_error(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\n")
    change(tmp_path / "config.json", model_type="roberta")
    with pytest.raises(TokenizerError, match=r"vocab.txt: RobertaTokenizer does not hold 7 of its"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("lower", [True, False])
def test_a_vocabulary_file_of_bert(tmp_path, lower):
    """The reference is tokenizers' own WordPiece, by the lines of the file."""
    from tokenizers import BertWordPieceTokenizer

    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "Cat", "##s", "sat", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n")
    change(tmp_path / "config.json", model_type="bert")
    change(tmp_path / "tokenizer_config.json", do_lower_case=lower)
    own = BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=lower)
    found = load_tokenizer(tmp_path)
    for text in ("The cats sat.", "the Cats, sat", "Çat", ""):
        assert ids(found, text) == own.encode(text).ids
    assert found.mask_token == "[MASK]"


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_a_vocabulary_with_merges(tmp_path, kind):
    """The reference is tokenizers' own byte-level BPE; RoBERTa puts <s> and </s> around it."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.implementations import ByteLevelBPETokenizer as Bpe

    made = Bpe()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    made.train_from_iterator(TEXTS * 3, vocab_size=300, special_tokens=specials)
    made.save_model(str(tmp_path))
    change(tmp_path / "config.json", model_type=kind)
    own = ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    found = load_tokenizer(tmp_path)
    ends = ([], []) if kind == "gpt2" else ([0], [2])
    for probe in (*PROBES, *TEXTS):
        assert ids(found, probe) == [*ends[0], *own.encode(probe).ids, *ends[1]]


def bert_words(**flags) -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "The", "cafe", "café", "Café"]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(**flags)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    template = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    backend.post_processor = template
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, sep_token="[SEP]", **specials)


@pytest.mark.parametrize("flags", [{"do_lower_case": False}, {"strip_accents": False}])
def test_flags_of_bert_decide_as_in_sentence_transformers(tmp_path, flags):
    """tokenizer.json lower-cases and strips accents; BERT's class lets the flag decide."""
    made = folder(tmp_path / "made", bert_words(lowercase=True))
    change(made / "tokenizer_config.json", tokenizer_class="BertTokenizer", **flags)
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(made), device="cpu").tokenizer("The Café")["input_ids"]
    assert ids(load_tokenizer(made), "The Café") == theirs
    assert ids(load_tokenizer(made), "The Café") != ids(bert_words(lowercase=True), "The Café")


def test_an_absent_flag_leaves_tokenizer_json_alone(tmp_path):
    """transformers' BERT class would lower-case a cased model."""
    made = folder(tmp_path / "made", bert_words(lowercase=False))
    config = {"tokenizer_class": "BertTokenizer"}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_tokenizer(made)
    assert ids(found, "The Café") == ids(bert_words(lowercase=False), "The Café")
    assert (found.pad_token, found.cls_token) == ("[PAD]", "[CLS]")  # the class's own names


@pytest.mark.parametrize("length", [1e30, 32.0, 32])
def test_model_max_length_may_be_a_float(tmp_path, length):
    made = folder(tmp_path / "made", tokenizer())
    change(made / "tokenizer_config.json", model_max_length=length)
    (made / "sentence_bert_config.json").unlink()
    assert Embedder.from_pretrained(made).max_seq_length == (64 if length > 64 else 32)


def test_a_length_beyond_the_positions_is_an_error(tmp_path):
    made = folder(tmp_path / "made", tokenizer())
    with pytest.raises(InputError, match="max_seq_length 1000000000 exceeds the model's 64"):
        Embedder.from_pretrained(made, max_seq_length=10**9)


@pytest.mark.parametrize("length", ["512", 0, -1, True])
def test_a_model_max_length_that_is_no_length(tmp_path, length):
    tokenizer().save_pretrained(tmp_path)
    change(tmp_path / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: model_max_length is"):
        load_tokenizer(tmp_path)


def test_the_side_of_truncation_is_read(tmp_path):
    made = folder(tmp_path / "made", tokenizer())
    change(made / "tokenizer_config.json", truncation_side="left", padding_side="left")
    embedder = Embedder.from_pretrained(made, max_seq_length=4)
    ((tokens,),) = embedder.tokenize(["a cat sat on the mat"])
    shown = embedder.tokenizer.convert_ids_to_tokens(tokens.ids)
    assert shown == ["<s>", "the", "mat", "</s>"]
