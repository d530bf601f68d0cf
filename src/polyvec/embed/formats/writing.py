"""The parts of an embedder, written to a folder or uploaded to the hub."""

import copy
import dataclasses
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from polyvec import __version__
from polyvec.embed.assembly import EmbedderParts
from polyvec.embed.backbone.bottleneck import bottleneck_state, write_bottlenecks
from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.formats import sparse
from polyvec.embed.formats.adapters import is_adapted, write_adapted
from polyvec.embed.formats.checksums import write_checksums
from polyvec.embed.formats.own_modules import OwnTransformer
from polyvec.embed.formats.precision import STORED, as_stored
from polyvec.embed.formats.replacing import files_of_model, model_marker
from polyvec.embed.formats.schema import (
    CALIBRATION_FILE,
    OWN_WAY,
    POLYVEC_FILE,
    POOLING_FLAGS,
    POOLING_FUNCTIONS,
    module_type,
    read_json,
    write_json,
)
from polyvec.embed.formats.sparse import max_active_dims
from polyvec.embed.formats.static import StaticTable, write_static
from polyvec.embed.formats.tokenizer import write_tokenizer
from polyvec.embed.formats.words import CONFIG as WORDS_CONFIG
from polyvec.embed.formats.words import bag_of_words_config, write_words
from polyvec.embed.inputs.prompts import ROLE_PROMPTS
from polyvec.embed.inputs.tables import TableTokenizer
from polyvec.embed.inputs.words import WordTokenizer
from polyvec.embed.part import Part
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.embed.pooling.lexical import Lexical
from polyvec.embed.pooling.modules import POOLING_MODULES, WeightedLayers
from polyvec.embed.pooling.steps import CNN, LSTM, TokenSteps, WordCounts, WordWeights
from polyvec.embed.pooling.token_weights import TokenWeights
from polyvec.embed.projection.dense import Dense, LayerNorm, Normalize
from polyvec.embed.projection.modules import PROJECTIONS
from polyvec.embed.projection.trained import SparseAutoencoder
from polyvec.errors import ModelError
from polyvec.registry import Registry
from polyvec.storage.files import atomic_folder

OF_TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}


def write_parts(parts: EmbedderParts, path: Path, *, card: str) -> None:
    """Write a model folder; see Embedder.save_pretrained. `card` is the text of its README.md."""
    with atomic_folder(path, replaceable=model_marker(path), is_own=files_of_model(path)) as folder:
        if parts.routes:
            modules = _write_router(parts, folder)
        else:
            modules = _write_modules(parts, folder, path)
        if any(_reads_its_own_way(each) for each in (parts, *parts.routes.values())):
            modules.append(("", OWN_WAY))
        types = [
            {"idx": i, "name": str(i), "path": place, "type": module_type(kind)}
            for i, (place, kind) in enumerate(modules)
        ]
        write_json(folder / "modules.json", types)
        _write_settings(parts, folder)
        (folder / "README.md").write_text(card, "utf-8")
        write_checksums(folder)


def _write_modules(
    parts: EmbedderParts, folder: Path, target: Path | None = None, *, with_model: bool = True
) -> list[tuple[str, str]]:
    """The place and kind of each module of a chain; the first only `with_model`."""
    modules = [_write_model(parts, folder, target)] if with_model else []
    pooling = parts.pooling
    layers = pooling.layers if isinstance(pooling, TokenSteps) else parts.layers
    if layers is not None:
        modules.append(_write_weighted_layers(layers, parts, folder, 1))
    for step in pooling.steps if isinstance(pooling, TokenSteps) else ():
        modules.append(_write_step(step, folder, len(modules) + 1 - with_model))
    table = isinstance(parts.text_tokenizer, TableTokenizer)
    pooled_by_itself = table or isinstance(pooling, WordCounts) or _is_weights(parts)
    if not pooled_by_itself:
        modules.append(_write_pooling(parts, folder, len(modules) + 1 - with_model))
    for step in parts.projections:
        modules.append(_write_projection(step, folder, len(modules) + 1 - with_model))
    return modules


