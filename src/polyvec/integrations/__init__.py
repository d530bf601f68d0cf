"""Embedders as components of LangChain, LlamaIndex and Haystack, one file each.

Each file imports its package; `pip install 'polyvec[integrations]'` installs all three.
"""
