"""Builds an embedder from the parts that a recipe names."""

from collections.abc import Mapping
from typing import Any

import torch

from polyvec.embed import parts
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.prepending import TokenPrepending
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.adapters import find_adapters, load_adapters
from polyvec.embed.formats.cards import read_card
from polyvec.embed.formats.declared import Declared
from polyvec.embed.formats.devices import best_device
from polyvec.embed.formats.families import NV_EMBED, family_of, read_latents
from polyvec.embed.formats.modules import read_modules
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.tokenizer import has_tokenizer, load_tokenizer
from polyvec.embed.formats.transformer import (
    check_num_layers,
    keep_layers,
    load_config,
    load_transformer,
    outline_transformer,
    transformer_kind,
)
from polyvec.embed.inputs.contract import NO_LIMIT
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.part import one_of
from polyvec.embed.pooling.attention import LatentAttention
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.projection.dense import Normalize
from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.embed.settings import EmbedderSettings, template_of
from polyvec.embed.variants import TextVariants
from polyvec.errors import SettingsError
from polyvec.registry import build, check_settings

PLACEHOLDER = "<PST>"
WHERE = "[embedder]"


def check(settings: EmbedderSettings) -> None:
    """Raises SettingsError for what is wrong whatever the backbone is."""
    AttentionSpec.parse(settings.attention)
    parts.check_pooling(settings.pooling, settings.pooling_settings, where=WHERE)
    parts.check_projections(settings.projections)
    one_of(f"{WHERE} similarity", settings.similarity, SIMILARITIES)
    if settings.truncation_side is not None:
        one_of(f"{WHERE} truncation_side", settings.truncation_side, ("left", "right"))
    template = template_of(settings)
    if template is not None and settings.pool_prompt is not None:
        raise SettingsError(f"{WHERE} pool_prompt does nothing with a template")
    if template is None and settings.prompts and settings.pool_prompt is None:
        raise SettingsError(f"{WHERE} has prompts and must set pool_prompt to true or false")
    if settings.pool_prompt is not None and not settings.prompts:
        raise SettingsError(f"{WHERE} pool_prompt does nothing without prompts")
    check_settings(TextVariants, settings.variants, where="[embedder.variants]")
    if settings.prepending:
        check_settings(TokenPrepending, settings.prepending, where="[embedder.prepending]")
        if template is None or PLACEHOLDER not in template.added_tokens:
            raise SettingsError(
                f"{WHERE} prepending needs a template with the placeholder {PLACEHOLDER}"
            )


