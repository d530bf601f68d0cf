"""The parts of an embedder, from a folder or hub id."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from polyvec.embed.assembly import EmbedderParts
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.prepending import TokenPrepending
from polyvec.embed.formats.adapters import find_adapters, load_adapters
from polyvec.embed.formats.declared import Declared
from polyvec.embed.formats.families import family_of, follow_family, warn_of_own_code
from polyvec.embed.formats.late import check_one_vector
from polyvec.embed.formats.modules import read_modules, read_weights
from polyvec.embed.formats.own_modules import (
    OwnChain,
    OwnTransformer,
    check_tokens,
    load_own_transformer,
)
from polyvec.embed.formats.refusals import check_embedder, no_model
from polyvec.embed.formats.schema import CALIBRATION_FILE, POLYVEC_FILE, read_json
from polyvec.embed.formats.settings import (
    check_requirements,
    excludes_instruction,
    read_transformer_settings,
)
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.sparse import limited, read_sparse_head, read_sparse_static
from polyvec.embed.formats.static import StaticTable, read_static
from polyvec.embed.formats.tokenizer import has_tokenizer, load_tokenizer
from polyvec.embed.formats.transformer import (
    best_device,
    check_device,
    check_dtype,
    chosen_dtype,
    load_config,
    load_transformer,
    transformer_kind,
)
from polyvec.embed.formats.words import read_bag_of_words, read_words
from polyvec.embed.inputs.contract import NO_LIMIT, check_count, keep_promises, read_contract
from polyvec.embed.inputs.prompts import ROLE_PROMPTS, PromptTable
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.parts import build_pooling, check_pooling, check_served, model_facts
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.steps import TokenSteps
from polyvec.embed.projection.quantization import Calibration
from polyvec.embed.variants import TextVariants
from polyvec.errors import (
    InputError,
    ModelError,
    TokenizerError,
    UndeclaredPoolingWarning,
    UntrainedAttentionWarning,
)

WHERE = "from_pretrained"  # in errors about options


def read_parts(
    name_or_path: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    max_seq_length: int | None = None,
    pooling: str | Sequence[str] | None = None,
    output: str | None = None,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    similarity_fn_name: str | None = None,
    truncate_dim: int | None = None,
    attention: str | None = None,
    layout: str = "auto",
    revision: str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    base_model: str | Path | None = None,
    merge_adapters: bool = False,
) -> EmbedderParts:
    """The parts of an embedder, read from a folder or hub id; see Embedder.from_pretrained."""
    for name, count in (("max_seq_length", max_seq_length), ("truncate_dim", truncate_dim)):
        if count is not None:
            check_count(name, count)
    if device is not None:
        check_device(device)
    hub: dict[str, Any] = {
        "cache_folder": cache_folder,
        "local_files_only": local_files_only,
        "token": token,
    }
    folder = model_folder(
        name_or_path, revision=revision, trust_remote_code=trust_remote_code, **hub
    )
    check_embedder(folder, str(name_or_path))
    check_one_vector(folder)
    declared = read_modules(folder, trust_remote_code=trust_remote_code)
    own_save = (folder / POLYVEC_FILE).is_file()  # says itself whether prompts are pooled
    if not own_save and declared.transformer and excludes_instruction(name_or_path, folder):
        declared.pool_prompt = False
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "max_seq_length": max_seq_length,
        "pooling": pooling,
        "output": output,
        "prompts": prompts,
        "default_prompt_name": default_prompt_name,
        "similarity_fn_name": similarity_fn_name,
        "truncate_dim": truncate_dim,
        "attention": attention,
        "layout": layout,
        "trust_remote_code": trust_remote_code,
        "base_model": base_model,
        "merge_adapters": merge_adapters,
        "hub": hub,
    }
    main = _read_route(folder, declared, **options)
    if not declared.routes:
        return main
    read = [(declared, main)]
    for route in declared.routes.values():
        if all(route is not other for other, _ in read):
            read.append((route, _route_beside(read, folder, route, options)))
    routes = {
        task: next(parts for other, parts in read if other is route)
        for task, route in declared.routes.items()
    }
    return dataclasses.replace(main, routes=routes, default_route=declared.default_route)


def _route_beside(
    read: list[tuple[Declared, EmbedderParts]],
    folder: Path,
    route: Declared,
    options: Mapping[str, Any],
) -> EmbedderParts:
    """The parts of a route, which shares the input of one that is read already, if it can."""
    for other, parts in read:
        if other.input == route.input and _needs(other, {}) == _needs(route, {}):
            if options["pooling"] is not None:
                facts = model_facts(parts.backbone.model.config, parts.text_tokenizer.hf)
                route.pool_by(build_pooling(options["pooling"], {}, facts, where=WHERE))
            if isinstance(route.pooling, TokenSteps):
                vocab_size = parts.text_tokenizer.contract.vocab_size
                route.pooling.fit_to(parts.backbone.hidden_size, vocab_size)
            return dataclasses.replace(
                parts,
                pooling=route.pooling or parts.pooling,
                pool_prompt=route.pool_prompt or route.is_table,
                layers=route.pooled_layers,
                projections=tuple(route.projections),
            )
    return _read_route(folder, route, **options)


def _read_route(
    folder: Path,
    declared: Declared,
    *,
    device: str | None,
    dtype: str | None,
    max_seq_length: int | None,
    pooling: str | Sequence[str] | None,
    output: str | None,
    prompts: Mapping[str, str] | None,
    default_prompt_name: str | None,
    similarity_fn_name: str | None,
    truncate_dim: int | None,
    attention: str | None,
    layout: str,
    trust_remote_code: bool,
    base_model: str | Path | None,
    merge_adapters: bool,
    hub: Mapping[str, Any],
) -> EmbedderParts:
    """The parts of one chain of modules."""
    root = declared.transformer or declared.sparse_static or folder
    table = declared.is_table or declared.sparse_static is not None
    adapted = find_adapters(root, base_model, **hub)
    body = adapted.body if adapted else root
    if not (body / "config.json").is_file() and not table:
        raise ModelError(no_model(root))
    stored = read_json(folder / "config_sentence_transformers.json", {})
    check_requirements(stored, folder / "config_sentence_transformers.json")
    settings = read_transformer_settings(root)
    dtype = chosen_dtype(
        dtype, None if table else settings.dtype, declared.input if table else body
    )
    declared_length = settings.max_length
    own = read_json((declared.input if declared.routed else folder) / POLYVEC_FILE, {})
    makers = (*(adapted.folders if adapted else ()), body)
    family = None if own or table else family_of(*makers)
    if family is None and not trust_remote_code and not table:
        warn_of_own_code(makers[0])
    check_output(output, folder, declared)
    has_both = output == "sparse" and not declared.is_sparse  # its own output is dense
    # Before anything is loaded: names, and settings that the pooling requires.
    if pooling is not None:
        if isinstance(declared.pooling, OwnChain):
            raise InputError(f"{folder}: pooling= does not replace modules of the model's own code")
        check_pooling(pooling, {}, where=WHERE)
    kind = "body"
    model: Any
    tokenizer: Any
    template = Template.from_dict(own["template"]) if "template" in own else None
    table_tokenizer: TextTokenizer | None = None
    if declared.is_table:
        model, table_tokenizer = _read_table(declared, max_seq_length)
        tokenizer = table_tokenizer.hf
        model = model.to(check_dtype(dtype, device))
        if pooling is not None:
            if declared.bag_of_words is not None:
                raise InputError(f"{root}: pooling {pooling!r}: a bag of words counts, without one")
            facts = model_facts(model.config, tokenizer)
            declared.pool_by(build_pooling(pooling, {}, facts, where=WHERE))
    elif declared.sparse_static is not None:
        model, tokenizer, weights = read_sparse_static(root, folder)
        model = model.to(check_dtype(dtype, device))
        most = stored.get("max_active_dims")
        declared.pooling = limited(weights, most, folder / "config_sentence_transformers.json")
    else:
        tokenizer = load_tokenizer(
            root if has_tokenizer(root) else body, trust_remote_code, **settings.tokenizer
        )
        if family and family.add_eos:
            keep_promises(tokenizer, {"add_eos_token": True}, where=root)
        read_contract(tokenizer, None)  # reports a doubled EOS before any weight loads
        if pooling is not None:
            config = load_config(body, trust_remote_code, family, **settings.config)
            check_served(pooling, config, where=WHERE)
            facts = model_facts(config, tokenizer)
            declared.pool_by(build_pooling(pooling, {}, facts, where=WHERE))
        if has_both:
            config = load_config(body, trust_remote_code, **settings.config)
            declared.pooling = read_sparse_head(folder, config, tokenizer)
            declared.projections = []
        if family is not None:
            bare = not (folder / "modules.json").is_file()
            template = follow_family(family, declared, tokenizer, makers, bare=bare)
            if bare:
                stored = {"prompts": family.prompts, "default_prompt_name": family.default_prompt}
                declared_length = declared_length or family.max_length
        kind = transformer_kind(_needs(declared, own))
        if declared.own_transformer is not None:
            model = load_own_transformer(
                folder, declared.own_transformer, check_dtype(dtype, device)
            )
            declared_length = model.max_seq_length or declared_length
        else:
            model = load_transformer(
                body,
                check_dtype(dtype, device),
                trust_remote_code,
                kind=kind,
                family=family,
                config_options=settings.config,
            )
        if adapted:
            load_adapters(model, adapted, merge=merge_adapters)
    model = model.to(device or best_device())
    backbone = Backbone(
        model.base_model if kind == "lm" else model,
        tokenizer.pad_token_id or 0,  # masks come from lengths, so any id will do
        attention=_attention(folder, model, own, attention),
        layout=layout,
        lm=model if kind == "lm" else None,
        prepending=TokenPrepending(**own["prepending"]) if "prepending" in own else None,
    )
    if isinstance(declared.pooling, TokenSteps):
        declared.pooling.fit_to(backbone.hidden_size, len(tokenizer))
    if isinstance(declared.pooling, OwnChain):
        declared.pooling.fit_to(backbone.hidden_size)
    text_tokenizer = table_tokenizer or TextTokenizer(
        tokenizer,
        max_length=_max_length(root, declared_length, tokenizer, backbone, max_seq_length),
        lower_case=settings.lower_case,
    )
    if isinstance(model, OwnTransformer):
        check_tokens(model, text_tokenizer, folder)
    text_tokenizer.check_rows(backbone.num_rows)
    _check_contract(folder, own, text_tokenizer)
    variants = own.get("variants")
    return EmbedderParts(
        backbone=backbone,
        text_tokenizer=text_tokenizer,
        pooling=declared.pooling or _default_pooling(folder, model.config),
        # sentence-transformers knows a prompt's length only of a transformer's tokenizer.
        pool_prompt=own.get("pool_prompt", declared.pool_prompt) or declared.is_table,
        layers=declared.pooled_layers,
        projections=tuple(declared.projections),
        prompts=_prompt_table(
            # An empty mapping removes the stored prompts.
            prompts if prompts is not None else stored.get("prompts") or {},
            default_prompt_name or stored.get("default_prompt_name"),
            own_way=template is not None or family is not None,
        ),
        template=template,
        variants=None if variants is None else TextVariants(backbone, tokenizer, **variants),
        similarity_fn_name=similarity_fn_name or _similarity(stored, sparse_head=has_both),
        truncate_dim=truncate_dim or stored.get("truncate_dim"),
        calibration=_read_calibration(folder),
    )


def _prompt_table(
    prompts: Mapping[str, str], default_name: str | None, *, own_way: bool
) -> PromptTable:
    """The stored prompts. A side without a prompt does not get the default one.

    So sentence-transformers has it: a default "query" prompt is not put before documents. Not
    for models that only their makers' code or polyvec itself reads.
    """
    if default_name is not None and isinstance(prompts, Mapping) and not own_way:
        empty = [role for role, names in ROLE_PROMPTS.items() if not any(map(prompts.get, names))]
        prompts = {**dict.fromkeys(empty, ""), **prompts}
    return PromptTable(prompts, default_name)


def check_output(output: str | None, folder: Path, declared: Declared) -> None:
    """Raises InputError for an output that this folder's model does not have."""
    if output not in (None, "dense", "sparse"):
        hint = "; several vectors a text: MultiVectorEmbedder.from_pretrained"
        raise InputError(f"output {output!r} is not known. Known: dense, sparse{hint}")
    if output == "dense" and (declared.is_sparse or declared.sparse_static is not None):
        raise InputError(f"{folder}: output 'dense', but the model's vectors are sparse")
    if output == "sparse" and declared.is_table and not declared.is_sparse:
        raise InputError(f"{folder}: output 'sparse', but the model is a table of dense vectors")