def _write_router(parts: EmbedderParts, folder: Path) -> list[tuple[str, str]]:
    """A Router whose routes are the tasks, each in a folder of its own.

    A backbone that routes share is written once.
    """
    routes = dict(parts.routes)
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    written: dict[int, list[str]] = {}
    inputs: dict[int, str] = {}
    for number, (task, route) in enumerate(routes.items()):
        if id(route) not in written:
            place = f"{number}_{re.sub(r'[^A-Za-z0-9-]', '_', task)}"
            (folder / place).mkdir()
            source = inputs.get(id(route.backbone.model))
            modules = _write_modules(route, folder / place, with_model=source is None)
            ids = [f"{place}/{inside}" if inside else place for inside, _ in modules]
            types |= {name: module_type(k) for name, (_, k) in zip(ids, modules, strict=True)}
            written[id(route)] = ids if source is None else [source, *ids]
            if source is None:
                inputs[id(route.backbone.model)] = ids[0]
                write_json(folder / place / POLYVEC_FILE, _own_settings(route))
        structure[task] = written[id(route)]
    parameters = {"default_route": parts.default_route, "allow_empty_key": False}
    config = {"types": types, "structure": structure, "parameters": parameters}
    write_json(folder / "router_config.json", config)
    return [("", "Router")]


def _reads_its_own_way(parts: EmbedderParts) -> bool:
    """Whether something that sentence-transformers does not support decides the vectors.

    The folder then lists a module that does not exist, so that sentence-transformers raises
    an error instead of giving other vectors.
    """
    spec = parts.backbone.spec
    plain = spec.kind in ("native", "causal", "bidirectional") and not spec.blocked
    if spec.kind == "causal":  # an encoder's config has no key that makes it causal
        modules = parts.backbone.model.modules()
        plain = plain and any(getattr(module, "is_causal", False) for module in modules)
    # Of an adapter alone, sentence-transformers reads its base's config.json.
    base = parts.backbone.model.config if is_adapted(parts.backbone.model) else None
    causal = getattr(base and base.get_text_config(), "is_causal", True) is not False
    plain = plain and (base is None or spec.kind != "bidirectional" or not causal)
    tokenizer = parts.text_tokenizer
    if isinstance(tokenizer, TableTokenizer) and tokenizer.as_model2vec:
        # sentence-transformers keeps unknown words, and reads texts to their end.
        plain = plain and tokenizer.unknown_id is None and tokenizer.max_length is None
    # Of a whole encoder-decoder, sentence-transformers pools the decoder's states (BART), or draws
    # the encoder's weights at random, because it looks for them under other names (Marian).
    plain = plain and not getattr(parts.backbone.model.config, "is_encoder_decoder", False)
    own = parts.template, parts.variants, parts.backbone.prepending
    return not plain or any(own) or bool(bottleneck_state(parts.backbone.model))


def _write_model(parts: EmbedderParts, folder: Path, target: Path | None) -> tuple[str, str]:
    """The backbone and its tokenizer."""
    model = parts.backbone.model
    if not isinstance(model, StaticTable):
        write_transformer(parts, folder, target)
        return "", "MLMTransformer" if _is_splade(parts) else "Transformer"
    tokenizer = parts.text_tokenizer
    if _is_weights(parts):
        sparse.write_static_weights(model, tokenizer.hf, tokenizer.max_length, folder)
        return "", "SparseStaticEmbedding"
    if isinstance(tokenizer, WordTokenizer):
        return _write_words(parts, model, tokenizer, folder)
    assert isinstance(tokenizer, TableTokenizer)
    if parts.pooling not in ("mean", ("mean",)):
        raise ModelError("a static table can only be saved with pooling 'mean'")
    normalize = any(isinstance(step, Normalize) for step in parts.projections)
    write_static(model, tokenizer, folder, normalize=normalize)
    return "", "StaticEmbedding"


