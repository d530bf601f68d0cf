"""An OpenAI-compatible server as a language model: requests, retries, limits and replies."""

from polyvec.llm.server.model import ServerLanguageModel

__all__ = ["ServerLanguageModel"]
