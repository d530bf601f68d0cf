"""Late-interaction models: ColBERT, PyLate, MultiVectorEncoder, bge-m3's ColBERT head."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from late_folders import body, pylate, stanford, words
from layouts import Equal, Refused, layout

ST = "sentence-transformers 6.2, MultiVectorEncoder"


def multi_vector_encoder(folder: Path, role: str) -> Equal:
    """Equal vectors on one side."""

    def vectors(texts: Sequence[str]) -> list[np.ndarray]:
        from sentence_transformers import MultiVectorEncoder

        model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
        return getattr(model, f"encode_{role}")(list(texts), convert_to_numpy=True)

    return Equal(vectors, encode={"role": role}, kind="multi-vector")


@layout("ColBERT, queries", like=["colbert-ir/colbertv2.0"], answer=ST)
def _(folder):
    return multi_vector_encoder(stanford(folder), "query")


@layout("ColBERT, documents", like=["answerdotai/answerai-colbert-small-v1"], answer=ST)
def _(folder):
    return multi_vector_encoder(stanford(folder), "document")


@layout("ColBERT as a dense model", like=["colbert-ir/colbertv2.0"])
def _(folder):
    stanford(folder)
    return Refused("MultiVectorEmbedder")


GTE = ["lightonai/GTE-ModernColBERT-v1", "lightonai/Reason-ModernColBERT"]


@layout("PyLate, ModernBERT, queries", like=GTE, answer=ST)
def _(folder):
    return multi_vector_encoder(pylate(folder, model_type="ColBERT"), "query")


@layout("PyLate, ModernBERT, documents", like=GTE, answer=ST)
def _(folder):
    return multi_vector_encoder(pylate(folder, model_type="ColBERT"), "document")


@layout("PyLate without model_type", like=["lightonai/colbertv2.0"], answer=ST)
def _(folder):
    return multi_vector_encoder(pylate(folder, "bert"), "document")


@layout(
    "PyLate, several Dense layers, no expansion",
    like=["mixedbread-ai/mxbai-edge-colbert-v0-17m"],
    answer=ST,
)
def _(folder):
    made = pylate(folder, sizes=(32, 24, 12), model_type="ColBERT", do_query_expansion=False)
    return multi_vector_encoder(made, "query")


@layout("PyLate as a dense model", like=GTE)
def _(folder):
    pylate(folder)
    return Refused("MultiVectorEmbedder")


@layout("MultiVectorEncoder", like=["lightonai/LateOn"], answer=ST)
def _(folder):
    from sentence_transformers import MultiVectorEncoder

    made = MultiVectorEncoder(str(pylate(folder / "pylate", model_type="ColBERT")), device="cpu")
    made.save_pretrained(str(folder))
    return multi_vector_encoder(folder, "query")


@layout("bge-m3, ColBERT head", like=["BAAI/bge-m3"], answer="FlagEmbedding's steps")
def _(folder):
    body(folder, "xlm-roberta", words())
    torch.save(torch.nn.Linear(32, 8).state_dict(), folder / "colbert_linear.pt")

    def vectors(texts: Sequence[str]) -> list[np.ndarray]:
        tokenizer = tf.AutoTokenizer.from_pretrained(folder)
        model = tf.AutoModel.from_pretrained(folder).eval()
        head = torch.load(folder / "colbert_linear.pt", weights_only=True)
        found = []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                states = model(input_ids=ids).last_hidden_state[0, 1:]
            projected = states @ head["weight"].T + head["bias"]
            found.append(torch.nn.functional.normalize(projected, dim=-1).numpy())
        return found

    return Equal(vectors, kind="multi-vector")