def compose(
    settings: EmbedderSettings, *, published: bool = False, weights: bool = True, **where: Any
) -> Embedder:
    """The embedder that the settings describe; `where` are options of `model_folder`.

    Without `weights` its transformer has shapes only: it reads texts and counts parameters, and
    computes no vectors.

    With `published` the backbone is a checkpoint that someone trained this way: projections
    (Dense, Normalize) that its folder lists replace those of the settings.
    """
    check(settings)
    root = model_folder(settings.backbone, **where)
    declared = read_modules(root) if published else Declared()
    root = declared.transformer or root
    adapted = find_adapters(root, **{**where, "revision": None})
    body = adapted.body if adapted else root
    family = family_of(*(adapted.folders if adapted else ()), body)
    config = load_config(body, family=family)
    parts.check_served(settings.pooling, config, where=WHERE)
    check_num_layers(config, settings.num_layers)
    template, tokenizer = (
        template_of(settings),
        load_tokenizer(root if has_tokenizer(root) else body),
    )
    if settings.truncation_side is not None:
        tokenizer.truncation_side = settings.truncation_side
    new = add_tokens(tokenizer, template) if template is not None else []
    text_tokenizer = TextTokenizer(tokenizer, lower_case=settings.lower_case)  # checks for two EOS
    if template is not None:
        text_tokenizer.check_ends(template)
    facts = parts.model_facts(config, tokenizer, num_layers=settings.num_layers)
    if new:
        facts["vocab_size"] = max(facts["vocab_size"], len(tokenizer))  # as add_rows does
    # A fixed seed: untrained weights are at least the same in every run.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pooling = parts.build_pooling(
            settings.pooling, settings.pooling_settings, facts, where=WHERE
        )
        if isinstance(pooling, PoolingModule):
            size, needs = pooling.out_features, pooling.needs
        else:
            size, needs = facts["hidden_size"] * len(pooling), frozenset()
        built = parts.build_projections(settings.projections, size)
        projections = [*built, Normalize()] if settings.normalize else list(built)
    projections = declared.projections or projections

    kind = transformer_kind(needs | ({"lm_head"} if settings.variants else set()))
    # Whatever can be refused without weights has been refused above.
    if weights:
        whole = load_transformer(body, kind=kind, family=family)
    else:
        whole = outline_transformer(body, kind=kind, family=family)
    if weights and family is NV_EMBED and isinstance(pooling, LatentAttention):
        pooling = read_latents(body)  # trained, beside the decoder
    if weights and adapted:
        load_adapters(whole, adapted)
    if settings.num_layers is not None:
        keep_layers(whole.base_model if kind == "lm" else whole, settings.num_layers)
        whole.name_or_path = ""
    add_rows(whole, tokenizer, new)
    whole = whole.to(best_device()) if weights else whole
    backbone = Backbone(
        whole.base_model if kind == "lm" else whole,
        tokenizer.pad_token_id or 0,
        attention=settings.attention,
        lm=whole if kind == "lm" else None,
        prepending=_prepending(settings, tokenizer),
        probe=weights,
    )
    backbone.card = read_card(root) if root.is_dir() else None
    # The limit of the position table is known only from the model.
    text_tokenizer.max_length = settings.max_length or _declared_length(tokenizer, backbone)
    embedder = Embedder.from_parts(
        backbone,
        text_tokenizer,
        pooling=pooling,
        pool_prompt=settings.pool_prompt is not False,
        projections=projections,
        prompts=PromptTable(dict(settings.prompts), settings.default_prompt),
        template=template,
        variants=_variants(settings.variants, backbone, tokenizer),
        similarity_fn_name=settings.similarity,
        truncate_dim=settings.truncate_dim,
    )
    # The setter refuses a length that exceeds the model's positions.
    embedder.max_seq_length = embedder.max_seq_length
    return embedder.to(backbone.device) if weights else embedder


def add_tokens(tokenizer: Any, template: Template) -> list[str]:
    """Add the template's tokens to the tokenizer; returns those that it did not have."""
    new = [token for token in template.added_tokens if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    return new


def add_rows(model: Any, tokenizer: Any, new: list[str]) -> None:
    """Initialise the embeddings of new tokens with the mean and standard deviation of the others.

    Random, so that they are distinct and about as long as the others (a short vector's rounding
    error would be amplified by the first layer's norm), from a fixed seed, so that every run
    gives the same vectors until they are trained.
    """
    if not new:
        return
    rows, size = model.get_input_embeddings().weight.shape
    if len(tokenizer) > rows:
        # mean_resizing draws from the global generator; the rows are filled below.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        old = weight[: len(tokenizer) - len(new)].clone()
        for token in new:
            draw = torch.randn(size, generator=generator).to(weight) * old.std(dim=0)
            weight[tokenizer.convert_tokens_to_ids(token)] = old.mean(dim=0) + draw


def _declared_length(tokenizer: Any, backbone: Backbone) -> int | None:
    """The smaller limit of tokenizer and position table; None if there is none."""
    limits = [tokenizer.model_max_length, backbone.max_positions]
    known_limits = [limit for limit in limits if limit is not None and limit < NO_LIMIT]
    return min(known_limits, default=None)


def _prepending(settings: EmbedderSettings, tokenizer: Any) -> TokenPrepending | None:
    if not settings.prepending:
        return None
    facts = {"placeholder_id": tokenizer.convert_tokens_to_ids(PLACEHOLDER)}
    found: TokenPrepending = build(
        TokenPrepending, settings.prepending, facts, where="[embedder.prepending]"
    )
    return found


def _variants(
    settings: Mapping[str, Any], backbone: Backbone, tokenizer: Any
) -> TextVariants | None:
    if not settings:
        return None
    facts = {"backbone": backbone, "tokenizer": tokenizer}
    found: TextVariants = build(TextVariants, settings, facts, where="[embedder.variants]")
    return found
