"""Folders of sentence-transformers encoders, and folders that hold no embedder."""

import json
from pathlib import Path

import torch
import transformers as tf
from families import tokenizer
from layouts import Equal, Refused, layout, sentence_transformers

ST = "sentence-transformers 6.2"
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def bert(folder: Path, **config: object) -> None:
    """A random BERT of 32 dimensions with its tokenizer."""
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
        "pad_token_id": 0, "initializer_range": 0.4,
    }  # fmt: skip
    tf.BertModel(tf.BertConfig(**sizes | config)).eval().save_pretrained(folder)
    words.save_pretrained(folder)


def modules(folder: Path, pooling: str, *, normalize: bool = False, **more: object) -> None:
    """The legacy files of a sentence-transformers folder, as most of the hub has them."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
        ],
    )
    flags = {flag: name == pooling for name, flag in POOLINGS.items()}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **flags})
    write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": 32, "do_lower_case": False, **more},
    )


@layout("BERT, CLS, normalised", like=["BAAI/bge-small-en-v1.5", "BAAI/bge-large-zh"], answer=ST)
def _(folder):
    bert(folder)
    modules(folder, "cls", normalize=True)
    return Equal(sentence_transformers(folder))


@layout("empty folder", like=[])
def _(folder):
    return Refused("not a model folder")
