"""Sections of recipes for what compresses."""

from polyvec.compress.soft.sections import COMPRESSOR, ENCODER

__all__ = ["COMPRESSOR", "ENCODER"]
