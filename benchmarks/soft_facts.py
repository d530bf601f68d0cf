"""The table's rows on facts that a small language model can look up.

Of a language model that answers no questions about a passage, no memory of the passage can be told
from a shuffled one. That of soft_toys.py looks up what a text says of a name, so here each
recipe's memory, carrier and stages read two facts ("Ann red.") on it, and the question is a name.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soft_arms import ANSWERING, Held, Table
from soft_toys import LORA

from polyvec.compress.soft.sections import COMPRESSOR, ENCODER
from polyvec.compress.soft.settings import ANSWER, FROZEN, SAME
from polyvec.data.training.rows import TrainingRow
from polyvec.train.sections import STAGES

# Those of an encoder-decoder are left out: the small language model is a decoder.
ROWS = tuple(name for name in ANSWERING if name not in ("gist-coco", "nugget"))
# In place of the recipe's own, for six tokens and a width of 96.
MEMORIES: Mapping[str, Table] = {
    "slots": {"num": 2, "segment": 3, "ratio": 3},
    "pooled": {"num_heads": 4, "size": 3, "step": 3},
    "digest": {"num": 2, "num_layers": 2, "num_heads": 4},
    "blocks": {"num": 1},
    "beacons": {"ratio": 3, "ratios": [3], "window": 3},
    "nuggets": {"ratio": 3},
    "strided": {"stride": 3, "strides": [3]},
}
PREPARING, ANSWERING_STEPS = 400, 800


@dataclass
class Facts(Held):
    """Two facts and a name; an answer is one token."""

    max_tokens: int = 1
    end: bool = False

    def questions(self) -> list[TrainingRow]:
        return [
            TrainingRow(row["query"], (row["positive"],), instruction=row["instruction"])
            for row in self.read("facts")
        ]


def settings(recipe: Any, language_model: Path) -> tuple[Any, Any]:
    """A recipe's [encoder] and [compressor] at nano, on the small language model."""
    encoder, found = recipe.at(ENCODER, "nano"), recipe.at(COMPRESSOR, "nano")
    own = MEMORIES.get(found.memory, {})
    memory = {key: own.get(key, value) for key, value in found.memory_settings.items()}
    if memory.get("combine") in ("accumulate", "independent"):
        memory["num"] = 1  # of each of the two segments
    found = dataclasses.replace(
        found,
        memory_settings=memory,
        decoder=found.decoder if found.decoder in (SAME, FROZEN) else str(language_model),
        prompts={ANSWER: "{memory}{question}"},
        max_context=12,
        max_target=12,
    )
    if found.memory != "vector":
        encoder = dataclasses.replace(encoder, backbone=str(language_model))
    return encoder, found


def stages(recipe: Any, held: Held, seed: int, share: float) -> list[Any]:
    """Its stages at nano, on facts."""
    found = []
    for stage in recipe.at(STAGES, "nano"):
        objectives = stage.settings["objectives"]
        file = "again" if "continue" in objectives else "facts"
        steps = ANSWERING_STEPS if ANSWER in objectives else PREPARING
        adapter = stage.adapter
        found.append(
            dataclasses.replace(
                stage,
                data=({"path": str(held.files[f"{file}-train"])},),
                settings={**stage.settings, "end": False},
                adapter=LORA if adapter and adapter["kind"] == "lora" else adapter,
                max_steps=max(1, round(steps * share)),
                seed=seed,
                trainer={"save_strategy": "no"},
            )
        )
    return found
