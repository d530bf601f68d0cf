"""One chain of modules: what its folder declares, loaded as the parts of an embedder."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from polyvec.embed.assembly import EmbedderParts
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.bottleneck import read_bottlenecks
from polyvec.embed.backbone.prepending import TokenPrepending
from polyvec.embed.formats.adapters import AdaptedModel, find_adapters, load_adapters
from polyvec.embed.formats.checksums import own_settings, replaced
from polyvec.embed.formats.declared import Declared
from polyvec.embed.formats.devices import best_device
from polyvec.embed.formats.families import Family, family_of, follow_family, warn_of_own_code
from polyvec.embed.formats.gguf.finding import is_gguf
from polyvec.embed.formats.modules import read_weights
from polyvec.embed.formats.own_modules import (
    OwnChain,
    OwnTransformer,
    check_tokens,
    load_own_transformer,
)
from polyvec.embed.formats.refusals import no_model
from polyvec.embed.formats.schema import CALIBRATION_FILE, POLYVEC_FILE, read_json
from polyvec.embed.formats.settings import (
    TransformerSettings,
    check_requirements,
    read_transformer_settings,
)
from polyvec.embed.formats.sparse import limited, read_sparse_head, read_sparse_static
from polyvec.embed.formats.static import read_static
from polyvec.embed.formats.tokenizer import has_tokenizer, load_tokenizer
from polyvec.embed.formats.transformer import (
    check_dtype,
    chosen_dtype,
    load_config,
    load_transformer,
    transformer_kind,
)
from polyvec.embed.formats.unused import tell_unused_rows
from polyvec.embed.formats.weights import check_whole
from polyvec.embed.formats.words import read_bag_of_words, read_words
from polyvec.embed.inputs.contract import NO_LIMIT, keep_promises, read_contract
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.parts import build_pooling, check_pooling, check_served, model_facts
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.steps import TokenSteps
from polyvec.embed.projection.quantization import Calibration
from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.embed.variants import TextVariants
from polyvec.errors import (
    InputError,
    ModelError,
    PolyvecError,
    TokenizerError,
    UndeclaredPoolingWarning,
    UntrainedAttentionWarning,
    known,
)

Made = TypeVar("Made")
WHERE = "from_pretrained"  # in errors about options


@dataclass(frozen=True, slots=True)
class Options:
    """What a call of from_pretrained asked for; None is what the folder declares."""

    device: str | None
    dtype: str | None
    max_seq_length: int | None
    pooling: str | Sequence[str] | None
    output: str | None
    prompts: Mapping[str, str] | None
    default_prompt_name: str | None
    similarity_fn_name: str | None
    truncate_dim: int | None
    attention: str | None
    layout: str
    trust_remote_code: bool
    base_model: str | Path | None
    merge_adapters: bool
    hub: Mapping[str, Any]


@dataclass(slots=True)
class _Source:
    """The files of a chain, read before any weight.

    `root` is the first module's folder, `body` the one with the transformer's own weights, which
    an adapter's base model is; `own` is what polyvec saved. A maker's family may change the
    last three.
    """

    folder: Path
    root: Path
    body: Path
    adapted: AdaptedModel | None
    settings: TransformerSettings
    own: Mapping[str, Any]
    own_path: Path
    makers: tuple[Path, ...]
    family: Family | None
    dtype: torch.dtype
    sparse_head: bool  # asked for beside the folder's own, dense output
    stored: Mapping[str, Any]
    max_length: int | None
    template: Template | None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The first module: a model, whose class is of this kind, and its tokenizer."""

    model: Any
    tokenizer: Any
    kind: str = "body"
    words: TextTokenizer | None = None  # of a table, which splits texts in its own way


