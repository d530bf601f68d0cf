"""Fewer words: a scorer rates units of a text, and what fits a budget is kept."""