def _similarity(stored: Mapping[str, Any], *, sparse_head: bool) -> str:
    """The folder's similarity; by default that of sentence-transformers for its kind of model."""
    if sparse_head:
        return "dot"  # the folder's own is of its dense vectors
    default = "dot" if stored.get("model_type") == "SparseEncoder" else "cosine"
    return str(stored.get("similarity_fn_name") or default)


def _read_table(declared: Declared, max_length: int | None) -> tuple[StaticTable, TextTokenizer]:
    """A table of vectors, and the tokenizer of its words."""
    if declared.static is not None:
        return read_static(declared.static, read_weights, max_length)
    if declared.words is not None:
        return read_words(declared.words, read_weights, max_length)
    assert declared.bag_of_words is not None
    if max_length is not None:
        raise InputError(
            f"{declared.bag_of_words}: max_seq_length does nothing: a bag of words has no limit"
        )
    return read_bag_of_words(declared.bag_of_words)


def _needs(declared: Declared, own: Mapping[str, Any]) -> frozenset[str]:
    module = declared.pooling
    needs = module.needs if isinstance(module, PoolingModule) else frozenset()
    return needs | {"lm_head"} if "variants" in own else needs


def _attention(
    folder: Path, model: PreTrainedModel, own: Mapping[str, Any], asked: str | None
) -> AttentionSpec:
    """The attention that was asked for, else the one that the folder declares.

    Warns of an untrained conversion: a causal checkpoint gives worse vectors with bidirectional
    attention until it is trained with it (BehnamGhader et al. 2024, arXiv:2404.05961).
    """
    blocked = tuple((int(a), int(b)) for a, b in own.get("blocked", ()))
    stored = AttentionSpec.parse(own.get("attention", "native"), blocked)
    if asked is None:
        return stored
    spec = AttentionSpec.parse(asked, blocked)
    causal = getattr(model.config.get_text_config(), "is_causal", True) is not False
    decoder = any(getattr(module, "is_causal", False) for module in model.modules())
    if decoder and causal and spec not in (stored, AttentionSpec("causal"), AttentionSpec()):
        warnings.warn(
            f"{folder} was trained with causal attention; with {asked!r} attention expect worse "
            "vectors until it is trained with it",
            UntrainedAttentionWarning,
            stacklevel=4,
        )
    return spec


