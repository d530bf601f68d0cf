"""Folders of word vectors: sentence-transformers' WordEmbeddings and BoW (bag of words)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyvec.embed.formats.schema import read_json, write_json
from polyvec.embed.formats.static import StaticTable, Weights
from polyvec.embed.formats.tokenizer import load_tokenizer
from polyvec.embed.inputs.words import WORDS, Pieces, Words, WordTokenizer
from polyvec.errors import ModelError, known

CONFIG = "wordembedding_config.json"
# What sentence-transformers writes for "no limit".
NO_LIMIT = 1_000_000


def read_words(
    folder: Path, read_weights: Weights, max_length: int | None = None
) -> tuple[StaticTable, WordTokenizer]:
    """The table and tokenizer of a WordEmbeddings module."""
    path = folder / CONFIG
    config = read_json(path)
    kind = str(config.get("tokenizer_class", "")).rpartition(".")[2]
    words = _words(kind, folder)
    weights = read_weights(folder)
    if "emb_layer.weight" not in weights:
        raise ModelError(f"{folder}: expected a tensor emb_layer.weight, got {sorted(weights)}")
    rows_VD = weights["emb_layer.weight"].float()
    if len(rows_VD) < len(words):
        raise ModelError(f"{folder}: {len(rows_VD)} rows for {len(words)} words")
    declared = config.get("max_seq_length")
    limit = None if declared is None or declared >= NO_LIMIT else int(declared)
    return StaticTable(rows_VD).eval(), WordTokenizer(words, max_length=max_length or limit)


def _words(kind: str, folder: Path) -> Words:
    if kind == Pieces.kind:
        return Pieces(load_tokenizer(folder))
    if kind not in WORDS:
        raise ModelError(
            f"{folder / CONFIG}: tokenizer_class {kind!r} is not supported."
            + known(kind, [*WORDS, Pieces.kind])
        )
    path = folder / WORDS[kind].file
    try:
        return WORDS[kind](**read_json(path))
    except TypeError as error:
        raise ModelError(f"{path}: {str(error).partition('__init__() ')[2] or error}") from None


def read_bag_of_words(folder: Path) -> tuple[StaticTable, WordTokenizer]:
    """A table of one number a word, its weight, and the tokenizer of a BoW module."""
    config = read_json(folder / "config.json")
    vocab = list(dict.fromkeys(config["vocab"]))
    given, other = config.get("word_weights") or {}, config.get("unknown_word_weight", 1)
    weights = [given.get(word, given.get(word.lower(), other)) for word in vocab]
    rows_V1 = torch.tensor(weights, dtype=torch.float32)[:, None]
    return StaticTable(rows_V1).eval(), WordTokenizer(WORDS["WhitespaceTokenizer"](vocab))


def write_words(
    model: StaticTable, tokenizer: WordTokenizer, folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write the tokenizer's file; the configuration and weights of the WordEmbeddings module."""
    words: Words = tokenizer.hf
    if isinstance(words, Pieces):
        words.tokenizer.save_pretrained(folder)
    else:
        write_json(folder / words.file, words.settings())
    config = {
        "tokenizer_class": f"sentence_transformers.models.tokenizer.{words.kind}",
        "update_embeddings": False,
        "max_seq_length": tokenizer.max_length or NO_LIMIT,
    }
    return config, {"emb_layer.weight": model.embedding.weight.detach().contiguous()}


def bag_of_words_config(
    model: StaticTable, tokenizer: WordTokenizer, cumulative: bool
) -> dict[str, Any]:
    """The configuration of the BoW module."""
    words: Words = tokenizer.hf
    weights = model.embedding.weight.detach().float()[:, 0].tolist()
    return {
        "vocab": words.vocab,
        "word_weights": dict(zip(words.vocab, weights, strict=True)),
        "unknown_word_weight": 1,
        "cumulative_term_frequency": cumulative,
    }
