"""What a recipe's [embedder] section may say; plain values, so that reading it needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polyvec.embed.inputs.named_templates import TEMPLATES
from polyvec.embed.inputs.templates import Template
from polyvec.errors import SettingsError


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """The parts of an embedder by name.

    `backbone` is a folder or hub id whose transformer and tokenizer are taken, not its
    pooling; "polyvec/nano-lm" and "polyvec/nano-t5" are inside the package. `attention` is
    one of attention.KINDS. `pooling` names one of embed/pooling.py, several to lie side by
    side, or one of embed/pooling_modules.py, which takes `pooling_settings`. `pool_prompt`
    says whether a prompt's states are pooled; it must be said where there are prompts, since
    both are in use and the wrong one is silent (SILENT row 12). `num_layers` keeps the first
    layers only (L3Prune, arXiv:2410.14578).

    `template` is one of embed/named_templates.py or a table of its settings, and says itself
    what is pooled; with it `prompts` are instructions, and `fields` fill its other slots.
    `projections` are tables with `kind` and settings, in order, before `normalize`.
    `prepending` (start, stop) and `variants` (num_variants, ...) are the settings of
    embed/prepending.py and embed/variants.py.
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
