"""SparseEncoder: vectors of the vocabulary's size, most of whose numbers are zero.

N texts, V size of the vocabulary.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyvec.embed.inputs.contract import check_count
from polyvec.errors import InputError
from polyvec.interfaces import RunOptions, SparseVectors
from polyvec.sentence_transformers import arguments, util, workers
from polyvec.sentence_transformers.features import as_inputs, has_pairs
from polyvec.sentence_transformers.model import SentenceTransformer


class SparseEncoder(SentenceTransformer):
    """A sparse Embedder that takes and gives what sentence-transformers' SparseEncoder does."""

    model_type = "SparseEncoder"
    _counterpart = "SparseEncoder"
    _output = "sparse"

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        max_active_dims: int | None = None,
        similarity_fn_name: Any = None,
        **options: Any,
    ) -> None:
        """The model of a folder or hub id; a masked language model is read as SPLADE.

        `max_active_dims`: most numbers of a vector that are not zero. The rest is as in
        SentenceTransformer.
        """
        if max_active_dims is not None:
            check_count("max_active_dims", max_active_dims)
        super().__init__(model_name_or_path, similarity_fn_name=similarity_fn_name, **options)
        self.max_active_dims = max_active_dims

    @property
    def splade_pooling_chunk_size(self) -> int | None:
        """None: vectors are pooled without chunks. Raises InputError for another one."""
        return None

    @splade_pooling_chunk_size.setter
    def splade_pooling_chunk_size(self, value: int | None) -> None:
        if value is not None:
            raise InputError(
                "splade_pooling_chunk_size has no effect in polyvec; batch_size limits the memory"
            )

    @arguments.per_call
    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = True,
        convert_to_sparse_tensor: bool = True,
        save_to_cpu: bool = False,
        device: Any = None,
        max_active_dims: int | None = None,
        pool: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        *,
        sentences: Any = None,
        task: str | None = None,
        role: str | None = None,
        **options: Any,
    ) -> Any:
        """A sparse tensor [N, V], or [V] of a single text.

        Dense without `convert_to_sparse_tensor`; a list of tensors without `convert_to_tensor`.
        `max_active_dims` keeps the largest numbers of each vector only.
        """
        given = arguments.only_one(inputs=inputs, sentences=sentences)
        arguments.no_others(f"{type(self).__name__}.encode", options)
        single = self.is_singular_input(given)
        texts = as_inputs([given] if single else given)
        call = {
            "prompt_name": prompt_name,
            "prompt": prompt,
            "role": task if role is None else role,
            "batch_size": batch_size,
            "show_progress_bar": show_progress_bar or False,
        }
        if pool is not None or isinstance(device, list | tuple):
            chunks = workers.in_pool(
                self,
                device,
                pool,
                lambda each: workers.run(each, "_encoded", texts, chunk_size, call),
            )
            vectors = SparseVectors.joined(chunks, self.get_embedding_dimension())
        else:
            self._move(device)
            vectors = self._encoded(texts, **call)
        found = _coo(vectors)
        most = self.max_active_dims if max_active_dims is None else max_active_dims
        if most is not None:
            found = util.select_max_active_dims(found.to_dense(), most).to_sparse()
        found = found if convert_to_sparse_tensor else found.to_dense()
        found = found.cpu() if save_to_cpu else found.to(self.device)
        if single:
            return found[0]
        return found if convert_to_tensor else [found[row] for row in range(len(texts))]

    def _encoded(self, inputs: Any, **options: Any) -> SparseVectors:
        if has_pairs(inputs):
            dense = {"output_value": "sentence_embedding", "normalize_embeddings": False}
            return SparseVectors.of(super()._encoded(inputs, **options, **dense, truncate_dim=None))
        run = RunOptions(options.pop("batch_size"), show_progress_bar=options["show_progress_bar"])
        del options["show_progress_bar"]
        vectors, _ = self.encode_vectors(inputs, options=run, **options)
        if not isinstance(vectors, SparseVectors):
            raise InputError("the model's vectors are dense; use SentenceTransformer")
        return vectors

    def decode(self, embeddings: Tensor, top_k: int | None = None) -> Any:
        """The tokens and weights of a vector, the largest first; of several a list of lists."""
        if top_k is not None:
            check_count("top_k", top_k)
        rows = torch.atleast_2d(_dense(embeddings))
        found = [self._decoded(row, top_k) for row in rows]
        return found[0] if embeddings.ndim == 1 else found

    def _decoded(self, row: Tensor, top_k: int | None) -> list[tuple[str, float]]:
        count = int((row != 0).sum())
        row = row.where(row != 0, torch.full_like(row, -torch.inf))
        top = row.topk(count if top_k is None else min(top_k, count))
        tokens = self.tokenizer.convert_ids_to_tokens(top.indices.tolist())
        return list(zip(tokens, top.values.tolist(), strict=True))

    @staticmethod
    def sparsity(embeddings: Tensor) -> dict[str, float]:
        """Mean number of numbers that are not zero, and mean share of zeros."""
        rows = torch.atleast_2d(_dense(embeddings))
        if not rows.numel():
            return {"active_dims": 0.0, "sparsity_ratio": 1.0}
        active = float((rows != 0).sum(dim=1).float().mean())
        return {"active_dims": active, "sparsity_ratio": 1 - active / rows.shape[1]}

    @staticmethod
    def intersection(embeddings_1: Tensor, embeddings_2: Tensor) -> Tensor:
        """Products in those dimensions where the vector [V] and the others are both positive."""
        one, others = _dense(embeddings_1), _dense(embeddings_2)
        if one.ndim != 1 or one.shape[-1] != others.shape[-1]:
            raise InputError(
                f"intersection: shapes {tuple(one.shape)} and {tuple(others.shape)}, expected one "
                "vector, and one or several of its width"
            )
        return (one.clamp(min=0) * others.clamp(min=0)).to_sparse()


def _coo(vectors: SparseVectors) -> Tensor:
    """Sparse rows as torch's coordinates, [N, V]."""
    crow = torch.as_tensor(vectors.indptr, dtype=torch.long)
    rows = torch.repeat_interleave(torch.arange(len(vectors)), crow.diff())
    places = torch.stack([rows, torch.as_tensor(vectors.indices_Z, dtype=torch.long)])
    size = (len(vectors), vectors.dimension)
    return torch.sparse_coo_tensor(places, torch.as_tensor(vectors.values_Z), size).coalesce()


def _dense(vectors: Any) -> Tensor:
    if not isinstance(vectors, Tensor):
        raise InputError(f"expected a tensor, got {type(vectors).__name__}")
    if vectors.ndim not in (1, 2):
        raise InputError(f"expected one or two dimensions, got {vectors.ndim}")
    return vectors.to_dense() if vectors.layout != torch.strided else vectors
