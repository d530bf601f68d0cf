"""Models in GGUF, llama.cpp's format: settings, tokenizer and weights in one file.

Such a file is read by the same route as a folder: its metadata take the place of config.json,
tokenizer.json and modules.json, its tensors that of model.safetensors. They are de-quantised, so
that the model computes, trains and is saved as any other.
"""

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.formats.declared import Declared
from polyvec.embed.formats.gguf.file import GgufFile, read_gguf
from polyvec.embed.formats.gguf.models import find, model_class, model_config, weights
from polyvec.embed.formats.gguf.settings import DENSE
from polyvec.embed.formats.gguf.tokenizers import read_tokenizer
from polyvec.embed.formats.schema import read_json, write_json
from polyvec.embed.projection.dense import Dense
from polyvec.errors import ModelError

# llama.cpp's enum of pooling types (include/llama.h); 0 is none. 4 gives a score, not a vector.
POOLINGS = {1: "mean", 2: "first", 3: "last"}
RANK = 4
RERANKER = re.compile(r"rerank|cross-?encoder", re.I)


def read_declared(path: Path) -> Declared:
    """What the metadata declare of the pooling; ModelError for a reranker."""
    file = read_gguf(path)
    find(file)
    pooling = file.of("pooling_type", int, 0)
    named = next((name for name in _names(file) if RERANKER.search(name)), None)
    if pooling == RANK or named:
        evidence = f"its name {named[:60]!r}" if named else "pooling_type rank"
        raise ModelError(
            f"{path}: a cross-encoder, reranker or classifier ({evidence}), not an embedder: it "
            "scores pairs of texts; use llama.cpp, or sentence_transformers.CrossEncoder"
        )
    if pooling and pooling not in POOLINGS:
        raise ModelError(f"{path}: pooling_type {pooling} is not known. Known: 0, 1, 2, 3.")
    declared = Declared(pooling=(POOLINGS[pooling],) if pooling else None)
    declared.projections = _dense(file)
    return declared


def _dense(file: GgufFile) -> list[nn.Module]:
    """The linear layers behind the pooling of EmbeddingGemma, if the file has them."""
    found: list[nn.Module] = []
    for name in (f"{each}.weight" for each in DENSE):
        if file.architecture == "gemma-embedding" and name in file.tensors:
            weight = file.tensor(name)
            rows, columns = weight.shape
            layer = Dense(columns, rows, bias=False, activation="Identity")
            layer.linear.weight = nn.Parameter(weight.clone())
            found.append(layer)
    return found


def _names(file: GgufFile) -> list[str]:
    return [file.path.name, *(file.get(f"general.{key}", str, "") for key in ("name", "basename"))]


def load_gguf_config(path: Path) -> PretrainedConfig:
    """transformers' configuration of the model."""
    return model_config(read_gguf(path))


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, with the special tokens and the chat template of the metadata."""
    return read_tokenizer(read_gguf(path))


def gguf_dtype(path: Path) -> str:
    """The dtype of most weights; float32 for quantised ones, whose own is not in the file."""
    kinds = [stored.kind for stored in read_gguf(path).tensors.values() if len(stored.shape) > 1]
    names = {1: "float16", 30: "bfloat16"}
    return names.get(max(set(kinds), key=kinds.count), "float32") if kinds else "float32"


def load_gguf_model(path: Path, dtype: torch.dtype, *, kind: str = "body") -> Any:
    """The model with de-quantised weights; ModelError if one is missing or left over.

    `kind`: "body" is the model without a head, "lm" the language model with its head.
    """
    file = read_gguf(path)
    config = model_config(file)
    decoder = find(file).decoder
    if kind != "body" and not decoder:
        raise ModelError(
            f"{path}: of {file.architecture} only the encoder is read, which writes nothing; take "
            "the safetensors of the original model"
        )
    state = weights(file, config, dtype, head=kind == "lm")
    cls = model_class(config, kind == "lm")
    pooler = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    options = {"add_pooling_layer": False} if pooler else {}
    with quiet_transformers():
        model, info = cls.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, **options
        )
    missing = [name for name in info["missing_keys"] if "pooler" not in name]
    if missing:
        raise ModelError(f"{path}: {len(missing)} weights are missing, the first {missing[0]}")
    model.config._name_or_path = ""  # transformers writes "None"
    return model.eval()


def convert(file: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model of a GGUF file as a folder of transformers.

    config.json, model.safetensors, tokenizer.json, the chat template and, of a language model,
    generation_config.json. Raises ModelError as loading does.
    """
    read = read_gguf(file)
    kind = "lm" if find(read).decoder else "body"
    tokenizer = read_tokenizer(read)
    model = load_gguf_model(file, dtype, kind=kind)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        if kind == "lm":
            model.generation_config = GenerationConfig.from_model_config(model.config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    config = read_json(folder / "tokenizer_config.json")
    # The one name by which transformers 4 and 5 both leave tokenizer.json alone.
    write_json(
        folder / "tokenizer_config.json", {**config, "tokenizer_class": "PreTrainedTokenizerFast"}
    )