def _default_pooling(folder: Path, config: PretrainedConfig) -> str:
    """For bare checkpoints: "last" for causal models, else "mean", with a warning."""
    architectures = config.architectures or [""]
    causal = architectures[0].endswith("ForCausalLM") and getattr(config, "is_causal", True)
    name = "last" if causal else "mean"
    warnings.warn(
        f"{folder} does not declare a pooling (no modules.json); using {name!r}. "
        "Pass pooling= to choose",
        UndeclaredPoolingWarning,
        stacklevel=4,
    )
    return name


def _max_length(
    root: Path,
    stored: int | None,
    tokenizer: PreTrainedTokenizerBase,
    backbone: Backbone,
    asked: int | None,
) -> int | None:
    """The declared length, at most the size of the position table."""
    declared = asked or stored or tokenizer.model_max_length
    # transformers writes 1e30 for "no limit".
    no_limit = declared is None or (asked is None and declared > NO_LIMIT)
    declared = None if no_limit else int(declared)
    limit = backbone.max_positions
    if declared is None or limit is None or declared <= limit:
        return declared or limit
    if asked:
        raise InputError(f"max_seq_length {asked} exceeds the model's {limit} positions")
    warnings.warn(
        f"{root}: max_seq_length {declared} exceeds the model's {limit} positions; using {limit}",
        stacklevel=4,
    )
    return limit


def _read_calibration(folder: Path) -> Calibration | None:
    path = folder / CALIBRATION_FILE
    own = read_json(folder / POLYVEC_FILE, {})
    if not path.is_file():
        return None
    return Calibration(load_file(path)["ranges"].numpy(), own.get("calibration_texts", 0))


def _check_contract(folder: Path, own: Mapping[str, Any], text_tokenizer: TextTokenizer) -> None:
    """Raises TokenizerError if the tokenizer has changed since the save (SILENT row 7)."""
    stored, now = own.get("tokenizer_contract", {}), text_tokenizer.contract.as_dict()
    for key in ("prefix", "suffix", "pad_id", "vocab_size"):
        if key in stored and stored[key] != now[key]:
            raise TokenizerError(
                f"{folder}: the tokenizer had {key} {stored[key]} when the model was saved, "
                f"now it has {now[key]}"
            )
