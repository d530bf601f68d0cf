"""Late-interaction folders, read and written.

Read: Stanford's ColBERT (artifact.metadata, linear.weight among the model's weights), PyLate
(query_prefix, document_prefix and lengths in config_sentence_transformers.json),
sentence-transformers' MultiVectorEncoder (MultiVectorMask), and bge-m3's colbert_linear.pt.
Written: MultiVectorEncoder's form.
"""

import string
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedTokenizerBase

from polyvec import __version__
from polyvec.embed.assembly import EmbedderParts
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.formats.adapters import find_adapters, load_adapters
from polyvec.embed.formats.cards import read_card
from polyvec.embed.formats.checksums import own_settings, write_checksums
from polyvec.embed.formats.devices import best_device, check_device, device_name, dtype_name
from polyvec.embed.formats.families import family_of
from polyvec.embed.formats.late import (
    COLBERT_HEAD,
    PYLATE_KEYS,
    SETTINGS,
    check_reads_texts,
    late_kind,
)
from polyvec.embed.formats.options import check_options
from polyvec.embed.formats.replacing import files_of_model, model_marker
from polyvec.embed.formats.route import own_part
from polyvec.embed.formats.schema import (
    POLYVEC_FILE,
    listed_modules,
    module_folder,
    read_json,
    write_json,
)
from polyvec.embed.formats.settings import read_transformer_settings
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.sparse import load_head, read_tensors
from polyvec.embed.formats.tokenizer import has_tokenizer, load_tokenizer
from polyvec.embed.formats.transformer import (
    check_dtype,
    chosen_dtype,
    load_config,
    load_transformer,
)
from polyvec.embed.formats.weights import load_weights
from polyvec.embed.formats.writing import write_module, write_transformer
from polyvec.embed.inputs.contract import NO_LIMIT, check_count
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.multi_parts import Expansion, LateSettings, MultiParts
from polyvec.embed.projection.dense import Dense, Normalize
from polyvec.embed.projection.late_interaction import SIMILARITIES
from polyvec.errors import InputError, ModelError, known
from polyvec.storage.files import atomic_folder

EXPANSION_KEYS = ("strategy", "attend", "token", "length")
MASK_KEYS = ("skiplist_words", "skiplist_tasks", "keep_only_token_ids")
MODULES = "sentence_transformers.base.modules"
TYPES = {
    "Transformer": f"{MODULES}.transformer.Transformer",
    "Dense": f"{MODULES}.dense.Dense",
    "Normalize": f"{MODULES}.normalize.Normalize",
    "MultiVectorMask": (
        "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
    ),
}


@dataclass(slots=True)
class _Found:
    """What a folder declares, by whichever library's files."""

    root: Path  # of the transformer
    projections: list[nn.Module] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    markers: dict[str, str] = field(default_factory=dict)
    query_length: int | None = None
    document_length: int | None = None
    expansion: Mapping[str, Any] | None = None
    skipped: Sequence[str] = ()
    skipped_on: tuple[str, ...] = ("document",)
    similarity: str = "maxsim"