def _write_words(
    parts: EmbedderParts, model: StaticTable, tokenizer: WordTokenizer, folder: Path
) -> tuple[str, str]:
    if isinstance(parts.pooling, WordCounts):
        config = bag_of_words_config(model, tokenizer, parts.pooling.cumulative)
        (folder / "0_BoW").mkdir()
        write_json(folder / "0_BoW" / "config.json", config)
        return "0_BoW", "BoW"
    config, weights = write_words(model, tokenizer, folder)
    write_json(folder / WORDS_CONFIG, config)
    save_file(weights, folder / "model.safetensors")
    return "", "WordEmbeddings"


def write_transformer(parts: EmbedderParts, folder: Path, target: Path | None = None) -> None:
    """The model's weights and config, its tokenizer, and the length that is read.

    `target` is the folder that will be replaced, see `write_adapted`.
    """
    backbone = parts.backbone
    model = whole = backbone.model if backbone.lm is None else backbone.lm
    if is_adapted(backbone.model):  # trained beside a head that it leaves as it is
        model = backbone.model
    if isinstance(model, OwnTransformer):
        raise ModelError(
            f"{type(model.module).__name__}, the model's own code in place of a transformer, is "
            "not saved; save with sentence-transformers"
        )
    parts.text_tokenizer.check_rows(backbone.num_rows)
    stored: dict[str, Any] | None = None
    with quiet_transformers():
        alone = is_adapted(model) and not write_adapted(model, folder, target, whole)
        if not is_adapted(model):
            own = bottleneck_state(model)
            plain = {key: each for key, each in model.state_dict().items() if key not in own}
            stored = as_stored(model, plain)
            model.save_pretrained(folder, state_dict=stored or (plain if own else None))
            if own:
                write_bottlenecks(backbone.model, folder)
    # A copy: other threads may be running the model on its own config.
    config = copy.deepcopy(whole.config)
    if parts.layers is not None or "all_layers" in getattr(parts.pooling, "needs", ()):
        # sentence-transformers passes all layers on only if the config asks for them.
        config.output_hidden_states = True
    causal = {"bidirectional": False, "causal": True}.get(backbone.spec.kind)
    if stored is not None:
        config.dtype = getattr(model, STORED)
    if causal is not None:
        config.get_text_config().is_causal = causal  # the key that vLLM reads, and we do
    if not alone:  # else sentence-transformers would look for the base's weights here
        config.save_pretrained(folder)
    tokenizer_args = write_tokenizer(parts.text_tokenizer.hf, folder)
    length = parts.text_tokenizer.max_length
    settings: dict[str, Any] = {"max_seq_length": length}
    settings["do_lower_case"] = parts.text_tokenizer.lower_case
    if tokenizer_args:
        settings["tokenizer_args"] = tokenizer_args
    write_json(folder / "sentence_bert_config.json", settings)
    if length is not None:
        # sentence-transformers 6 reads the length from here.
        path = folder / "tokenizer_config.json"
        write_json(path, {**read_json(path), "model_max_length": length})


def _write_pooling(parts: EmbedderParts, folder: Path, place: int) -> tuple[str, str]:
    if _is_splade(parts):
        inside = folder / f"{place}_SpladePooling"
        inside.mkdir()
        sparse.write_splade(cast(Lexical, parts.pooling), inside)
        return inside.name, "SpladePooling"
    if isinstance(parts.pooling, PoolingModule) and not isinstance(parts.pooling, TokenSteps):
        return _write_own(parts.pooling, POOLING_MODULES, folder, place)
    pooling = parts.pooling.pooling if isinstance(parts.pooling, TokenSteps) else parts.pooling
    names = (pooling,) if isinstance(pooling, str) else tuple(pooling)
    if not set(names) <= set(POOLING_FLAGS):
        return _write_pooling_functions(names, parts, folder, place)
    modes = [POOLING_FLAGS[name][1] for name in names]
    config: dict[str, Any] = {"word_embedding_dimension": _token_size(parts)}
    config |= {flag: name in names for name, (flag, _) in POOLING_FLAGS.items()}
    config |= {"include_prompt": parts.pool_prompt}
    config |= {"pooling_mode": modes[0] if len(modes) == 1 else modes}
    inside = folder / f"{place}_Pooling"
    inside.mkdir()
    write_json(inside / "config.json", config)
    return inside.name, "Pooling"


