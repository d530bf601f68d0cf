"""A server of embeddings: batching by tokens, OpenAI's HTTP interface, reranking, search."""
