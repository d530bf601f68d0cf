"""Sparse models: SPLADE, CSR, static weights, bge-m3's sparse head."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from families import VOCAB
from layouts import Equal, layout
from sparse_folders import inference_free, m3, masked, splade, static

ST = "sentence-transformers 6.2, SparseEncoder"


def sparse_encoder(folder: Path, method: str = "encode") -> Callable[[Sequence[str]], np.ndarray]:
    def vectors(texts: Sequence[str]) -> np.ndarray:
        from sentence_transformers import SparseEncoder

        model = SparseEncoder(str(folder), device="cpu", local_files_only=True)
        return getattr(model, method)(list(texts), convert_to_sparse_tensor=False).numpy()

    return vectors


NAVER = [
    "naver/splade-cocondenser-ensembledistil",
    "naver/splade-v3",
    "opensearch-project/opensearch-neural-sparse-encoding-v2-distill",
]


@layout("SPLADE, BERT", like=NAVER[:2], answer=ST)
def _(folder):
    return Equal(sparse_encoder(splade(folder)), kind="sparse")


@layout("SPLADE, DistilBERT", like=["naver/splade-v3-distilbert", NAVER[2]], answer=ST)
def _(folder):
    return Equal(sparse_encoder(splade(folder, "distilbert")), kind="sparse")


@layout("SPLADE, DistilBERT, logarithm twice", like=[], answer=ST)
def _(folder):
    pooling = {"activation_function": "log1p_relu"}
    return Equal(sparse_encoder(splade(folder, "distilbert", pooling)), kind="sparse")


@layout("SPLADE, ModernBERT", like=["sparse-encoder/splade-ModernBERT-nq-fresh"], answer=ST)
def _(folder):
    return Equal(sparse_encoder(splade(folder, "modernbert")), kind="sparse")


@layout("SPLADE, XLM-R, sum, max_active_dims", like=[], answer=ST)
def _(folder):
    made = splade(folder, "xlm-roberta", {"pooling_strategy": "sum"}, max_active_dims=8)
    return Equal(sparse_encoder(made), kind="sparse")


@layout("SPLADE, newest form (fill-mask)", like=["naver/splade-v3"], answer=ST)
def _(folder):
    from sentence_transformers import SparseEncoder

    made = masked(folder / "bare")
    SparseEncoder(str(made), device="cpu").save_pretrained(str(folder))
    return Equal(sparse_encoder(folder), kind="sparse")


@layout("SPLADE, bare masked model", like=["naver/efficient-splade-V-large-doc"], answer=ST)
def _(folder):
    return Equal(sparse_encoder(masked(folder)), load={"output": "sparse"}, kind="sparse")


@layout("CSR (sparse autoencoder)", like=["sparse-encoder/csr-mxbai-embed-large-v1-nq"], answer=ST)
def _(folder):
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    torch.manual_seed(0)
    encoder = SparseAutoEncoder(32, 64, k=6, k_aux=8)
    parts = [Transformer(str(masked(folder / "bare"))), Pooling(32, "mean"), encoder]
    SparseEncoder(modules=parts, device="cpu").save_pretrained(str(folder))
    return Equal(sparse_encoder(folder), kind="sparse")


@layout("sparse static weights", like=[], answer=ST)
def _(folder):
    return Equal(sparse_encoder(static(folder)), kind="sparse")


OPENSEARCH = ["opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill"]


@layout("SPLADE, inference-free, queries", like=OPENSEARCH, answer=ST)
def _(folder):
    vectors = sparse_encoder(inference_free(folder), "encode_query")
    return Equal(vectors, encode={"role": "query"}, kind="sparse")


@layout("SPLADE, inference-free, documents", like=OPENSEARCH, answer=ST)
def _(folder):
    vectors = sparse_encoder(inference_free(folder), "encode_document")
    return Equal(vectors, encode={"role": "document"}, kind="sparse")


@layout("bge-m3, sparse head", like=["BAAI/bge-m3"], answer="FlagEmbedding's steps")
def _(folder):
    made = m3(folder)

    def vectors(texts: Sequence[str]) -> np.ndarray:
        words = tf.AutoTokenizer.from_pretrained(made)
        body = tf.AutoModel.from_pretrained(made).eval()
        head = torch.load(made / "sparse_linear.pt", weights_only=True)
        out = np.zeros((len(texts), VOCAB), np.float32)
        for row, text in enumerate(texts):
            ids = words(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                states = body(input_ids=ids).last_hidden_state[0]
                weights = torch.relu(states @ head["weight"].T + head["bias"])[:, 0]
            for token, weight in zip(ids[0].tolist(), weights.tolist(), strict=True):
                if token > 3:  # not CLS, EOS, PAD or UNK
                    out[row, token] = max(out[row, token], weight)
        return out

    return Equal(vectors, load={"output": "sparse"}, kind="sparse")
