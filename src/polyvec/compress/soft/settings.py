"""The section [compressor] of a recipe, as plain values: reading it needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from polyvec.errors import SettingsError

SAME, FROZEN = "same", "frozen"
SLOTS = ("memory", "question", "task")  # of a prompt
AUTOENCODE, CONTINUE, ANSWER = "autoencode", "continue", "answer"
PROMPTS: Mapping[str, str] = {
    AUTOENCODE: "{memory}{task}",
    CONTINUE: "{memory}{task}",
    ANSWER: "{memory}\nQuestion: {question}\nAnswer:",
}


@dataclass(frozen=True, slots=True)
class CompressorSettings:
    """How [embedder]'s backbone, the encoder, makes a memory of a context, and who reads it.

    memory: a name in MEMORIES ("slots", "strided", "pooled", "digest", "blocks", "beacons",
        "vector", "soft"); memory_settings are its arguments.
    carrier: what is kept of the memory's tokens: their last states ("hidden"), which take the
        place of input embeddings, or the keys and values of all layers ("kv").
    connector: what maps hidden states to the decoder's input embeddings: "none", "linear", "mlp".
    decoder: "same", the encoder with whatever was trained of it; "frozen", the encoder without its
        adapter; or the name of another language model.
    decoder_train: of another model: "frozen", "lora" or "full"; decoder_rank is the LoRA's.
    query_aware: whether the encoder reads the question before the context.
    prompts: of "autoencode", "continue" and "answer", with {memory}, {question} and {task}, a
        trained vector for each prompt. Several prompts are drawn from in training.
    max_context, max_target: most tokens of a context, and of what is predicted.
    """

    memory: str
    memory_settings: Mapping[str, Any] = field(default_factory=dict)
    carrier: Literal["hidden", "kv"] = "hidden"
    connector: Literal["none", "linear", "mlp"] = "none"
    decoder: str = SAME
    decoder_train: Literal["frozen", "lora", "full"] = "frozen"
    decoder_rank: int = 16
    query_aware: bool = False
    prompts: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    max_context: int = 512
    max_target: int = 512


def check(found: CompressorSettings, where: str) -> None:
    """Raises SettingsError for values that do not fit each other."""
    if found.carrier == "kv" and found.connector != "none":
        raise SettingsError(
            f"{where}: connector {found.connector!r} does nothing with carrier 'kv', whose keys "
            "and values the decoder reads as they are"
        )
    if found.carrier == "kv" and found.decoder not in (SAME, FROZEN):
        raise SettingsError(
            f"{where}: carrier 'kv' needs a decoder with the encoder's layers: decoder 'same' or "
            f"'frozen', not {found.decoder!r}"
        )
    if found.decoder in (SAME, FROZEN) and found.decoder_train != "frozen":
        raise SettingsError(
            f"{where}: decoder_train is of another model; of decoder {found.decoder!r} the stage's "
            "adapter says what is trained"
        )
    for name, prompts in found.prompts.items():
        if name not in PROMPTS:
            raise SettingsError(f"{where} prompts: {name!r} is none of {', '.join(PROMPTS)}")
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            if prompt.count("{memory}") != 1:
                raise SettingsError(
                    f"{where} prompts {name!r}: {prompt!r} must have one {{memory}}"
                )
            if found.carrier == "kv" and not prompt.startswith("{memory}"):
                raise SettingsError(
                    f"{where} prompts {name!r}: with carrier 'kv' a prompt begins with {{memory}}"
                )
    for name in ("max_context", "max_target", "decoder_rank"):
        if getattr(found, name) < 1:
            raise SettingsError(f"{where}: {name} is {getattr(found, name)}, expected at least 1")
