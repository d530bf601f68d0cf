"""Embedders behind an API: OpenAI, Google, Amazon, Alibaba, Voyage, Cohere, and servers like them.

`providers` is the table of what each takes, `shapes` how it is said, `embedder` the model.
"""

from polyvec.services.embedder import ServiceEmbedder
from polyvec.services.loading import load_service

__all__ = ["ServiceEmbedder", "load_service"]
