"""Defences: what is stored in place of a text's vector.

Each is fitted on vectors of its own user, then applied to every vector, those of queries too. Noise
is a function of a secret seed and the vector, so that asking twice for the same text does not
average it away. What leaves a defence has length 1. N vectors, E their size, F that of the
defended ones, M subspaces.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from polyvec.embed.projection.quantization import Calibration, dequantize, quantize
from polyvec.errors import DataError, InputError, SettingsError, ShapeError
from polyvec.evaluate.measures.inputs import extra, matrix, unit
from polyvec.registry import Registry
from polyvec.settings import check_seed

SENSITIVITY = 2.0  # the longest distance between two vectors of length 1
GRID = 20_000  # angles at which a density is tabulated


class Defence:
    """Base: `fit` learns what it needs from a sample, `apply` defends vectors."""

    def fit(self, vectors: np.ndarray, texts: Sequence[str] | None = None) -> Self:
        """Itself, ready to be applied."""
        return self

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Defended vectors, float32 [N, F] of length 1.

        Raises ShapeError for vectors of another size than it was fitted on.
        """
        vectors_NE = unit("vectors", matrix("vectors", vectors, at_least=1))
        with np.errstate(over="ignore"):
            found_NF = self._apply(vectors_NE).astype(np.float32)
            fits = bool(np.isfinite(np.square(found_NF).sum(1)).all())
        if not fits:
            name = type(self).__name__.lower()
            raise SettingsError(f"defence {name}: its numbers are too large; give smaller ones")
        return unit("defended vectors", found_NF)

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What decides it beside what it was fitted on; secrets as they are."""
        found: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in found.items() if not name.startswith("_")}


@dataclass
class Nothing(Defence):
    """The vectors as they are."""

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        return vectors_NE


@dataclass
class Gaussian(Defence):
    """Normal noise of standard deviation `sigma` for each number (Vec2Text, arXiv:2310.06816)."""

    sigma: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not 0 <= self.sigma < math.inf:
            raise SettingsError(f"sigma is {self.sigma}, expected at least 0, and finite")

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        return vectors_NE + self.sigma * keyed_normal(vectors_NE, self.seed)


@dataclass
class Private(Defence):
    """Gaussian noise calibrated to (epsilon, delta)-differential privacy of each vector.

    The analytic mechanism (Balle and Wang 2018, arXiv:1805.06530), which holds for every epsilon.
    Any text could be replaced by any other: the sensitivity is 2, the diameter of the sphere.
    """

    epsilon: float = 10.0
    delta: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not 0 < self.epsilon < math.inf or not 0 < self.delta < 1:
            raise SettingsError(
                f"epsilon is {self.epsilon} and delta {self.delta}, expected epsilon above 0, "
                "and finite, and delta between 0 and 1"
            )

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise of each number."""
        return calibrated_sigma(self.epsilon, self.delta, SENSITIVITY)

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        return vectors_NE + self.sigma * keyed_normal(vectors_NE, self.seed)


def calibrated_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """The least noise with which a Gaussian mechanism is (epsilon, delta)-private.

    >>> round(calibrated_sigma(1.0, 1e-5, 1.0), 3)
    3.731
    """
    log_ndtr = extra("scipy.special", "differential privacy").log_ndtr

    def lost(sigma: float) -> float:
        half, shift = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
        # In logarithms: exp(epsilon) alone overflows.
        first, second = log_ndtr(half - shift), epsilon + log_ndtr(-half - shift)
        return float(math.exp(first) - math.exp(min(second, first)))

    low, high = 1e-6 * sensitivity, sensitivity
    while lost(high) > delta:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if lost(middle) > delta else (low, middle)
    return high


