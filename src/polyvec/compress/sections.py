"""Sections of recipes for what compresses."""

from polyvec.compress.soft.sections import COMPRESSOR, ENCODER
from polyvec.compress.text.sections import TEXT_COMPRESSOR

__all__ = ["COMPRESSOR", "ENCODER", "TEXT_COMPRESSOR"]
