"""An embedder from the parts that a recipe names."""

from typing import Any

from polyvec.embed.backbone import Backbone
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.transformer import best_device, load_tokenizer, load_transformer
from polyvec.embed.pooling import POOLINGS
from polyvec.embed.projection import Normalize
from polyvec.embed.prompts import PromptTable
from polyvec.embed.settings import EmbedderSettings
from polyvec.embed.sources import model_folder
from polyvec.embed.tokens import TextTokenizer
from polyvec.errors import SettingsError, known


def check(settings: EmbedderSettings) -> None:
    """Raises SettingsError for what can be known to be wrong before any weight loads."""
    names = (settings.pooling,) if isinstance(settings.pooling, str) else settings.pooling
    for name in names:
        if name not in POOLINGS:
            raise SettingsError(f"[embedder] pooling {name!r} is not known.{known(name, POOLINGS)}")
    if settings.prompts and settings.pool_prompt is None:
        raise SettingsError("[embedder] has prompts, so it must say pool_prompt = true or false")
    if settings.pool_prompt is not None and not settings.prompts:
        raise SettingsError("[embedder] pool_prompt does nothing without prompts")


def compose(settings: EmbedderSettings, **where: Any) -> Embedder:
    """The embedder that the settings describe; `where` goes to the hub's download."""
    check(settings)
    root = model_folder(settings.backbone, **where)
    tokenizer = load_tokenizer(root)
    model = load_transformer(root).to(best_device())
    backbone = Backbone(model, tokenizer.pad_token_id or 0)
    embedder = Embedder(
        backbone,
        TextTokenizer(
            tokenizer,
            max_length=settings.max_length or backbone.max_positions,
            lower_case=settings.lower_case,
        ),
        pooling=settings.pooling,
        pool_prompt=settings.pool_prompt if settings.pool_prompt is not None else True,
        projections=[Normalize()] if settings.normalize else [],
        prompts=PromptTable(dict(settings.prompts), settings.default_prompt),
        similarity_fn_name=settings.similarity,
        truncate_dim=settings.truncate_dim,
    )
    embedder.max_seq_length = embedder.max_seq_length  # refuses a length beyond the positions
    return embedder
