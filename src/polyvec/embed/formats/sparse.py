"""Sparse parts of model folders: sentence-transformers' SparseEncoder, and bge-m3's sparse head.

SpladePooling, SparseAutoEncoder (CSR) and SparseStaticEmbedding are read from and written to
sentence-transformers' own files.
"""

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import processors
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.heads import has_own_head
from polyvec.embed.formats.schema import read_json, write_json
from polyvec.embed.formats.static import StaticTable
from polyvec.embed.formats.tokenizer import load_tokenizer
from polyvec.embed.formats.transformer import is_masked
from polyvec.embed.formats.weights import load_weights
from polyvec.embed.pooling.lexical import Lexical
from polyvec.embed.pooling.token_weights import TokenWeights
from polyvec.embed.projection.trained import SparseAutoencoder
from polyvec.errors import ModelError, known

SPARSE_HEAD = "sparse_linear.pt"
SPLADE_KEYS = ("pooling_strategy", "activation_function", "embedding_dimension", "chunk_size")
OLD_KEYS = {"word_embedding_dimension": "embedding_dimension"}
SAE_KEYS = ("input_dim", "hidden_dim", "k", "k_aux", "normalize", "dead_threshold")
# The ids that FlagEmbedding's M3 drops, by the tokenizer's names.
UNUSED = ("cls_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


# ---- reading ------------------------------------------------------------------------------------


def read_splade(folder: Path, transformer: Path) -> Lexical:
    """The pooling of a SpladePooling module; its vocabulary is the transformer's."""
    path = folder / "config.json"
    config = {OLD_KEYS.get(key, key): value for key, value in read_json(path).items()}
    _check_keys(config, SPLADE_KEYS, path)
    model = read_json(transformer / "config.json")
    sizes = (model.get("vocab_size"), model.get("n_words"), config.get("embedding_dimension"))
    size = next((size for size in sizes if size), None)
    if size is None:
        raise ModelError(f"{path}: embedding_dimension is not set, nor vocab_size in {transformer}")
    over, activation = config.get("pooling_strategy", "max"), config.get("activation_function")
    if over not in ("max", "sum"):
        raise ModelError(f"{path}: pooling_strategy {over!r} is not known. Known: max, sum.")
    if activation not in (None, "relu", "log1p_relu"):
        raise ModelError(
            f"{path}: activation_function {activation!r} is not known. Known: log1p_relu, relu."
        )
    return Lexical(int(size), over, skip_first=False, activation=activation or "relu")


def read_autoencoder(folder: Path) -> SparseAutoencoder:
    """The projection of a SparseAutoEncoder module (CSR), with its weights."""
    path = folder / "config.json"
    config = read_json(path)
    _check_keys(config, SAE_KEYS, path)
    size, latents = config["input_dim"], config.get("hidden_dim", 512)
    part = SparseAutoencoder(size, latents, config.get("k", 8), config.get("normalize", False))
    weights = load_weights(folder)
    if "encoder.weight" not in weights and "decoder.linear.weight" in weights:
        # One tensor under two names, of which safetensors keeps one.
        weights["encoder.weight"] = weights["decoder.linear.weight"]
    names = {"weight_ED": "encoder.weight", "bias_E": "latent_bias", "bias_pre_D": "pre_bias"}
    for own, name in names.items():
        target = getattr(part, own)
        if name not in weights or weights[name].shape != target.shape:
            found = tuple(weights[name].shape) if name in weights else "missing"
            raise ModelError(f"{folder}: weight {name} is {found}, expected {tuple(target.shape)}")
        target.data.copy_(weights[name])
    return part


def read_sparse_static(
    folder: Path, root: Path
) -> tuple[StaticTable, PreTrainedTokenizerBase, TokenWeights]:
    """The table, tokenizer and pooling of a SparseStaticEmbedding: one weight a token.

    Special tokens are not added. The weights are in its own file, or in the idf.json that its
    config names, in the model's folder.
    """
    config = read_json(folder / "config.json", {})
    _check_keys(config, ("frozen", "path"), folder / "config.json")
    tokenizer = load_tokenizer(folder)
    # The file's own post-processor may add [CLS] and [SEP].
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    if config.get("path") is not None:
        weight_V = _idf(str(config["path"]), folder, root, tokenizer)
    else:
        weight_V = _weight(folder)
    if len(weight_V) < len(tokenizer.get_vocab()):
        raise ModelError(
            f"{folder}: {len(weight_V)} weights for {len(tokenizer.get_vocab())} tokens"
        )
    table = StaticTable(weight_V.float()[:, None])
    return table.eval(), tokenizer, TokenWeights(1, len(weight_V), linear=False)


def _weight(folder: Path) -> Tensor:
    found = load_weights(folder)
    if "weight" not in found or found["weight"].ndim != 1:
        raise ModelError(f"{folder}: expected a tensor weight with one number a token")
    return found["weight"]


def _idf(name: str, folder: Path, root: Path, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Weights of all tokens from idf.json, [V]; 0 for those that it leaves out."""
    places = [place / Path(name).name for place in (folder, root)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ModelError(f"{folder}/config.json: path {name!r} is not among the model's files")
    words, out_V = tokenizer.get_vocab(), torch.zeros(len(tokenizer.get_vocab()))
    for word, weight in read_json(path).items():
        if word not in words:
            raise ModelError(f"{path}: token {word!r} is not in the tokenizer's vocabulary")
        out_V[words[word]] = float(weight)
    return out_V


def limited(part: Any, max_active_dims: int | None, where: Path) -> Any:
    """A sparse part that keeps at most so many entries of a vector, as SparseEncoder does."""
    if max_active_dims is None:
        return part
    if type(max_active_dims) is not int or max_active_dims < 1:
        raise ModelError(f"{where}: max_active_dims is {max_active_dims!r}, expected 1 or more")
    part = copy.copy(part)
    if isinstance(part, Lexical | TokenWeights):
        part.top_k = min(max_active_dims, part.vocab_size)
    elif isinstance(part, SparseAutoencoder):
        part.k = min(max_active_dims, part.num_latents)
    else:
        raise ModelError(f"{where}: max_active_dims is set, but the model's vectors are dense")
    return part


def read_sparse_head(
    root: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> Lexical | TokenWeights:
    """The sparse output of a folder whose vectors are dense unless they are asked for.

    bge-m3's `sparse_linear.pt`, or SPLADE's pooling of a bare masked language model, as
    SparseEncoder takes it. Raises ModelError for a folder that has neither.
    """
    vocab_size = int(config.get_text_config().vocab_size)
    if (root / SPARSE_HEAD).is_file():
        ids = {getattr(tokenizer, name) for name in UNUSED} - {None}
        part = TokenWeights(int(config.hidden_size), vocab_size, tuple(sorted(ids)))
        load_head(part.weight, root / SPARSE_HEAD)
        return part
    if (root / "idf.json").is_file() and not (root / "modules.json").is_file():
        raise ModelError(
            f"{root}: queries of this model are weighted by its idf.json, documents by the masked "
            "language model; take a version with a Router in modules.json, which says so"
        )
    if not (root / "modules.json").is_file() and is_masked(config):
        return Lexical(vocab_size, "max", skip_first=False)
    raise ModelError(
        f"{root}: output 'sparse' needs a SpladePooling or SparseAutoEncoder in modules.json, "
        f"{SPARSE_HEAD}, or a bare masked language model; the folder has none of them"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, by the loader that runs no code; ModelError names the file."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"{path}: no file of tensors that can be read safely: {reason}") from None
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ModelError(f"{path}: expected tensors by name")
    return dict(found)


def load_head(layer: nn.Module | None, path: Path) -> None:
    assert layer is not None
    try:
        layer.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: does not fit the model: {reason}") from None


def _check_keys(config: Mapping[str, Any], names: tuple[str, ...], path: Path) -> None:
    for key in config:
        if key not in names:
            raise ModelError(f"{path}: key {key!r} is not known.{known(key, names)}")


# ---- writing ------------------------------------------------------------------------------------


def is_splade(part: object, backbone: Backbone, pool_prompt: bool) -> bool:
    """Whether sentence-transformers' SpladePooling computes the same vectors."""
    return (
        isinstance(part, Lexical)
        and part.over in ("max", "sum")
        and not (part.skip_first or part.text_only)
        and pool_prompt
        and backbone.lm is not None
        and has_own_head(backbone.lm)
        and is_masked(backbone.lm.config)
    )


def write_splade(part: Lexical, folder: Path) -> None:
    """The files of a SpladePooling module."""
    config = {
        "pooling_strategy": part.over,
        "activation_function": part.activation,
        # The name that all versions of sentence-transformers read.
        "word_embedding_dimension": part.vocab_size,
    }
    write_json(folder / "config.json", config)


def write_autoencoder(part: SparseAutoencoder, folder: Path) -> None:
    """The files of a SparseAutoEncoder module."""
    config = {
        "input_dim": part.in_features,
        "hidden_dim": part.num_latents,
        "k": part.k,
        "k_aux": min(512, part.num_latents),
        "normalize": part.normalize,
        "dead_threshold": 30,
    }
    write_json(folder / "config.json", config)
    weights = {
        "pre_bias": part.bias_pre_D,
        "latent_bias": part.bias_E,
        # Encoder and decoder share it; this is the name that safetensors keeps.
        "decoder.linear.weight": part.weight_ED,
        "stats_last_nonzero": torch.zeros(part.num_latents, dtype=torch.long),
    }
    contiguous = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / "model.safetensors")


def write_static_weights(
    table: StaticTable, tokenizer: PreTrainedTokenizerBase, length: int | None, folder: Path
) -> None:
    """The files of a SparseStaticEmbedding module."""
    tokenizer = copy.deepcopy(tokenizer)
    if length is not None:
        tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    weight_V = table.embedding.weight.detach()[:, 0].contiguous()
    save_file({"weight": weight_V}, folder / "model.safetensors")
    write_json(folder / "config.json", {"frozen": False})


def max_active_dims(pooling: object, projections: tuple[nn.Module, ...]) -> int | None:
    """What config_sentence_transformers.json says of a sparse model's vectors."""
    last = projections[-1] if projections else pooling
    if isinstance(last, Lexical | TokenWeights):
        return last.top_k
    return last.k if isinstance(last, SparseAutoencoder) else None