def read_multi(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    query_length: int | None,
    document_length: int | None,
    prompts: Mapping[str, str] | None,
    similarity_fn_name: str | None,
    layout: str,
    trust_remote_code: bool,
    **where: Any,
) -> MultiParts:
    """The parts of a MultiVectorEmbedder; see its from_pretrained."""
    device, dtype = device_name(device), dtype_name(dtype)
    check_options(dtype=dtype, layout=layout, trust_remote_code=trust_remote_code, **where)
    for name, count in (("query_length", query_length), ("document_length", document_length)):
        if count is not None:
            check_count(name, count)
    if device is not None:
        check_device(device)
    folder = model_folder(name_or_path, **where)
    found = _declared(folder)
    # A library's own code is refused before any weight loads.
    adapted = find_adapters(found.root, **{k: v for k, v in where.items() if k != "revision"})
    body = adapted.body if adapted else found.root
    family = family_of(*(adapted.folders if adapted else ()), body)
    options = read_transformer_settings(found.root, late=True)
    config = load_config(body, trust_remote_code, family, **options.config)
    words = found.root if has_tokenizer(found.root) else body
    tokenizer = load_tokenizer(words, trust_remote_code, **options.tokenizer)
    _register(found.markers.values(), tokenizer)
    if (folder / COLBERT_HEAD).is_file() and late_kind(folder) is None:
        _read_m3(folder, int(config.hidden_size), tokenizer, found)
    model = load_transformer(
        body,
        check_dtype(chosen_dtype(dtype, options.dtype, body), device),
        trust_remote_code,
        family=family,
        config_options=options.config,
    )
    if adapted:
        load_adapters(model, adapted)
    own = own_settings(folder)
    backbone = Backbone(
        model.to(device or best_device()),
        tokenizer.pad_token_id or 0,
        attention=own_part(own, "attention", AttentionSpec.parse, folder / POLYVEC_FILE)
        or AttentionSpec(),
        layout=layout,
    )
    limit = backbone.max_positions
    expansion = _expansion(found.expansion, tokenizer, query_length, limit)
    if expansion is not None and expansion.fixed:
        query_length = found.query_length = None  # the expansion's is the only one
    settings = LateSettings(
        _at_most(limit, "query_length", query_length, found.query_length),
        _at_most(limit, "document_length", document_length, found.document_length),
        expansion,
        _ids(found.skipped, tokenizer),
        found.skipped_on,
    )
    length = options.max_length or tokenizer.model_max_length
    text_tokenizer = TextTokenizer(
        tokenizer,
        max_length=_at_most(limit, "max_seq_length", None, length),
        lower_case=options.lower_case,
    )
    text_tokenizer.check_rows(backbone.num_rows)
    backbone.card = read_card(folder, [backbone, *found.projections])
    # An empty mapping removes the stored prompts.
    chosen = found.prompts if prompts is None else prompts
    if prompts is None and found.default_prompt not in (None, *chosen):
        raise ModelError(
            f"{folder / SETTINGS}: default_prompt_name {found.default_prompt!r} is not among its "
            f"prompts.{known(found.default_prompt, chosen)}"
        )
    table = PromptTable.of_folder(chosen, found.default_prompt)
    return MultiParts(
        backbone=backbone,
        text_tokenizer=text_tokenizer,
        projections=found.projections,
        settings=settings,
        prompts=table,
        similarity_fn_name=similarity_fn_name or found.similarity,
    )


def _declared(folder: Path) -> _Found:
    check_reads_texts(folder)
    kind = late_kind(folder)
    if kind == "stanford":
        return _read_stanford(folder)
    if kind == "modules":
        return _read_modules(folder)
    if (folder / COLBERT_HEAD).is_file():
        # No markers and no expansion; the mean is FlagEmbedding's score.
        return _Found(folder, similarity="meanmaxsim")
    raise ModelError(
        f"{folder} is not a late-interaction model: it has no HF_ColBERT architecture, no PyLate "
        f"or MultiVectorEncoder settings, and no {COLBERT_HEAD}; load it with "
        "polyvec.Embedder.from_pretrained"
    )


# ---- Stanford's ColBERT -------------------------------------------------------------------------


def _read_stanford(folder: Path) -> _Found:
    """Settings of artifact.metadata; without it those of ColBERT v2."""
    metadata = read_json(folder / "artifact.metadata", {})
    if metadata.get("similarity", "cosine") != "cosine":
        raise ModelError(
            f"{folder}/artifact.metadata: similarity {metadata['similarity']!r} is not supported; "
            "known: cosine"
        )
    weight_ED = _root_weight(folder, "linear.weight")
    dense = Dense(weight_ED.shape[1], weight_ED.shape[0], bias=False, activation="Identity")
    dense.linear.weight.data.copy_(weight_ED)
    markers = {
        "query": metadata.get("query_token_id") or "[unused0]",
        "document": metadata.get("doc_token_id") or "[unused1]",
    }
    return _Found(
        folder,
        [dense, Normalize()],
        prompts={role: f"{marker} " for role, marker in markers.items()},
        markers=markers,
        document_length=metadata.get("doc_maxlen"),
        expansion={
            "strategy": "fixed",
            "attend": bool(metadata.get("attend_to_mask_tokens")),
            "length": metadata.get("query_maxlen") or 32,
        },
        skipped=string.punctuation if metadata.get("mask_punctuation", True) else (),
    )


