"""The section [embedder] of a recipe, as plain values: reading it needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polyvec.embed.inputs.named_templates import TEMPLATES
from polyvec.embed.inputs.templates import Template
from polyvec.errors import SettingsError


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """The parts of an embedder by name.

    backbone: folder, hub id or GGUF file whose transformer and tokenizer are used, not its pooling;
        "polyvec/nano-lm", "polyvec/nano-t5" and "polyvec/nano-moe" are embedded models.
    attention: "native", "causal", "bidirectional", "last-K", "from-K" or "prefix".
    pooling: a name in POOLINGS, several (their vectors are concatenated), or one in
        POOLING_MODULES, which takes `pooling_settings`; or "package.module:name".
    num_layers: keep the first layers only (L3Prune, arXiv:2410.14578).
    template: a name in TEMPLATES, "package.module:NAME", or a table of a template's settings.
        It decides what is pooled; `prompts` are then instructions, and `fields` fill its other
        slots.
    projections: tables with `kind` (a name in PROJECTIONS or "package.module:Class") and
        settings, applied in order, before `normalize`.
    pool_prompt: whether a prompt's states are pooled. Required if there are prompts and no
        template, since models of both kinds exist and the wrong one gives no error (SILENT
        row 12).
    truncation_side: "left" cuts the start of long texts, "right" their end (the tokenizer's side if
        not set); a template's own text stays whole.
    prepending: settings of TokenPrepending (start, stop).
    variants: settings of TextVariants (num_variants, ...).
    """

    backbone: str
    attention: str = "native"
    pooling: str | tuple[str, ...] = "mean"
    pooling_settings: Mapping[str, Any] = field(default_factory=dict)
    num_layers: int | None = None
    template: str | Mapping[str, Any] | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    projections: tuple[Mapping[str, Any], ...] = ()
    normalize: bool = False
    max_length: int | None = None
    truncation_side: str | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    pool_prompt: bool | None = None
    prepending: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Any] = field(default_factory=dict)
    similarity: str = "cosine"
    truncate_dim: int | None = None


def template_of(settings: EmbedderSettings) -> Template | None:
    """The template that the settings name or hold; SettingsError for an unknown one."""
    chosen = settings.template
    if chosen is None and settings.fields:
        raise SettingsError("[embedder] fields do nothing without a template")
    if chosen is None:
        return None
    template = (
        TEMPLATES.find(chosen, where="[embedder]")
        if isinstance(chosen, str)
        else Template.from_dict(chosen)
    )
    if not settings.fields:
        return template
    return replace(template, defaults={**template.defaults, **settings.fields})
