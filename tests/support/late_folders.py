"""Tiny late-interaction folders, with the files that each library writes."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from families import ENCODER_SIZES, SPECIALS, WORDS
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

MARKERS = ["[unused0]", "[unused1]"]
DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}


def words(*added: str) -> tf.PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer with punctuation and ColBERT's unused tokens."""
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789[]{}<>/.,!?:;'")
    pieces = [*SPECIALS, *MARKERS, *WORDS.split(), *letters, *(f"##{x}" for x in letters)]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=48,
    )
    made.add_tokens(list(added))
    return made


def body(folder: Path, family: str, tokenizer: tf.PreTrainedTokenizerFast) -> None:
    """A random model without heads, and its tokenizer."""
    torch.manual_seed(0)
    sizes = DISTILBERT if family == "distilbert" else ENCODER_SIZES
    config = tf.AutoConfig.for_model(family, **sizes, vocab_size=len(tokenizer))
    model = tf.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def stanford(folder: Path, family: str = "bert", metadata: Mapping[str, Any] | None = None) -> Path:
    """As colbert-ir/colbertv2.0: one file of weights, its projection and artifact.metadata."""
    body(folder, family, words())
    path = folder / "model.safetensors"
    tensors = {f"{family}.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(tensors | {"linear.weight": torch.randn(16, 32)}, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"architectures": ["HF_ColBERT"]})
    stored = {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_token": "[Q]",
        "doc_token": "[D]",
        "dim": 16,
        "similarity": "cosine",
        "query_maxlen": 12,
        "doc_maxlen": 20,
        "mask_punctuation": True,
        "attend_to_mask_tokens": False,
    }
    write(folder / "artifact.metadata", stored | dict(metadata or {}))
    return folder


def pylate(
    folder: Path, family: str = "modernbert", *, sizes: tuple[int, ...] = (32, 16), **stored: Any
) -> Path:
    """As lightonai/GTE-ModernColBERT-v1: PyLate's Dense layers and top-level settings."""
    body(folder, family, words("[Q] ", "[D] "))
    kinds = [("", "sentence_transformers.models.Transformer")]
    for place, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
        inside = folder / f"{place}_Dense"
        inside.mkdir()
        config = {
            "in_features": before,
            "out_features": after,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
            "use_residual": False,
        }
        write(inside / "config.json", config)
        save_file({"linear.weight": torch.randn(after, before)}, inside / "model.safetensors")
        kinds.append((inside.name, "pylate.models.Dense.Dense"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(kinds)
    ]
    write(folder / "modules.json", listed)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False})
    known = {
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 12,
        "document_length": 20,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list("!,.:?;"),
    }
    kept = {key: value for key, value in (known | stored).items() if value != "absent"}
    write(folder / "config_sentence_transformers.json", kept)
    return folder


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))
