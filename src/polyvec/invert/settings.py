"""The section [inverter] of a recipe, as plain values: reading it needs no torch."""

from dataclasses import dataclass

from polyvec.errors import SettingsError


@dataclass(frozen=True, slots=True)
class InverterSettings:
    """How texts are written from vectors of the model in [victim].

    model: a language model, causal (GEIA) or an encoder-decoder (Vec2Text).
    num_tokens: input embeddings that a vector becomes. num_layers: of the map to them, 1 or 2.
    corrector: whether a second model improves what the first has written (Vec2Text).
    max_tokens: most tokens of a text. defence: what the victim's vectors pass first, as
        "mask:count=1"; the attacker then trains on defended vectors.
    beams: what is written for each vector, of which the text with the nearest vector is kept.
    """

    model: str
    num_tokens: int = 16
    num_layers: int = 2
    corrector: bool = False
    max_tokens: int = 32
    defence: str = ""
    beams: int = 4


def check(found: InverterSettings, where: str) -> None:
    """Raises SettingsError for numbers that are none."""
    for name in ("num_tokens", "num_layers", "max_tokens", "beams"):
        if getattr(found, name) < 1:
            raise SettingsError(f"{where}: {name} is {getattr(found, name)}, expected at least 1")