def read_route(folder: Path, declared: Declared, options: Options) -> EmbedderParts:
    """The parts of one chain of modules."""
    source = _read_source(folder, declared, options)
    if declared.is_table:
        loaded = _load_table(source, declared, options)
    elif declared.sparse_static is not None:
        loaded = _load_sparse_static(source, declared)
    else:
        loaded = _load_transformer(source, declared, options)
    model, tokenizer = loaded.model.to(options.device or best_device()), loaded.tokenizer
    lm = model if loaded.kind == "lm" else None
    own = source.own
    backbone = Backbone(
        model.base_model if lm is not None else model,
        tokenizer.pad_token_id or 0,  # masks come from lengths, so any id will do
        attention=_attention(source, model, options.attention),
        layout=options.layout,
        lm=lm,
        prepending=own_part(own, "prepending", lambda it: TokenPrepending(**it), source.own_path),
    )
    if isinstance(declared.pooling, TokenSteps):
        declared.pooling.fit_to(backbone.hidden_size, len(tokenizer))
    if isinstance(declared.pooling, OwnChain):
        declared.pooling.fit_to(backbone.hidden_size)
    text_tokenizer = loaded.words or TextTokenizer(
        tokenizer,
        max_length=_max_length(source, tokenizer, backbone, options.max_seq_length),
        lower_case=source.settings.lower_case,
    )
    if isinstance(model, OwnTransformer):
        check_tokens(model, text_tokenizer, folder)
    text_tokenizer.check_rows(backbone.num_rows)
    if not declared.is_table and backbone.num_rows is not None:
        tell_unused_rows(source.root, text_tokenizer.contract.vocab_size, backbone.num_rows)
    _check_contract(source.own_path, own, text_tokenizer)
    text_tokenizer.parses_texts = own.get("special_tokens") == "parse"
    make_variants = lambda it: TextVariants(backbone, tokenizer, **it)  # noqa: E731
    return EmbedderParts(
        backbone=backbone,
        text_tokenizer=text_tokenizer,
        pooling=declared.pooling or _default_pooling(folder, model.config),
        # sentence-transformers knows a prompt's length only of a transformer's tokenizer.
        pool_prompt=own.get("pool_prompt", declared.pool_prompt) or declared.is_table,
        layers=declared.pooled_layers,
        projections=tuple(declared.projections),
        prompts=_prompt_table(source, options),
        template=source.template,
        variants=own_part(own, "variants", make_variants, source.own_path),
        similarity_fn_name=options.similarity_fn_name or _similarity(source),
        truncate_dim=options.truncate_dim or source.stored.get("truncate_dim"),
        calibration=_read_calibration(folder),
    )


def _read_source(folder: Path, declared: Declared, options: Options) -> _Source:
    """What the files say; whatever can be refused without weights is refused here."""
    root = declared.transformer or declared.sparse_static or folder
    table = declared.is_table or declared.sparse_static is not None
    adapted = find_adapters(root, options.base_model, **options.hub)
    body = adapted.body if adapted else root
    if not (body / "config.json").is_file() and not table and not is_gguf(body):
        raise ModelError(no_model(root))
    stored = read_json(folder / "config_sentence_transformers.json", {})
    check_requirements(stored, folder / "config_sentence_transformers.json")
    settings = read_transformer_settings(root)
    dtype = chosen_dtype(
        options.dtype, None if table else settings.dtype, declared.input if table else body
    )
    own_path = (declared.input if declared.routed else folder) / POLYVEC_FILE
    own = own_settings(own_path.parent, folder)
    makers = (*(adapted.folders if adapted else ()), body)
    family = None if own or table else family_of(*makers)
    if family is None and not options.trust_remote_code and not table:
        warn_of_own_code(makers[0])
    check_output(options.output, folder, declared)
    if options.pooling is not None:
        if isinstance(declared.pooling, OwnChain):
            raise InputError(f"{folder}: pooling= does not replace modules of the model's own code")
        check_pooling(options.pooling, {}, where=WHERE)
    return _Source(
        folder,
        root,
        body,
        adapted,
        settings,
        own,
        own_path,
        makers,
        family,
        check_dtype(dtype, options.device),
        sparse_head=options.output == "sparse" and not declared.is_sparse,
        stored=stored,
        max_length=settings.max_length,
        template=own_part(own, "template", Template.from_dict, own_path),
    )


def _load_table(source: _Source, declared: Declared, options: Options) -> _Loaded:
    """A table of vectors, and the tokenizer of its words."""
    most, pooling = options.max_seq_length, options.pooling
    model: Any  # Any: the stubs of PreTrainedModel.to know no dtype
    words: TextTokenizer
    if declared.static is not None:
        model, words = read_static(declared.static, read_weights, most)
    elif declared.words is not None:
        model, words = read_words(declared.words, read_weights, most)
    else:
        assert declared.bag_of_words is not None
        if most is not None:
            raise InputError(
                f"{declared.bag_of_words}: max_seq_length does nothing: a bag of words has no limit"
            )
        model, words = read_bag_of_words(declared.bag_of_words)
    if pooling is not None:
        if declared.bag_of_words is not None:
            raise InputError(
                f"{source.root}: pooling {pooling!r}: a bag of words counts, without one"
            )
        facts = model_facts(model.config, words.hf)
        declared.pool_by(build_pooling(pooling, {}, facts, where=WHERE))
    return _Loaded(model.to(source.dtype), words.hf, words=words)


