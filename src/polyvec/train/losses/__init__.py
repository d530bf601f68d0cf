"""Losses by name; each compares the vectors of a batch (compared.py)."""
