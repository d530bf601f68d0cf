"""The embedder of a clustering: its vectors, and its training on what a language model answered."""

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.cluster.grouping import Tools
from polyvec.errors import SettingsError

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder
    from polyvec.interfaces import TextEncoder

QUIET = {"save_strategy": "no"}


def tools_of(
    embedder: "TextEncoder | Callable[[Sequence[str]], np.ndarray] | None",
    show_progress_bar: bool | None = False,
) -> Tools:
    """What feedback can do with an embedder, with a function from texts to vectors, or without."""
    from polyvec.embed.embedder import Embedder
    from polyvec.interfaces import RunOptions, TextEncoder

    if embedder is None:
        return Tools()
    if not isinstance(embedder, TextEncoder):
        return Tools(lambda texts: np.asarray(embedder(texts), np.float32))

    def embed(texts: Sequence[str]) -> np.ndarray:
        options = RunOptions(show_progress_bar=show_progress_bar)
        return np.concatenate(list(embedder.encode_iter(texts, options=options)))

    if not isinstance(embedder, Embedder):
        return Tools(embed)
    model = embedder

    def tune(rows: list[dict[str, Any]], stage: Mapping[str, Any]) -> Tools:
        return tools_of(tuned(model, rows, stage), show_progress_bar)

    return Tools(embed, tune)


def tuned(
    embedder: "Embedder", rows: Sequence[Mapping[str, Any]], stage: Mapping[str, Any]
) -> "Embedder":
    """A copy of the embedder, trained by a stage `scl` on rows of query, pos and neg.

    stage: its settings, but data.
    """
    from polyvec.train.run import Run, run
    from polyvec.train.sections import STAGES

    if "data" in stage:
        raise SettingsError("stage: data are the language model's answers; leave the key out")
    table = {**stage, "batch_size": min(stage.get("batch_size", 4), len(rows))}
    with tempfile.TemporaryDirectory(prefix="polyvec-") as made:
        path = Path(made) / "answers.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        negatives = min(len(row["neg"]) for row in rows)
        data = ({"path": str(path), "num_negatives": negatives},)
        raw = {"kind": "scl", "trainer": QUIET, **table, "data": data}
        (settings,) = STAGES.value({"stage": [raw]}, "full", Path("feedback 'triplet'"))
        model = run(Run((settings,), Path(made) / "run"), copy.deepcopy(embedder))
    model.eval()
    return model
