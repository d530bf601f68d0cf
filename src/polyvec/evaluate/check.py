"""Checks of a recipe: the invariants of its embedder, and each figure in [expect]."""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyvec.data.tasks.folder import read_folder
from polyvec.embed.embedder import Embedder
from polyvec.embed.sections import embedder_settings
from polyvec.errors import InputError, SettingsError, known
from polyvec.evaluate.sections import EXPECT
from polyvec.evaluate.tasks import evaluate
from polyvec.index.hybrid import HybridEmbedder
from polyvec.recipe import Recipe

TOLERANCE = 1e-5
TEXTS = (
    "A cat sits on the mat.",
    "Vectors!",
    "The quick brown fox jumps over the lazy dog while nobody in the village looks up at all.",
    "[SEP] is a look-alike, {braces} too",
    "un été à Zürich 漢字",
)


@dataclass(frozen=True, slots=True)
class Line:
    """The result of a check: what was tested, whether it passed, and what was found."""

    what: str
    ok: bool
    found: str


def check_recipe(recipe: Recipe, scale: str, data: str | Path | None) -> Iterator[Line]:
    """The checks, each as soon as it is done; builds the embedder first.

    Where the figures at this scale are those of the trained embedder, it is trained before.
    """
    embedder_settings(recipe, scale)
    figures = recipe[EXPECT].get(scale, {})
    for name in figures:  # missing data are known before an embedder is built, or trained
        folder, split, _ = figure_parts(name, f"{recipe.path}: [expect.{scale}]")
        read_folder(Path(data or ".") / folder, split)
    if any(figure.untrained is not None for figure in figures.values()):
        embedder = trained(recipe, scale, data)
    else:
        embedder = recipe.build(scale)
    backbone = embedder.backbone
    yield Line("leak probe", True, f"{backbone.verdict}; asked for: {backbone.spec}")
    yield from invariants(embedder)
    for name, figure in figures.items():
        score = measure_figure(embedder, name, data, f"{recipe.path}: [expect.{scale}]")
        found = f"{score:.4f}, at least {figure.at_least}, measured before {figure.measured}"
        if figure.untrained is not None:
            found += f", untrained {figure.untrained}"
        yield Line(name, score >= figure.at_least, found)


def trained(recipe: Recipe, scale: str, data: str | Path | None) -> Embedder:
    """The recipe's embedder after its stages, with progress on stderr; the run is not kept."""
    from polyvec.train.run import train_recipe  # the extra polyvec[train], for trained figures only

    with tempfile.TemporaryDirectory() as folder:
        return train_recipe(
            recipe, scale, Path(folder) / "run", data=Path(data) if data else None, shown=True
        )


def measure_figure(
    embedder: Embedder | HybridEmbedder, name: str, data: str | Path | None, where: str
) -> float:
    """Score of an embedder by a figure's name, "<data folder> <split> <measure>".

    Raises SettingsError, beginning with `where`, if the name has other parts or the data set has no
    such measure.
    """
    folder, split, measure = figure_parts(name, where)
    scores = evaluate(embedder, Path(data or ".") / folder, split).scores
    if measure not in scores:
        raise SettingsError(
            f"{where} {measure!r} is not measured on {folder}." + known(measure, scores)
        )
    return scores[measure]


def expectation(name: str, measured: float, untrained: float | None = None) -> str:
    """The line of a figure in [expect], with a bound that leaves room.

    Half a point for other CPUs' rounding, which moves ranks of near ties; three for a trained
    embedder, whose every step rounds.
    """
    points = 0.5 if untrained is None else 3.0
    bound = math.floor(100 * measured - points) / 100
    values = {"at_least": max(bound, min(0.0, measured)), "measured": round(measured, 4)}
    if untrained is not None:
        values["untrained"] = round(untrained, 4)
    inside = ", ".join(f"{key} = {value}" for key, value in values.items())
    return f'"{name}" = {{ {inside} }}'


def figure_parts(name: str, where: str) -> tuple[str, str, str]:
    """Data folder, split and measure of a figure's name; SettingsError if it has other parts."""
    parts = name.split()
    if len(parts) != 3:
        raise SettingsError(f"{where} {name!r} is not '<data folder> <split> <measure>'")
    return parts[0], parts[1], parts[2]


def invariants(embedder: Embedder | HybridEmbedder) -> Iterator[Line]:
    """Vectors depend on nothing but the text, and are the same after saving and loading."""
    texts = list(TEXTS)
    try:
        embedder.encode("")
        texts.insert(2, "")
    except InputError as error:  # a tokenizer without special tokens leaves nothing to pool
        yield Line("the empty text", True, f"is refused: {error}")
    together = embedder.encode(texts)
    alone = np.stack([embedder.encode(text) for text in texts])
    yield _near("a text alone as in a batch", together, alone)
    yield _near("order", together, embedder.encode(texts[::-1])[::-1])
    with tempfile.TemporaryDirectory() as folder:
        embedder.save_pretrained(Path(folder) / "model")
        again = type(embedder).from_pretrained(Path(folder) / "model").encode(texts)
    equal = bool(np.array_equal(together, again))
    yield Line("saved and loaded", equal, "bit-equal" if equal else "differs")


def _near(what: str, a: np.ndarray, b: np.ndarray) -> Line:
    error = float(np.abs(a - b).max() / max(1.0, np.abs(a).max()))
    return Line(what, error <= TOLERANCE, f"differs by {error:.1e}, at most {TOLERANCE}")