def _is_splade(parts: EmbedderParts) -> bool:
    """Whether the pooling is written as SpladePooling, whose limit is that of the last vectors."""
    plain = sparse.is_splade(parts.pooling, parts.backbone, parts.pool_prompt)
    return plain and not (parts.projections and max_active_dims(parts.pooling, ()))


def _is_sparse_encoder(parts: EmbedderParts) -> bool:
    """Whether the folder is one of sentence-transformers' SparseEncoder."""
    coded = any(isinstance(step, SparseAutoencoder) for step in parts.projections)
    return _is_weights(parts) or coded or _is_splade(parts)


def _is_weights(parts: EmbedderParts) -> bool:
    """Whether it is a SparseStaticEmbedding: one weight a token."""
    return isinstance(parts.pooling, TokenWeights) and not parts.pooling.linear


def _token_size(parts: EmbedderParts) -> int:
    steps = parts.pooling if isinstance(parts.pooling, TokenSteps) else None
    return (steps.token_size if steps else None) or parts.backbone.hidden_size


def _write_step(step: nn.Module, folder: Path, place: int) -> tuple[str, str]:
    """A module over tokens."""
    if isinstance(step, Dense):
        config = _dense_config(step) | OF_TOKENS
        return write_module(step, "Dense", config, folder, place)
    if isinstance(step, Normalize):
        return write_module(step, "Normalize", OF_TOKENS, folder, place)
    assert isinstance(step, CNN | LSTM | WordWeights)
    name = type(step).__name__
    file = {"CNN": "cnn_config.json", "LSTM": "lstm_config.json"}.get(name, "config.json")
    return write_module(step, name, step.settings(), folder, place, file=file)


def _write_weighted_layers(
    layers: WeightedLayers, parts: EmbedderParts, folder: Path, place: int
) -> tuple[str, str]:
    config = {
        "word_embedding_dimension": parts.backbone.hidden_size,
        "layer_start": layers.layer_start,
        "num_hidden_layers": layers.num_hidden_layers,
    }
    return write_module(layers, "WeightedLayerPooling", config, folder, place)


def _write_projection(step: nn.Module, folder: Path, place: int) -> tuple[str, str]:
    if isinstance(step, Dense):
        return write_module(step, "Dense", _dense_config(step), folder, place)
    if isinstance(step, LayerNorm):
        return write_module(step, "LayerNorm", {"dimension": step.dimension}, folder, place)
    if isinstance(step, Normalize):
        (folder / f"{place}_Normalize").mkdir()
        return f"{place}_Normalize", "Normalize"
    if isinstance(step, SparseAutoencoder):
        inside = folder / f"{place}_SparseAutoEncoder"
        inside.mkdir()
        sparse.write_autoencoder(step, inside)
        return inside.name, "SparseAutoEncoder"
    return _write_own(step, PROJECTIONS, folder, place)


def _dense_config(step: Dense) -> dict[str, Any]:
    config = {
        "in_features": step.in_features,
        "out_features": step.out_features,
        "bias": step.linear.bias is not None,
        "activation_function": f"{type(step.activation).__module__}.{step.activation_name}",
    }
    return config | ({"use_residual": True} if step.use_residual else {})


def _write_pooling_functions(
    names: tuple[str, ...], parts: EmbedderParts, folder: Path, place: int
) -> tuple[str, str]:
    """Pooling functions that sentence-transformers does not have, by name."""
    names = tuple(POOLINGS.name_of(POOLINGS.find(name)) for name in names)
    inside = folder / f"{place}_PoolingFunctions"
    inside.mkdir()
    config = {"pooling": list(names), "include_prompt": parts.pool_prompt}
    write_json(inside / "config.json", config)
    return inside.name, POOLING_FUNCTIONS


