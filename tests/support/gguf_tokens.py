"""Small tokenizers, and the metadata that a GGUF file has of them."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = [
    "The cat sat on the mat.",
    "A much longer text: 1,234,567 digits and\nlines, two  spaces, Café, don't, x² and 漢字!",
    "def f(x):\n    return x ** 2  # code",
    "a",
]


CORPUS = [*TEXTS, "the cat looks at the vector of the passage and of the query " * 3]


def byte_level_tokenizer() -> Tokenizer:
    """A small byte-level BPE with two control tokens in front, <s> and </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def bpe_fields(pre: str = "gpt-2") -> dict[str, Any]:
    """The metadata of `byte_level_tokenizer`."""
    import json

    state = json.loads(byte_level_tokenizer().to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 2)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 1,
    }


def word_piece_fields(words: list[str], *, old: bool = False) -> dict[str, Any]:
    """BERT's metadata of a vocabulary in the order of its ids, with phantom spaces.

    `old`: brackets are left as they are, as converters before 2024-09 did.
    """
    control = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}

    def phantom(word: str) -> str:
        if word in control or (old and word.startswith("[") and word.endswith("]")):
            return word
        return word[2:] if word.startswith("##") else "\u2581" + word

    ids = {"bos": "[CLS]", "eos": "[SEP]", "unknown": "[UNK]", "seperator": "[SEP]"}
    ids |= {"padding": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [phantom(word) for word in words],
        "tokenizer.ggml.token_type": [3 if word in control else 1 for word in words],
        "tokenizer.ggml.token_type_count": 2,
        **{f"tokenizer.ggml.{key}_token_id": words.index(word) for key, word in ids.items()},
    }


def words_of_bert() -> list[str]:
    """A WordPiece vocabulary; ids of the special tokens are not those of BERT's."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:!?'-_*()#=²漢字é"
    whole = "the cat sat on mat much longer text digits and lines two spaces def return code"
    specials = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    parts = ["##s", "##ing", "##git", *(f"##{letter}" for letter in letters)]
    return list(dict.fromkeys([*specials, *letters, "[", "]", *whole.split(), *parts]))


# A unigram model of single letters, in the order of T5.
_LETTERS = sorted(set("".join(CORPUS)) - set(" \n"))


UNIGRAM: dict[str, Any] = {
    "tokenizer.ggml.model": "t5",
    "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", "\u2581", *_LETTERS, "\u2581the"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -2.0, *[-4.0] * len(_LETTERS), -3.0],
    "tokenizer.ggml.token_type": [3, 3, 2, *[1] * (len(_LETTERS) + 2)],
    "tokenizer.ggml.add_space_prefix": True, "tokenizer.ggml.remove_extra_whitespaces": True,
    "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 2,
}  # fmt: skip


def sentencepiece_fields(folder: Path, kind: str) -> tuple[Any, dict[str, Any]]:
    """A small sentencepiece model, "bpe", "unigram" or "t5", and the metadata of it.

    All but the first are unigram models, with the tokens in the order of XLM-R, or of T5, as the
    converter writes them.
    """
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as proto

    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(line for text in CORPUS * 20 for line in text.split("\n")))
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if kind == "t5" else {}
    spm.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / kind), **ids,
        model_type="bpe" if kind == "bpe" else "unigram",
        vocab_size=380 if kind == "bpe" else 110, byte_fallback=kind == "bpe",
        normalization_rule_name="identity" if kind == "bpe" else "nmt_nfkc",
        remove_extra_whitespaces=kind != "bpe", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    processor = spm.SentencePieceProcessor(model_file=str(folder / f"{kind}.model"))
    read = proto.ModelProto()
    read.ParseFromString((folder / f"{kind}.model").read_bytes())
    tokens = [piece.piece for piece in read.pieces]
    scores = [float(piece.score) for piece in read.pieces]
    types = [int(piece.type) for piece in read.pieces]
    if kind == "bpe":
        return processor, {
            "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": True,
        }  # fmt: skip
    table = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.precompiled_charsmap": list(read.normalizer_spec.precompiled_charsmap),
        "tokenizer.ggml.add_space_prefix": True, "tokenizer.ggml.remove_extra_whitespaces": True,
    }  # fmt: skip
    if kind == "t5":  # its table of embeddings has more rows than there are tokens
        return processor, table | {
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{len(tokens) + i}]" for i in range(8))],
            "tokenizer.ggml.scores": [*scores, *[-10000.0] * 8],
            "tokenizer.ggml.token_type": [*types, *[5] * 8],
            "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.unknown_token_id": 2,
            "tokenizer.ggml.padding_token_id": 0,
        }  # fmt: skip
    return processor, table | {
        "tokenizer.ggml.tokens": ["<s>", "<pad>", "</s>", "<unk>", *tokens[3:], "<mask>"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, *scores[3:], 0.0],
        "tokenizer.ggml.token_type": [3, 3, 3, 2, *types[3:], 3],
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True,
    }  # fmt: skip
