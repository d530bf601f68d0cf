"""Reading and writing model folders of sentence-transformers and Hugging Face.

Read: modules.json with sentence-transformers' modules, in the legacy and the newer schema,
model2vec's folders, or a bare checkpoint.
Written: the legacy schema plus `pooling_mode`, which sentence-transformers,
text-embeddings-inference, vLLM and llama.cpp all read (SILENT row 10).
"""
