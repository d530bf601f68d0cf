"""GGUF, llama.cpp's format: settings, tokenizer and weights of a model in one file."""