def _write_own(part: nn.Module, table: Registry[Any], folder: Path, place: int) -> tuple[str, str]:
    """A part with its settings and weights, under the name by which it is found again."""
    if not isinstance(part, Part):
        raise ModelError(
            f"{type(part).__name__} has no settings to save; inherit from PoolingModule, "
            "Projector or Fitted"
        )
    part.check_saving()
    name = table.name_of(type(part))
    if name in POOLING_MODULES and name in PROJECTIONS:  # modules.json has one name for both
        raise ModelError(
            f"{name!r} names a pooling and a projection: register it under another name"
        )
    kind = name if ":" in name else f"polyvec.{name}"
    return write_module(part, kind, part.settings(), folder, place)


def write_module(
    module: nn.Module,
    kind: str,
    config: Mapping[str, Any],
    folder: Path,
    place: int,
    *,
    file: str = "config.json",
) -> tuple[str, str]:
    inside = folder / f"{place}_{re.split('[.:]', kind)[-1]}"
    inside.mkdir()
    write_json(inside / file, config)
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    if weights:
        save_file(weights, inside / "model.safetensors")
    return inside.name, kind


def _prompts(parts: EmbedderParts) -> dict[str, str]:
    """The prompts to store: a default that queries or documents get is written by their name, too.

    sentence-transformers does not give them the default prompt. With a template, only polyvec
    reads the folder.
    """
    if parts.prompts is None:
        return {}
    found = dict(parts.prompts.by_name)
    default = parts.prompts.default_name
    for role, names in ROLE_PROMPTS.items():
        used = parts.prompts.resolve(role=role)
        if parts.template is None and used.name == default not in (None, *names):
            found[role] = used.text
    return found


def _write_settings(parts: EmbedderParts, folder: Path) -> None:
    sparse = _is_sparse_encoder(parts)
    settings: dict[str, Any] = {
        "model_type": "SparseEncoder" if sparse else "SentenceTransformer",
        "__version__": {"polyvec": __version__, "pytorch": torch.__version__},
        "prompts": _prompts(parts),
        "default_prompt_name": parts.prompts.default_name if parts.prompts else None,
        "similarity_fn_name": parts.similarity_fn_name,
    }
    most = max_active_dims(parts.pooling, tuple(parts.projections)) if sparse else None
    if most is not None:
        settings["max_active_dims"] = most
    if parts.truncate_dim is not None:
        settings["truncate_dim"] = parts.truncate_dim
    write_json(folder / "config_sentence_transformers.json", settings)
    own = {"format": 1} if parts.routes else _own_settings(parts)  # routes have their own
    if parts.calibration is not None:
        own["calibration_texts"] = parts.calibration.num_texts
        ranges = torch.from_numpy(parts.calibration.ranges_2E)
        save_file({"ranges": ranges.contiguous()}, folder / CALIBRATION_FILE)
    write_json(folder / POLYVEC_FILE, own)


def _own_settings(parts: EmbedderParts) -> dict[str, Any]:
    own: dict[str, Any] = {
        "format": 1,
        "tokenizer_contract": parts.text_tokenizer.contract.as_dict(),
        "attention": str(parts.backbone.spec),
        "blocked": [list(pair) for pair in parts.backbone.spec.blocked],
    }
    module = isinstance(parts.pooling, PoolingModule) and not isinstance(parts.pooling, TokenSteps)
    if module and not parts.pool_prompt:
        own["pool_prompt"] = False
    if parts.template is not None:
        own["template"] = parts.template.as_dict()
    if parts.backbone.prepending is not None:
        own["prepending"] = dataclasses.asdict(parts.backbone.prepending)
    if parts.text_tokenizer.parses_texts:
        own["special_tokens"] = "parse"
    if parts.variants is not None:
        own["variants"] = parts.variants.settings()
    return own


def upload_parts(
    parts: EmbedderParts, repo_id: str, *, card: str, private: bool = False, **options: Any
) -> str:
    """Save to a temporary folder and upload it; see Embedder.push_to_hub."""
    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None))
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        write_parts(parts, Path(folder) / "model", card=card)
        return str(api.upload_folder(repo_id=repo, folder_path=Path(folder) / "model", **options))
