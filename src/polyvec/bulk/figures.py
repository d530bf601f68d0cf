"""What `polyvec plan` calculates with: figures.toml, where each figure says what measured it."""

import functools
import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyvec.errors import SettingsError, known

FILE = Path(__file__).with_name("figures.toml")
MEASURED, EXTRAPOLATED, CALCULATED, GIVEN = "measured", "extrapolated", "calculated", "given"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, whether it was measured, extrapolated, calculated or given, and from what."""

    value: float
    basis: str
    source: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model that was timed. parameters: of its layers; tokens_per_s: by device, one of each."""

    name: str
    parameters: int
    dimension: int
    max_tokens: int
    tokens_per_s: Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity against the number of rows, as it was measured at some.

    form: "line", a fixed part and a share of each row, through the two nearest points; or "power"
    of the rows, by least squares of the logarithms of all points.
    """

    points: Sequence[tuple[float, float]]
    form: str
    source: str

    def at(self, rows: float, *, below: float = math.inf) -> Figure:
        """The quantity at so many rows: what was measured there, or else by the form.

        below: leave the points from there on out, to compare a prediction with what they say.
        """
        points = [point for point in self.points if point[0] < below]
        if rows in dict(points):
            return Figure(dict(points)[rows], MEASURED, self.source)
        if self.form == "line":
            near = sorted(points, key=lambda point: abs(math.log(point[0] / rows)))[:2]
            slope, fixed = statistics.linear_regression(*zip(*near, strict=True))
            return Figure(max(fixed + slope * rows, 0.0), EXTRAPOLATED, self.source)
        logs = [(math.log(x), math.log(y)) for x, y in points]
        power, start = statistics.linear_regression(*zip(*logs, strict=True))
        return Figure(math.exp(start + power * math.log(rows)), EXTRAPOLATED, self.source)


@dataclass(frozen=True, slots=True)
class Figures:
    """All of figures.toml."""

    models: Mapping[str, Model]
    curves: Mapping[str, Curve]
    numbers: Mapping[str, Figure]

    def model(self, name: str) -> Model:
        """A model by its name; SettingsError, with what is known, for another."""
        if name not in self.models:
            raise SettingsError(
                f"--model: no figures of {name!r}; give --tokens-per-second and the nearest of "
                f"these as --model.{known(name, self.models)}"
            )
        return self.models[name]


@functools.cache
def figures() -> Figures:
    """The figures of the package."""
    raw = tomllib.loads(FILE.read_text("utf-8"))
    sources = {name: _source(each) for name, each in raw["source"].items()}

    def measured(each: Mapping[str, Any]) -> Figure:
        return Figure(float(each["value"]), MEASURED, sources[each["source"]])

    models = {
        each["name"]: Model(
            each["name"],
            each["parameters"],
            each["dimension"],
            each["max_tokens"],
            {device: measured(rate) for device, rate in each["tokens_per_s"].items()},
        )
        for each in raw["model"]
    }
    curves = {
        name: Curve([(x, y) for x, y in each["points"]], each["form"], sources[each["source"]])
        for name, each in raw["curve"].items()
    }
    return Figures(models, curves, {name: measured(each) for name, each in raw["number"].items()})


def _source(said: Mapping[str, str]) -> str:
    return f"{said['command']}; {said['machine']}, {said['date']}"