@dataclass
class Directional(Defence):
    """A random turn by an angle of density exp(-epsilon angle) sin(angle)^(E - 2).

    PurMech: metric privacy of directions (Weggenmann and Kerschbaum 2021, CCS 2021), one of
    the noises that ALGEN tests.
    """

    epsilon: float = 500.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not 0 < self.epsilon < math.inf:
            raise SettingsError(f"epsilon is {self.epsilon}, expected above 0, and finite")

    def angles(self, uniform_N: np.ndarray, size: int) -> np.ndarray:
        """Angles of vectors of this size, from numbers that are uniform between 0 and 1."""
        grid = (np.arange(GRID) + 0.5) * math.pi / GRID
        log = -self.epsilon * grid + (size - 2) * np.log(np.sin(grid))
        total = np.cumsum(np.exp(log - log.max()))
        return np.interp(uniform_N, total / total[-1], grid)

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        size = vectors_NE.shape[1]
        drawn_N1 = keyed_normal(vectors_NE, self.seed, stream=1)[:, :1]
        ndtr = extra("scipy.special", "directional noise").ndtr
        angle_N1 = self.angles(ndtr(drawn_N1), size)
        other_NE = keyed_normal(vectors_NE, self.seed)
        other_NE -= (other_NE * vectors_NE).sum(1, keepdims=True) * vectors_NE
        other_NE /= np.linalg.norm(other_NE, axis=1, keepdims=True)
        return np.cos(angle_N1) * vectors_NE + np.sin(angle_N1) * other_NE


def keyed_normal(vectors_NE: np.ndarray, seed: int, stream: int = 0) -> np.ndarray:
    """Normal numbers [N, E], each row a function of the secret seed and its vector's signs."""
    found = np.empty(vectors_NE.shape, np.float64)
    # Signs: the batch that a text was encoded in changes the last digits of its vector.
    for row, bits in enumerate(np.packbits(vectors_NE > 0, axis=1)):
        key = hashlib.blake2b(bits.tobytes(), digest_size=16, key=str(seed).encode()).digest()
        draw = np.random.default_rng([int.from_bytes(key), stream])
        found[row] = draw.standard_normal(vectors_NE.shape[1])
    return found


@dataclass
class Rotation(Defence):
    """A secret rotation, drawn from the seed: every similarity stays (arXiv:2402.12784)."""

    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        return vectors_NE @ random_rotation(vectors_NE.shape[1], self.seed)


def random_rotation(size: int, seed: int) -> np.ndarray:
    """An orthogonal matrix, uniform among all (Mezzadri 2007, arXiv:math-ph/0609050)."""
    drawn = np.random.default_rng(seed).standard_normal((size, size))
    q, r = np.linalg.qr(drawn)
    return q * np.sign(np.diag(r))


@dataclass
class Mask(Defence):
    """The first `count` dimensions hold `value`, such as a language's number (arXiv:2401.12192)."""

    count: int = 1
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SettingsError(f"count is {self.count}, expected at least 1")
        if not math.isfinite(self.value):
            raise SettingsError(f"value is {self.value}, expected a finite number")

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        if self.count >= vectors_NE.shape[1]:
            raise ShapeError(
                f"mask: {self.count} masked of {vectors_NE.shape[1]} dimensions: none left"
            )
        found = vectors_NE.copy()
        found[:, : self.count] = self.value
        return found


@dataclass
class Truncate(Defence):
    """The first `size` dimensions."""

    size: int = 64

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SettingsError(f"size is {self.size}, expected at least 1")

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        if self.size > vectors_NE.shape[1]:
            raise ShapeError(
                f"truncate: size {self.size} of vectors of {vectors_NE.shape[1]} dimensions"
            )
        return vectors_NE[:, : self.size]


@dataclass
class Int8(Defence):
    """255 steps a dimension, ranges of the sample it was fitted on."""

    _ranges: Calibration | None = field(default=None, repr=False, init=False)

    def fit(self, vectors: np.ndarray, texts: Sequence[str] | None = None) -> Self:
        self._ranges = Calibration.of(unit("vectors", matrix("vectors", vectors)))
        return self

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        if self._ranges is None:
            raise InputError("defence 'int8' has no ranges yet; call fit first")
        codes = quantize(vectors_NE, "int8", self._ranges)
        return dequantize(codes, "int8", self._ranges)


