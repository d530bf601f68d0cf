"""Soft compression: a context becomes a few vectors, or keys and values, that a decoder reads."""
