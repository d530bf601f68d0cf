"""Step 5: vectors are truncated and quantised.

B texts, D size before, E size after.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from polyvec.errors import CalibrationError, InputError, known

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def truncate(vectors_BD: Tensor, dim: int | None, *, renormalize: bool) -> Tensor:
    """The first `dim` numbers of each vector, [B, dim] (Matryoshka, arXiv:2205.13147).

    With `renormalize` they have length 1 again: a truncated unit vector is shorter, so dot
    products would depend on how much was truncated (SILENT row 31).
    Raises InputError if `dim` is not between 1 and D.
    """
    if dim is None:
        return vectors_BD
    if not 1 <= dim <= vectors_BD.shape[-1]:
        raise InputError(f"truncate_dim {dim} is not between 1 and {vectors_BD.shape[-1]}")
    vectors_BE = vectors_BD[..., :dim]
    return F.normalize(vectors_BE, dim=-1) if renormalize else vectors_BE


@dataclass(frozen=True, slots=True)
class Calibration:
    """Smallest and largest value of each dimension over a sample, [2, E].

    Integer vectors of two calls are comparable only if both used the same ranges, so
    ranges are stored with the model or the index, never computed by a call (SILENT row 16).
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
            raise CalibrationError("calibration vectors contain NaN or infinity")
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
        problem = f"precision {precision!r} is not known.{known(precision, PRECISIONS)}"
        if str(precision) == "fast":
            problem += " To compute faster, load the model with dtype='fast'."
        raise InputError(problem)
    vectors_BE = np.asarray(vectors_BE)
    if vectors_BE.dtype.kind != "f":
        raise InputError(f"quantize takes float vectors, got {vectors_BE.dtype}")
    if precision == "float32":
        return vectors_BE.astype(np.float32, copy=False)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors_BE > 0, axis=-1)
        # int8 has the same bits minus 128, as sentence-transformers stores them.
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
    """Float32 vectors of quantised ones: the middle of each step, or -1 and 1 for each bit.

    `dim` drops the zero bits that pad the last byte of binary vectors.
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
    # The middle of a step halves the largest error.
    return (low_E + (levels + 0.5) * step_E).astype(np.float32)


def comparable(vectors: np.ndarray, dim: int, calibration: Calibration | None = None) -> np.ndarray:
    """Vectors whose products mean something: int8 and uint8 ones dequantised, others unchanged.

    Levels and packed bits have no similarity of their own: unrelated texts would score like close
    ones (sentence-transformers#3121). Which of the two they are follows from their width, `dim`
    numbers or ceil(dim / 8) bytes. Raises CalibrationError where it does not, or where the ranges
    of the levels are not known.
    """
    if vectors.dtype not in (np.int8, np.uint8):
        return vectors
    width, signed = vectors.shape[-1], vectors.dtype == np.int8
    ranges = calibration.ranges_2E.shape[1] if calibration is not None else None
    is_levels, is_bits = width in (ranges, dim), width == -(-dim // 8)
    if is_levels and not is_bits:
        return dequantize(vectors, "int8" if signed else "uint8", calibration)
    if is_bits and not is_levels:
        return dequantize(vectors, "binary" if signed else "ubinary", dim=dim)
    raise CalibrationError(
        f"{vectors.dtype} vectors of width {width} are not clearly levels of {dim} dimensions or "
        f"bits of {dim} in {-(-dim // 8)} bytes; dequantise them first, with "
        "polyvec.embed.projection.quantization.dequantize"
    )


def _steps(
    dim: int, precision: str, calibration: Calibration | None
) -> tuple[np.ndarray, np.ndarray]:
    if calibration is None:
        raise CalibrationError(
            f"{precision} needs stored ranges, so that vectors of different calls are comparable: "
            "call embedder.calibrate(texts) once and save, or pass calibration="
        )
    if calibration.ranges_2E.shape[1] != dim:
        raise CalibrationError(
            f"{precision}: vectors have {dim} dimensions, "
            f"the ranges are for {calibration.ranges_2E.shape[1]}"
        )
    low_E, high_E = calibration.ranges_2E.astype(np.float32)
    step_E = (high_E - low_E) / 255
    # A constant dimension has step 0, which would divide by zero.
    return low_E, np.where(step_E == 0, 1, step_E)