def _root_weight(folder: Path, name: str) -> Tensor:
    """A weight among the model's own, in whichever of its files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118 - the file is no mapping
                return file.get_tensor(name).float()
    for path in sorted(folder.glob("pytorch_model*.bin")):
        tensors = read_tensors(path)
        if name in tensors:
            return tensors[name].float()
    raise ModelError(f"{folder}: weight {name} is missing, which projects a token's state")


# ---- PyLate and MultiVectorEncoder --------------------------------------------------------------


def _read_modules(folder: Path) -> _Found:
    """Modules with weights, and settings of whichever of the two wrote them."""
    listed = listed_modules(folder)
    modules = [
        (str(module["type"]), module_folder(folder, module["path"]))
        for module in sorted(listed, key=lambda module: module["idx"])
    ]
    kinds = [kind.rpartition(".")[2] for kind, _ in modules]
    if not kinds or kinds[0] != "Transformer":
        raise ModelError(f"{folder}/modules.json: the first module must be a Transformer")
    found = _Found(modules[0][1])
    stored = read_json(folder / SETTINGS, {})
    found.prompts = {name: text for name, text in (stored.get("prompts") or {}).items() if text}
    found.default_prompt = stored.get("default_prompt_name")
    similarity = stored.get("similarity_fn_name")
    found.similarity = similarity if similarity in SIMILARITIES else "maxsim"
    pylate = any(key in stored for key in PYLATE_KEYS) or stored.get("model_type") == "ColBERT"
    if pylate:
        _take_pylate(stored, found)
    else:
        _take_transformer(found)
    for (kind, path), name in zip(modules[1:], kinds[1:], strict=True):
        _take_module(folder, kind, name, path, found)
    if pylate:
        found.prompts = {name: text for name, text in found.prompts.items() if text}
        # PyLate normalises after its modules, outside of them.
        found.projections.append(Normalize())
    return found


def _take_pylate(stored: Mapping[str, Any], found: _Found) -> None:
    for role, key in (("query", "query_prefix"), ("document", "document_prefix")):
        if key in stored:
            marker = found.markers[role] = stored[key] or ""
            found.prompts[role] = marker + found.prompts.get(role, "").removeprefix(marker)
    length = stored.get("query_length")
    found.document_length = stored.get("document_length")
    if stored.get("do_query_expansion") is False:
        found.query_length = length
    else:
        attend = stored.get("attend_to_expansion_tokens", stored.get("attend_to_mask_tokens"))
        found.expansion = {"strategy": "fixed", "attend": bool(attend), "length": length or 32}
    words = stored.get("skiplist_words")
    found.skipped = string.punctuation if words is None else words


def _take_transformer(found: _Found) -> None:
    """What MultiVectorEncoder stores with its transformer."""
    settings = read_json(found.root / "sentence_bert_config.json", {})
    found.query_length = settings.get("query_length")
    found.document_length = settings.get("document_length")
    found.expansion = settings.get("query_expansion")
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise ModelError(
            f"{found.root}/sentence_bert_config.json: transformer_task {task!r} is not supported "
            "for late interaction"
        )


def _take_module(folder: Path, kind: str, name: str, path: Path, found: _Found) -> None:
    if not kind.startswith(("sentence_transformers.", "pylate.")):
        raise ModelError(f"{folder}/modules.json: {kind} is the model's own code, which is not run")
    config = read_json(path / "config.json", {})
    if name == "MultiVectorMask":
        _check_keys(config, MASK_KEYS, path)
        if config.get("keep_only_token_ids"):
            raise ModelError(f"{path}/config.json: keep_only_token_ids is not supported")
        tasks = config.get("skiplist_tasks") or ["document"]
        found.skipped = config.get("skiplist_words") or ()
        found.skipped_on = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    elif name in ("Dense", "Normalize"):
        # Older files of Dense do not say so.
        reads = config.get("module_input_name", "token_embeddings" if name == "Dense" else None)
        if reads != "token_embeddings":
            raise ModelError(f"{path}/config.json: {name} must read token_embeddings, got {reads}")
        try:
            found.projections.append(_projection(name, config, path))
        except (KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ModelError(f"{path}/config.json: {name}: {reason} is missing or wrong") from None
    else:
        names = ("Dense", "MultiVectorMask", "Normalize", "Transformer")
        raise ModelError(
            f"{folder}/modules.json: module {name!r} is not supported in a late-interaction "
            f"model.{known(name, names)}"
        )


def _projection(name: str, config: Mapping[str, Any], path: Path) -> nn.Module:
    if name == "Normalize":
        return Normalize()
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not activation.startswith("torch.nn."):
        raise ModelError(f"{path}/config.json: activation {activation} is code, which is not run")
    dense = Dense(
        config["in_features"],
        config["out_features"],
        bias=config.get("bias", True),
        activation=activation.rpartition(".")[2],
        use_residual=config.get("use_residual", False),
    )
    try:
        dense.load_state_dict(load_weights(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: does not fit its config.json: {reason}") from None
    return dense


# ---- bge-m3 -------------------------------------------------------------------------------------


def _read_m3(
    folder: Path, hidden_size: int, tokenizer: PreTrainedTokenizerBase, found: _Found
) -> None:
    """A linear map of all states but that of CLS, normalised (Chen et al. 2024)."""
    size = len(read_tensors(folder / COLBERT_HEAD).get("weight", torch.zeros(1)))
    dense = Dense(hidden_size, size, activation="Identity")
    load_head(dense.linear, folder / COLBERT_HEAD)
    found.projections = [dense, Normalize()]
    found.skipped, found.skipped_on = (str(tokenizer.cls_token),), ("query", "document")


# ---- shared -------------------------------------------------------------------------------------


def _register(markers: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make markers special tokens, where the tokenizer has them but splits them in a text."""
    words, new = tokenizer.get_vocab(), []
    for marker in markers:
        if not marker.split():
            continue
        # PyLate's own "[Q] " is one token, its space included.
        form = next((form for form in (marker, marker.split()[0]) if form in words), None)
        if form is not None and tokenizer.tokenize(form) != [form]:
            new.append(AddedToken(form, normalized=False, special=True))
    if new:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": new}, replace_extra_special_tokens=False
        )