def _load_sparse_static(source: _Source, declared: Declared) -> _Loaded:
    """A table of one weight a token, whose vectors are sparse."""
    table, tokenizer, weights = read_sparse_static(source.root, source.folder)
    model: Any = table
    most = source.stored.get("max_active_dims")
    declared.pooling = limited(weights, most, source.folder / "config_sentence_transformers.json")
    return _Loaded(model.to(source.dtype), tokenizer)


def _load_transformer(source: _Source, declared: Declared, options: Options) -> _Loaded:
    """The transformer and its tokenizer, with its adapters, as its maker's family has them."""
    root, body, family = source.root, source.body, source.family
    trusted, settings = options.trust_remote_code, source.settings
    tokenizer = load_tokenizer(root if has_tokenizer(root) else body, trusted, **settings.tokenizer)
    if family and family.add_eos:
        keep_promises(tokenizer, {"add_eos_token": True}, where=root)
    read_contract(tokenizer, None)  # reports a doubled EOS before any weight loads
    if options.pooling is not None:
        config = load_config(body, trusted, family, **settings.config)
        check_served(options.pooling, config, where=WHERE)
        facts = model_facts(config, tokenizer)
        declared.pool_by(build_pooling(options.pooling, {}, facts, where=WHERE))
    if source.sparse_head:
        config = load_config(body, trusted, **settings.config)
        declared.pooling = read_sparse_head(source.folder, config, tokenizer)
        declared.projections = []
    if family is not None:
        bare = not (source.folder / "modules.json").is_file()
        source.template = follow_family(family, declared, tokenizer, source.makers, bare=bare)
        if bare:
            prompts = {"prompts": family.prompts, "default_prompt_name": family.default_prompt}
            source.stored = prompts
            source.max_length = source.max_length or family.max_length
    kind = transformer_kind(needs(declared, source.own))
    model: Any
    if declared.own_transformer is not None:
        model = load_own_transformer(source.folder, declared.own_transformer, source.dtype)
        source.max_length = model.max_seq_length or source.max_length
    else:
        model = load_transformer(
            body,
            source.dtype,
            trusted,
            kind=kind,
            family=family,
            config_options=settings.config,
        )
        read_bottlenecks(model.base_model if kind == "lm" else model, body)
    if source.adapted:
        load_adapters(model, source.adapted, merge=options.merge_adapters)
    return _Loaded(model, tokenizer, kind)


def check_output(output: str | None, folder: Path, declared: Declared) -> None:
    """Raises InputError for an output that this folder's model does not have."""
    if output not in (None, "dense", "sparse"):
        hint = "; several vectors a text: MultiVectorEmbedder.from_pretrained"
        raise InputError(f"output {output!r} is not known. Known: dense, sparse{hint}")
    if output == "dense" and (declared.is_sparse or declared.sparse_static is not None):
        raise InputError(f"{folder}: output 'dense', but the model's vectors are sparse")
    if output == "sparse" and declared.is_table and not declared.is_sparse:
        raise InputError(f"{folder}: output 'sparse', but the model is a table of dense vectors")


def _attention(source: _Source, model: PreTrainedModel, asked: str | None) -> AttentionSpec:
    """The attention that was asked for, else the one that the folder declares.

    Warns of an untrained conversion: a causal checkpoint gives worse vectors with bidirectional
    attention until it is trained with it (BehnamGhader et al. 2024, arXiv:2404.05961).
    """
    own = source.own
    blocked = tuple((int(a), int(b)) for a, b in own.get("blocked", ()))
    parse = lambda text: AttentionSpec.parse(text, blocked)  # noqa: E731
    stored = own_part(own, "attention", parse, source.own_path) or parse("native")
    if asked is None:
        return stored
    spec = AttentionSpec.parse(asked, blocked)
    causal = getattr(model.config.get_text_config(), "is_causal", True) is not False
    decoder = any(getattr(module, "is_causal", False) for module in model.modules())
    if decoder and causal and spec not in (stored, AttentionSpec("causal"), AttentionSpec()):
        warnings.warn(
            f"{source.folder} was trained with causal attention; with {asked!r} attention expect "
            "worse vectors until it is trained with it",
            UntrainedAttentionWarning,
            stacklevel=5,
        )
    return spec


def _default_pooling(folder: Path, config: PretrainedConfig) -> str:
    """For bare checkpoints: "last" for causal models, else "mean", with a warning."""
    architectures = config.architectures or [""]
    causal = architectures[0].endswith("ForCausalLM") and getattr(config, "is_causal", True)
    name = "last" if causal else "mean"
    where = "pooling_type" if is_gguf(folder) else "modules.json"
    warnings.warn(
        f"{folder} does not declare a pooling (no {where}); using {name!r}. "
        "Pass pooling= to choose",
        UndeclaredPoolingWarning,
        stacklevel=5,
    )
    return name


