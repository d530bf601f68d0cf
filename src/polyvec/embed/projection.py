"""Step 5: pooled vectors are projected, normalised, truncated and quantised.

B texts, D size before, E size after.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.errors import CalibrationError, InputError, ModelError, known

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


class Dense(nn.Module):
    """A linear layer with an activation, [B, D] -> [B, E]; optionally with a residual path."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: str = "Tanh",
        use_residual: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ModelError(
                f"Dense: activation {activation!r} is not known.{known(activation, ACTIVATIONS)}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.activation_name = activation
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, vectors_BD: Tensor) -> Tensor:
        out_BE = self.activation(self.linear(vectors_BD))
        if not self.use_residual:
            return out_BE
        return out_BE + (self.residual(vectors_BD) if hasattr(self, "residual") else vectors_BD)


class LayerNorm(nn.Module):
    """Layer normalisation of the vectors, [B, D] -> [B, D]."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vectors_BD: Tensor) -> Tensor:
        return self.norm(vectors_BD)


class Normalize(nn.Module):
    """Vectors of length 1, [B, D] -> [B, D]."""

    def forward(self, vectors_BD: Tensor) -> Tensor:
        return F.normalize(vectors_BD, dim=-1)


# torch's names without their module; a model file may name no other class (nothing is evaluated).
ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "Mish")
}


def truncate(vectors_BD: Tensor, dim: int | None, *, renormalize: bool) -> Tensor:
    """The first `dim` numbers of each vector, [B, dim] (Matryoshka, arXiv:2205.13147).

    With `renormalize` they have length 1 again: a cut unit vector is shorter, so dot
    products would rank by the share that was cut (SILENT row 31).
    Raises InputError if `dim` is not between 1 and D.
    """
    if dim is None:
        return vectors_BD
    if not 1 <= dim <= vectors_BD.shape[-1]:
        raise InputError(f"truncate_dim {dim} is not between 1 and {vectors_BD.shape[-1]}")
    cut = vectors_BD[..., :dim]
    return F.normalize(cut, dim=-1) if renormalize else cut


@dataclass(frozen=True, slots=True)
class Calibration:
    """Smallest and largest value of each dimension over a sample, [2, E].

    Integer vectors of two calls are comparable only if both used the same ranges, so
    ranges are stored with the model or the index and never made up by a call (SILENT row 16).
    """

    ranges_2E: np.ndarray
    num_texts: int

    @classmethod
    def of(cls, vectors_BE: np.ndarray) -> "Calibration":
        """Ranges of a sample of float vectors.

        Raises CalibrationError for fewer than 2 vectors, or if a value is not finite.
        """
        vectors_BE = np.asarray(vectors_BE, np.float32)
        if vectors_BE.ndim != 2 or len(vectors_BE) < 2:
            raise CalibrationError(
                f"calibration needs at least 2 vectors, got an array of shape {vectors_BE.shape}"
            )
        if not np.isfinite(vectors_BE).all():
            raise CalibrationError("calibration vectors hold NaN or infinity")
        return cls(np.stack([vectors_BE.min(axis=0), vectors_BE.max(axis=0)]), len(vectors_BE))


def quantize(
    vectors_BE: np.ndarray, precision: Precision, calibration: Calibration | None = None
) -> np.ndarray:
    """Vectors in the given precision.

    float32 [B, E]; int8 and uint8 [B, E] in 255 steps of the calibrated range, clipped;
    binary and ubinary [B, ceil(E / 8)], one sign bit a dimension, most significant first
    (binary is ubinary - 128 as int8): the layouts of sentence-transformers.
    Raises CalibrationError if int8 or uint8 lack ranges, or have those of another dimension.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not known.{known(precision, PRECISIONS)}")
    vectors_BE = np.asarray(vectors_BE)
    if vectors_BE.dtype.kind != "f":
        raise InputError(f"quantize takes float vectors, got {vectors_BE.dtype}")
    if precision == "float32":
        return vectors_BE.astype(np.float32, copy=False)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors_BE > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    low_E, step_E = _steps(vectors_BE.shape[-1], precision, calibration)
    levels = np.clip(np.floor((vectors_BE - low_E) / step_E), 0, 255)
    return (levels - 128).astype(np.int8) if precision == "int8" else levels.astype(np.uint8)


def dequantize(
    vectors_BE: np.ndarray,
    precision: Precision,
    calibration: Calibration | None = None,
    dim: int | None = None,
) -> np.ndarray:
    """Float32 vectors that stand for quantised ones: the middle of each step, or -1 and 1 a bit.

    `dim` cuts the zero bits that fill the last byte of binary vectors.
    """
    if precision == "float32":
        return np.asarray(vectors_BE, np.float32)
    if precision in ("binary", "ubinary"):
        raw = (
            vectors_BE
            if precision == "ubinary"
            else (vectors_BE.astype(np.int16) + 128).astype(np.uint8)
        )
        return np.unpackbits(raw, axis=-1, count=dim).astype(np.float32) * 2 - 1
    low_E, step_E = _steps(vectors_BE.shape[-1], precision, calibration)
    levels = vectors_BE.astype(np.float32) + (128 if precision == "int8" else 0)
    return (low_E + (levels + 0.5) * step_E).astype(np.float32)


def _steps(
    dim: int, precision: str, calibration: Calibration | None
) -> tuple[np.ndarray, np.ndarray]:
    if calibration is None:
        raise CalibrationError(
            f"{precision} needs stored ranges, or two calls give incomparable vectors: "
            "call embedder.calibrate(texts) once and save, or pass calibration="
        )
    if calibration.ranges_2E.shape[1] != dim:
        raise CalibrationError(
            f"{precision}: vectors have {dim} dimensions, "
            f"the ranges are for {calibration.ranges_2E.shape[1]}"
        )
    low_E, high_E = calibration.ranges_2E.astype(np.float32)
    step_E = (high_E - low_E) / 255
    return low_E, np.where(step_E == 0, 1, step_E)


def similarity_matrix(a_NE: Tensor, b_ME: Tensor, name: str) -> Tensor:
    """Similarity of every a to every b, [N, M]; larger is more alike, so distances are negative."""
    _known_similarity(name)
    if name == "cosine":
        return F.normalize(a_NE, dim=-1) @ F.normalize(b_ME, dim=-1).T
    if name == "dot":
        return a_NE @ b_ME.T
    # The form by matrix product, which cdist takes for many rows, is inexact for near vectors.
    exact = "donot_use_mm_for_euclid_dist"
    return -torch.cdist(a_NE, b_ME, p=2.0 if name == "euclidean" else 1.0, compute_mode=exact)


def similarity_pairs(a_NE: Tensor, b_NE: Tensor, name: str) -> Tensor:
    """Similarity of each a to the b beside it, [N]."""
    _known_similarity(name)
    if name == "cosine":
        return F.cosine_similarity(a_NE, b_NE, dim=-1)
    if name == "dot":
        return (a_NE * b_NE).sum(dim=-1)
    return -torch.linalg.vector_norm(a_NE - b_NE, ord=2 if name == "euclidean" else 1, dim=-1)


SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def _known_similarity(name: str) -> None:
    if name not in SIMILARITIES:
        raise InputError(f"similarity {name!r} is not known.{known(name, SIMILARITIES)}")
