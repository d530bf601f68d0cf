"""The parts of a compressor beside its memory: the decoder, and the connector to it."""

from typing import Any

from torch import Tensor, nn

from polyvec.compress.soft.decoder import Decoder
from polyvec.compress.soft.paired import PairedDecoder, is_paired
from polyvec.compress.soft.prefix import VectorPrefix
from polyvec.compress.soft.settings import FROZEN, PROMPTS, SAME, CompressorSettings
from polyvec.embed.compose import compose
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.settings import EmbedderSettings
from polyvec.train.adapter_kinds import ADAPTERS

WHERE = "[compressor]"


def build_decoder(encoder: Embedder, settings: CompressorSettings) -> Any:
    """A Decoder, or a PairedDecoder."""
    shared = settings.decoder in (SAME, FROZEN)
    prompts = {**PROMPTS, **settings.prompts}
    tasks = [name for name, given in prompts.items() if "{task}" in "".join(given)]
    if not shared and is_paired(folder := model_folder(settings.decoder)):
        return PairedDecoder(folder, tasks)
    lm = encoder if shared else compose(EmbedderSettings(settings.decoder))
    found = Decoder(lm, shared=shared, without_adapter=settings.decoder == FROZEN, tasks=tasks)
    if settings.decoder_train == "lora":
        table = {"rank": settings.decoder_rank, "dropout": 0.0}
        facts = {"embedder": lm, "model": lm.backbone.model, "rows": [], "fresh": True}
        ADAPTERS.build("lora", table, facts, where=f"{WHERE} decoder_train")
    return found


def build_connector(kind: str, in_features: int, decoder_table: Tensor) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    layers = {"linear": 1, "mlp": 2}[kind]
    return VectorPrefix(in_features, decoder_table.shape[1], num_layers=layers, like=decoder_table)