def _read_calibration(folder: Path) -> Calibration | None:
    path = folder / CALIBRATION_FILE
    own = own_settings(folder)
    if not path.is_file() or replaced(folder):
        return None
    check_whole(path)
    try:
        ranges_2E = load_file(path)["ranges"].numpy()
        if ranges_2E.ndim != 2 or len(ranges_2E) != 2 or ranges_2E.dtype != np.float32:
            raise ValueError(f"ranges are {ranges_2E.dtype} {ranges_2E.shape}")
        if not np.isfinite(ranges_2E).all() or (ranges_2E[0] > ranges_2E[1]).any():
            raise ValueError("a range is not finite, or ends before it starts")
    except (SafetensorError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"{path}: damaged ({reason}); calibrate and save again") from None
    return Calibration(ranges_2E, own.get("calibration_texts", 0))


def own_part(
    own: Mapping[str, Any], key: str, make: Callable[[Any], Made], path: Path
) -> Made | None:
    """A part made of what polyvec.json says under a key; None without it.

    Raises ModelError, naming file and key, for values that the part does not take.
    """
    if key not in own:
        return None
    try:
        return make(own[key])
    except (PolyvecError, TypeError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: {key}: {reason}") from None


def _check_contract(path: Path, own: Mapping[str, Any], text_tokenizer: TextTokenizer) -> None:
    """Raises TokenizerError if the tokenizer has changed since the save (SILENT row 7)."""
    stored, now = own.get("tokenizer_contract", {}), text_tokenizer.contract.as_dict()
    for key in ("prefix", "suffix", "pad_id", "vocab_size"):
        if key in stored and stored[key] != now[key]:
            raise TokenizerError(
                f"{path}: tokenizer_contract: the tokenizer had {key} {stored[key]} when the "
                f"model was saved, now it has {now[key]}"
            )


def _similarity(source: _Source) -> str:
    """The folder's similarity; by default that of sentence-transformers for its kind of model."""
    if source.sparse_head:
        return "dot"  # the folder's own is of its dense vectors
    default = "dot" if source.stored.get("model_type") == "SparseEncoder" else "cosine"
    name = str(source.stored.get("similarity_fn_name") or default)
    if name not in SIMILARITIES:
        raise ModelError(
            f"{source.folder}/config_sentence_transformers.json: similarity_fn_name {name!r} is "
            f"not known.{known(name, SIMILARITIES)}"
        )
    return name


def _prompt_table(source: _Source, options: Options) -> PromptTable:
    """The stored prompts, as sentence-transformers reads them if it reads the folder at all."""
    # An empty mapping removes the stored prompts.
    prompts = options.prompts if options.prompts is not None else source.stored.get("prompts") or {}
    default_name = options.default_prompt_name or source.stored.get("default_prompt_name")
    own_way = source.template is not None or source.family is not None
    make = PromptTable if own_way else PromptTable.of_folder
    if default_name is None or default_name in prompts or options.default_prompt_name:
        return make(prompts, default_name)
    if options.prompts is not None:
        return make(prompts, default_name)
    raise ModelError(
        f"{source.folder}/config_sentence_transformers.json: default_prompt_name "
        f"{default_name!r} is not among its prompts.{known(default_name, prompts)}"
    )


def _max_length(
    source: _Source, tokenizer: PreTrainedTokenizerBase, backbone: Backbone, asked: int | None
) -> int | None:
    """The declared length, at most the size of the position table."""
    declared = asked or source.max_length or tokenizer.model_max_length
    # transformers writes 1e30 for "no limit".
    no_limit = declared is None or (asked is None and declared > NO_LIMIT)
    declared = None if no_limit else int(declared)
    limit = backbone.max_positions
    if declared is None or limit is None or declared <= limit:
        return declared or limit
    if asked:
        raise InputError(f"max_seq_length {asked} exceeds the model's {limit} positions")
    warnings.warn(
        f"{source.root}: max_seq_length {declared} exceeds the model's {limit} positions; "
        f"using {limit}",
        stacklevel=5,
    )
    return limit


def needs(declared: Declared, own: Mapping[str, Any]) -> frozenset[str]:
    """Side outputs of the backbone that the declared pooling, or what polyvec saved, reads."""
    module = declared.pooling
    found = module.needs if isinstance(module, PoolingModule) else frozenset()
    return found | {"lm_head"} if "variants" in own else found
