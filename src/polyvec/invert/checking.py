"""Checks of a recipe with an inverter: what must hold of any, and each figure in [expect].

A figure's name is "<data folder> <file> <measure>", such as "multi30k captions_val token_f1": a
measure of `Leakage` over the first texts of DATA/multi30k/captions_val.jsonl.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.data.texts import read_rows
from polyvec.errors import DataError, SettingsError, ShapeError, known
from polyvec.evaluate.check import Line, figure_parts, trained
from polyvec.evaluate.sections import EXPECT
from polyvec.invert.inverter import Inverter
from polyvec.invert.leakage import Leakage, leakage, shuffled
from polyvec.recipe import Recipe

NUM_TEXTS = 40
SUFFIXES = (".jsonl", ".jsonl.gz")
TEXTS = ("A cat sits on the mat.", "Vectors!", "The quick brown fox jumps over the lazy dog.")


def check_inverter(recipe: Recipe, scale: str, data: str | Path | None) -> Iterator[Line]:
    """The checks, each as soon as it is done; trains the recipe first where it has figures."""
    figures = recipe[EXPECT].get(scale, {})
    where = f"{recipe.path}: [expect.{scale}]"
    for name in figures:  # missing data are known before anything is trained
        figure_texts(name, data, where)
    inverter: Any = trained(recipe, scale, data) if figures else recipe.build(scale)
    yield Line(
        "built",
        True,
        f"{inverter.settings.model}, {inverter.settings.num_tokens} input embeddings for vectors "
        f"of {inverter.writer.in_features} dimensions",
    )
    yield from invariants(inverter)
    found: dict[str, tuple[float, float]] = {}
    for name, figure in figures.items():
        score, other = measured(inverter, name, data, where)
        text = f"{score:.4f}, at least {figure.at_least}, measured before {figure.measured}"
        if figure.untrained is not None:
            text += f", untrained {figure.untrained}"
        yield Line(name, score >= figure.at_least, text)
        found[name] = score, other
    for name, (score, other) in found.items():
        yield Line(
            f"{name} without the vector", score > other, f"{other:.4f} from another text's vector"
        )


def invariants(inverter: Inverter) -> Iterator[Line]:
    """A text depends on its vector alone, stays after saving, and on vectors of the right size."""
    vectors_NE = inverter.embed(TEXTS)

    def written(one: Inverter, rows_NE: np.ndarray) -> list[str]:
        return [each.text for each in one.invert(rows_NE, beams=1, rerank=False)]

    plain = written(inverter, vectors_NE)
    same = written(inverter, vectors_NE[::-1])[::-1] == plain
    yield Line("order", same, "the same texts" if same else "other texts in another order")
    with tempfile.TemporaryDirectory() as folder:
        inverter.save_pretrained(Path(folder) / "model")
        loaded = Inverter.from_pretrained(Path(folder) / "model")
        same = written(loaded, vectors_NE) == plain
    yield Line("saved and loaded", same, "the same texts" if same else "other texts")
    try:
        inverter.checked(vectors_NE[:, 1:])
        yield Line("vectors of another size", False, "are not refused")
    except ShapeError:
        yield Line("vectors of another size", True, "are refused")
    if inverter.corrector is not None:
        steps = [each.steps for each in inverter.invert(vectors_NE, beams=2, steps=1)]
        rises = all(after >= before for before, after in steps)
        yield Line("a step of correction", rises, f"cosines before and after: {_shown(steps)}")


def _shown(steps: Sequence[Sequence[float]]) -> str:
    return "; ".join(" ".join(f"{each:.3f}" for each in row) for row in steps)


def measure_inverter(embedder: Any, name: str, data: str | Path | None, where: str) -> float:
    """An inverter's figure by its name; as `evaluate.check.measure_figure` of embedders."""
    return measured(embedder, name, data, where)[0]


def measured(
    inverter: Inverter, name: str, data: str | Path | None, where: str
) -> tuple[float, float]:
    """A figure, and the same with another text's vector."""
    measure, texts = figure_texts(name, data, where)
    vectors_NE = inverter.embed(texts)
    scores = []
    for target_NE in (vectors_NE, shuffled(vectors_NE)):
        found = [each.text for each in inverter.invert(target_NE)]
        scores.append(
            float(getattr(leakage(found, texts, inverter.embed_found, vectors_NE), measure))
        )
    return scores[0], scores[1]


def figure_texts(name: str, data: str | Path | None, where: str) -> tuple[str, list[str]]:
    """The measure and the texts of a figure.

    Raises SettingsError for a name or measure that is not known, DataError for texts that are not
    there.
    """
    folder, split, measure = figure_parts(name, where)
    measures = [each.name for each in fields(Leakage)]
    if measure not in measures:
        raise SettingsError(f"{where} {measure!r} is not measured." + known(measure, measures))
    stem = Path(data or ".") / folder / split
    path = next((p for end in SUFFIXES if (p := stem.with_name(split + end)).is_file()), None)
    if path is None:
        raise DataError(f"{where} {name!r}: {stem}.jsonl is not there; pass its folder with --data")
    texts = list(dict.fromkeys(_text(row, place) for place, row in read_rows(path)))[:NUM_TEXTS]
    if len(texts) < 2:
        raise DataError(f"{path}: fewer than 2 different texts")
    return measure, texts


def _text(row: Mapping[str, Any], place: str) -> str:
    """The first text of a row; of a set of texts its first."""
    for value in row.values():
        text = value[0] if isinstance(value, list) and value else value
        if isinstance(text, str) and text.strip():
            return " ".join(text.split())
    raise DataError(f"{place}: no text in the row")