def _expansion(
    settings: Mapping[str, Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    asked: int | None,
    limit: int | None,
) -> Expansion | None:
    """The expansion of queries, with the mask token, or EOS where there is none."""
    if settings is None:
        return None
    _check_keys(settings, EXPANSION_KEYS, Path("query_expansion"))
    strategy, token = settings.get("strategy"), settings.get("token")
    if strategy not in ("fixed", "min"):
        raise ModelError(f"query_expansion: strategy {strategy!r} is not known. Known: fixed, min.")
    if token is not None:
        if token not in tokenizer.get_vocab():
            raise ModelError(f"query_expansion: token {token!r} is not in the vocabulary")
        ids = [tokenizer.get_vocab()[token]]
    else:
        ids = [i for i in (tokenizer.mask_token_id, tokenizer.eos_token_id) if i is not None]
    if not ids:
        raise ModelError("query_expansion: the tokenizer has neither a mask token nor EOS")
    stored = settings.get("length")
    if type(stored) is not int or stored < 1:
        raise ModelError(f"query_expansion: length is {stored!r}, expected 1 or more")
    # Of a floor, what is asked for is the limit above it.
    length = _at_most(limit, "query_length", asked if strategy == "fixed" else None, stored)
    assert length is not None
    return Expansion(ids[0], length, bool(settings.get("attend", False)), strategy == "fixed")


def _at_most(limit: int | None, name: str, asked: int | None, stored: Any) -> int | None:
    """The length that was asked for, else the stored one, at most the model's positions."""
    length = asked or stored
    length = None if length is None or length > NO_LIMIT else int(length)
    if limit is None or length is None or length <= limit:
        return length if length is not None or name != "max_seq_length" else limit
    if asked:
        raise InputError(f"{name} {asked} exceeds the model's {limit} positions")
    warnings.warn(
        f"{name} {length} exceeds the model's {limit} positions; using {limit}", stacklevel=5
    )
    return limit


def _ids(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the words that are one token; the others would stand for the unknown token."""
    vocabulary = tokenizer.get_vocab()
    return tuple(sorted({vocabulary[word] for word in words if word in vocabulary}))


def _check_keys(config: Mapping[str, Any], names: Sequence[str], path: Path) -> None:
    for key in config:
        if key not in names:
            raise ModelError(f"{path}: key {key!r} is not known.{known(key, names)}")


# ---- writing ------------------------------------------------------------------------------------


def write_multi(parts: MultiParts, path: Path, *, card: str) -> None:
    """Write a folder; see MultiVectorEmbedder.save_pretrained. `card` is its README.md."""
    with atomic_folder(path, replaceable=model_marker(path), is_own=files_of_model(path)) as folder:
        write_transformer(
            EmbedderParts(backbone=parts.backbone, text_tokenizer=parts.text_tokenizer),
            folder,
        )
        modules = [("", "Transformer")]
        for step in parts.projections:
            modules.append(_write_projection(step, folder, len(modules)))
        modules.append(_write_mask(parts, folder, len(modules)))
        listed = [
            {"idx": i, "name": str(i), "path": place, "type": TYPES[kind]}
            for i, (place, kind) in enumerate(modules)
        ]
        write_json(folder / "modules.json", listed)
        _write_settings(parts, folder)
        (folder / "README.md").write_text(card, "utf-8")
        write_checksums(folder)


def _write_projection(step: nn.Module, folder: Path, place: int) -> tuple[str, str]:
    reads = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    if isinstance(step, Normalize):
        return write_module(step, "Normalize", reads, folder, place)
    if not isinstance(step, Dense):
        raise ModelError(f"{type(step).__name__} cannot be saved in a late-interaction model")
    config = {
        "in_features": step.in_features,
        "out_features": step.out_features,
        "bias": step.linear.bias is not None,
        "activation_function": f"{type(step.activation).__module__}.{step.activation_name}",
        **reads,
    }
    if step.use_residual:
        config["use_residual"] = True
    return write_module(step, "Dense", config, folder, place)


def _write_mask(parts: MultiParts, folder: Path, place: int) -> tuple[str, str]:
    late, tokenizer = parts.settings, parts.text_tokenizer.hf
    config = {
        "skiplist_words": tokenizer.convert_ids_to_tokens(list(late.skipped_ids)),
        "skiplist_tasks": list(late.skipped_on),
        "keep_only_token_ids": None,
    }
    inside_folder = folder / f"{place}_MultiVectorMask"
    inside_folder.mkdir()
    write_json(inside_folder / "config.json", config)
    return inside_folder.name, "MultiVectorMask"


def _write_settings(parts: MultiParts, folder: Path) -> None:
    late = parts.settings
    expansion = None
    if late.expansion is not None:
        expansion = {
            "strategy": "fixed" if late.expansion.fixed else "min",
            "attend": late.expansion.attend,
            "token": parts.text_tokenizer.hf.convert_ids_to_tokens(late.expansion.token_id),
            "length": late.expansion.length,
        }
    lengths = {
        "query_length": late.query_length,
        "document_length": late.document_length,
        "query_expansion": expansion,
    }
    path = folder / "sentence_bert_config.json"
    write_json(path, {**read_json(path), **lengths})
    settings = {
        "model_type": "MultiVectorEncoder",
        "__version__": {"polyvec": __version__, "pytorch": torch.__version__},
        "prompts": dict(parts.prompts.by_name),
        "default_prompt_name": parts.prompts.default_name,
        "similarity_fn_name": parts.similarity_fn_name,
    }
    write_json(folder / SETTINGS, settings)
    own = {
        "format": 1,
        "tokenizer_contract": parts.text_tokenizer.contract.as_dict(),
        "attention": str(parts.backbone.spec),
    }
    write_json(folder / POLYVEC_FILE, own)