@dataclass
class Binary(Defence):
    """The sign of each dimension."""

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        codes = quantize(vectors_NE, "ubinary")
        return dequantize(codes, "ubinary", dim=vectors_NE.shape[1])


@dataclass
class ProductQuantised(Defence):
    """In each of `parts` stretches of dimensions, the nearest of `codes` centres (k-means).

    Jegou et al. 2011, doi:10.1109/TPAMI.2010.57. A vector is `parts` bytes with 256 codes.
    """

    parts: int = 32
    codes: int = 256
    seed: int = 0
    _centres_MCS: np.ndarray | None = field(default=None, repr=False, init=False)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("parts", "codes"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected at least 1")

    def fit(self, vectors: np.ndarray, texts: Sequence[str] | None = None) -> Self:
        vectors_NE = unit("vectors", matrix("vectors", vectors))
        size = vectors_NE.shape[1]
        if size % self.parts:
            raise ShapeError(
                f"product: {size} dimensions cannot be cut in {self.parts} equal parts; set "
                "parts to a number that divides them"
            )
        if len(vectors_NE) < self.codes:
            raise DataError(
                f"product: {len(vectors_NE)} vectors are too few for {self.codes} codes; give "
                "more, or set fewer codes"
            )
        kmeans = extra("sklearn.cluster", "product quantisation").KMeans
        pieces = vectors_NE.reshape(len(vectors_NE), self.parts, -1)
        found = [
            kmeans(self.codes, n_init=1, max_iter=25, random_state=self.seed)
            .fit(pieces[:, part])
            .cluster_centers_
            for part in range(self.parts)
        ]
        self._centres_MCS = np.stack(found)
        return self

    def encode(self, vectors_NE: np.ndarray) -> np.ndarray:
        """The code of each part, [N, parts]."""
        if self._centres_MCS is None:
            raise InputError("defence 'product' has no centres yet; call fit first")
        if vectors_NE.shape[1] != (fitted := self.parts * self._centres_MCS.shape[2]):
            raise ShapeError(
                f"product: fitted on {fitted} dimensions, the vectors have {vectors_NE.shape[1]}"
            )
        pieces = vectors_NE.reshape(len(vectors_NE), self.parts, -1)
        scores = np.einsum("nms,mcs->nmc", pieces, self._centres_MCS)
        lengths_MC = (self._centres_MCS**2).sum(2) / 2
        return (scores - lengths_MC).argmax(2)

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        codes_NM = self.encode(vectors_NE)
        assert self._centres_MCS is not None
        return self._centres_MCS[np.arange(self.parts), codes_NM].reshape(len(codes_NM), -1)


DEFENCES: Registry[type[Defence]] = Registry(
    "defence",
    {
        "binary": Binary,
        "directional": Directional,
        "gaussian": Gaussian,
        "int8": Int8,
        "mask": Mask,
        "none": Nothing,
        "private": Private,
        "product": ProductQuantised,
        "rotation": Rotation,
        "truncate": Truncate,
    },
    elsewhere={"projection": "polyvec.invert.projection:WordProjection"},
)


def build_defence(text: str) -> Defence:
    """A defence by its name, with settings behind a colon: "gaussian:sigma=0.05,seed=7".

    >>> build_defence("gaussian:sigma=0.05")
    Gaussian(sigma=0.05, seed=0)
    """
    import tomllib

    name, _, given = text.partition(":")
    settings: dict[str, Any] = {}
    for each in filter(None, given.split(",")):
        try:
            read = tomllib.loads(each)
        except tomllib.TOMLDecodeError:
            raise SettingsError(
                f"defence {text!r}: {each!r} is not key=number, as in gaussian:sigma=0.05"
            ) from None
        if twice := next((key for key in read if key in settings), None):
            raise SettingsError(f"defence {text!r}: {twice} is set twice")
        settings |= read
    try:
        return DEFENCES.build(name, settings, where="")
    except SettingsError as error:
        said = str(error)
        said = said if said.startswith("defence ") else f"defence {text!r}: {said}"
        raise SettingsError(said) from None
