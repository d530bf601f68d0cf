"""An embedder from the parts that a recipe names."""

from collections.abc import Mapping
from typing import Any

import torch

from polyvec.embed import parts
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.prepending import TokenPrepending
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.transformer import (
    best_device,
    keep_layers,
    load_config,
    load_tokenizer,
    load_transformer,
    transformer_kind,
)
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import NO_LIMIT, TextTokenizer
from polyvec.embed.projection.dense import Normalize
from polyvec.embed.settings import EmbedderSettings, template_of
from polyvec.embed.variants import TextVariants
from polyvec.errors import SettingsError, known

PLACEHOLDER = "<PST>"


def check(settings: EmbedderSettings) -> None:
    """Raises SettingsError for what can be known to be wrong before any weight loads."""
    AttentionSpec.parse(settings.attention)
    parts.check_pooling(settings.pooling, settings.pooling_settings)
    template = template_of(settings)
    if template is not None and settings.pool_prompt is not None:
        raise SettingsError("[embedder] pool_prompt does nothing: the template says what is pooled")
    if template is None and settings.prompts and settings.pool_prompt is None:
        raise SettingsError("[embedder] has prompts, so it must say pool_prompt = true or false")
    if settings.pool_prompt is not None and not settings.prompts:
        raise SettingsError("[embedder] pool_prompt does nothing without prompts")
    if settings.prepending:
        _known("prepending", settings.prepending, ("start", "stop"))
        if template is None or PLACEHOLDER not in template.added_tokens:
            raise SettingsError(
                f"[embedder] prepending needs a template with the placeholder {PLACEHOLDER}"
            )


def compose(settings: EmbedderSettings, **where: Any) -> Embedder:
    """The embedder that the settings describe; `where` goes to the hub's download."""
    check(settings)
    root = model_folder(settings.backbone, **where)
    parts.check_served(settings.pooling, load_config(root))
    template, tokenizer = template_of(settings), load_tokenizer(root)
    new = add_tokens(tokenizer, template) if template is not None else []
    words = TextTokenizer(tokenizer, lower_case=settings.lower_case)  # refuses a doubled EOS
    if template is not None:
        words.check_ends(template)
    needs = parts.needs_of(settings.pooling) | ({"lm_head"} if settings.variants else set())
    kind = transformer_kind(needs)
    whole = load_transformer(root, kind=kind)
    if settings.num_layers is not None:
        keep_layers(whole.base_model if kind == "lm" else whole, settings.num_layers)
    add_rows(whole, tokenizer, new)
    whole = whole.to(best_device())
    lm = whole if kind == "lm" else None
    model = whole if lm is None else lm.base_model
    backbone = Backbone(
        model,
        tokenizer.pad_token_id or 0,
        attention=settings.attention,
        lm=lm,
        prepending=_prepending(settings, tokenizer),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what is untrained is at least the same in every run
        pooling = parts.build_pooling(
            settings.pooling, settings.pooling_settings, backbone, tokenizer
        )
        size = getattr(pooling, "out_features", None)
        if size is None:
            size = backbone.hidden_size * (1 if isinstance(pooling, str) else len(settings.pooling))
        projections, _ = parts.build_projections(settings.projections, size)
    words.max_length = settings.max_length or _declared_length(tokenizer, backbone)
    embedder = Embedder(
        backbone,
        words,
        pooling=pooling,
        pool_prompt=settings.pool_prompt if settings.pool_prompt is not None else True,
        projections=[*projections, Normalize()] if settings.normalize else projections,
        prompts=PromptTable(dict(settings.prompts), settings.default_prompt),
        template=template,
        variants=_variants(settings.variants, backbone, tokenizer),
        similarity_fn_name=settings.similarity,
        truncate_dim=settings.truncate_dim,
    )
    embedder.max_seq_length = embedder.max_seq_length  # refuses a length beyond the positions
    return embedder.to(backbone.device)


def add_tokens(tokenizer: Any, template: Template) -> list[str]:
    """The template's tokens that are new, now with ids; those the tokenizer has keep theirs."""
    new = [token for token in template.added_tokens if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    return new


def add_rows(model: Any, tokenizer: Any, new: list[str]) -> None:
    """Rows of the embedding table for new tokens: drawn with the mean and spread of the others.

    From a fixed seed, so that they are distinct, as long as words are (the norms of the first
    layer would blow up the rounding of a short one), and the same in every run until trained.
    """
    if not new:
        return
    rows, size = model.get_input_embeddings().weight.shape
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        old = weight[: len(tokenizer) - len(new)].clone()
        for token in new:
            draw = torch.randn(size, generator=generator).to(weight) * old.std(dim=0)
            weight[tokenizer.convert_tokens_to_ids(token)] = old.mean(dim=0) + draw


def _declared_length(tokenizer: Any, backbone: Backbone) -> int | None:
    """Tokens that tokenizer and position table both allow; None: no limit."""
    limits = [tokenizer.model_max_length, backbone.max_positions]
    known_limits = [limit for limit in limits if limit is not None and limit < NO_LIMIT]
    return min(known_limits, default=None)


def _prepending(settings: EmbedderSettings, tokenizer: Any) -> TokenPrepending | None:
    if not settings.prepending:
        return None
    return TokenPrepending(tokenizer.convert_tokens_to_ids(PLACEHOLDER), **settings.prepending)


def _variants(
    settings: Mapping[str, Any], backbone: Backbone, tokenizer: Any
) -> TextVariants | None:
    if not settings:
        return None
    facts = {"backbone": backbone, "tokenizer": tokenizer}
    return parts.make(TextVariants, facts, settings, "[embedder.variants]")


def _known(section: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for key in given:
        if key not in names:
            raise SettingsError(
                f"[embedder.{section}] key {key!r} is not known.{known(key, names)}"
            )
