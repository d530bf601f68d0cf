"""Folders with modules beyond Transformer, Pooling and Normalize, and static models."""

from pathlib import Path

import numpy as np
import torch
from families import tokenizer
from folders import ST, bert, write
from layouts import Equal, Refused, layout, sentence_transformers
from safetensors.torch import save_file

DENSE = {"in_features": 32, "out_features": 16, "bias": True,
         "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
WORDS = ["PADDING_TOKEN", "cat", "sat", "mat", "dog", "looks", "two", "nobody", "text", "very"]


def listed(folder: Path, *kinds: str, first: str = "") -> None:
    """modules.json with the old names of classes."""
    paths = [first, *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], start=1))]
    write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
        ],
    )


def dense(folder: Path, seed: int, **config: object) -> None:
    torch.manual_seed(seed)
    config = DENSE | config
    write(folder / "config.json", config)
    layer = torch.nn.Linear(config["in_features"], config["out_features"], bias=config["bias"])
    weights = {f"linear.{name}": tensor.detach() for name, tensor in layer.named_parameters()}
    save_file(weights, folder / "model.safetensors")


def table(folder: Path, name: str, seed: int = 1) -> torch.Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    rows = torch.randn(len(tokenizer()), 32)
    save_file({name: rows}, folder / "model.safetensors")
    tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    return rows


def words(folder: Path) -> None:
    """WordEmbeddings with the whitespace tokenizer, as version 2 wrote them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(2)
    rows = torch.randn(len(WORDS), 32)
    rows[0] = 0
    save_file({"emb_layer.weight": rows}, folder / "model.safetensors")
    write(
        folder / "wordembedding_config.json",
        {
            "tokenizer_class": (
                "sentence_transformers.models.tokenizer.WhitespaceTokenizer.WhitespaceTokenizer"
            ),
            "update_embeddings": False,
            "max_seq_length": 1000000,
        },
    )
    write(
        folder / "whitespacetokenizer_config.json",
        {"vocab": WORDS, "stop_words": ["a", "the"], "do_lower_case": False},
    )


@layout("BERT with Dense", answer=ST, like=["models trained with sentence-transformers' Dense"])
def _(folder):
    bert(folder)
    listed(folder, "Transformer", "Pooling", "Dense")
    write(folder / "1_Pooling" / "config.json", MEAN)
    dense(folder / "2_Dense", 3)
    return Equal(sentence_transformers(folder))


@layout("BERT with Dense and Normalize", answer=ST,
        like=["models trained with sentence-transformers' Dense"])  # fmt: skip
def _(folder):
    bert(folder)
    listed(folder, "Transformer", "Pooling", "Dense", "Normalize")
    write(folder / "1_Pooling" / "config.json", MEAN)
    (folder / "3_Normalize").mkdir()
    dense(folder / "2_Dense", 3, activation_function="torch.nn.modules.linear.Identity", bias=False)
    return Equal(sentence_transformers(folder))


@layout("two Dense in a row", answer=ST, like=[])
def _(folder):
    bert(folder)
    listed(folder, "Transformer", "Pooling", "Dense", "Dense", "Normalize")
    write(folder / "1_Pooling" / "config.json", MEAN)
    identity = "torch.nn.modules.linear.Identity"
    dense(folder / "2_Dense", 3, out_features=64, bias=False, activation_function=identity)
    dense(folder / "3_Dense", 4, in_features=64, bias=False, activation_function=identity)
    (folder / "4_Normalize").mkdir()
    return Equal(sentence_transformers(folder))


@layout("Dropout", answer=ST, like=["models trained with sentence-transformers' Dropout"])
def _(folder):
    bert(folder)
    listed(folder, "Transformer", "Pooling", "Dropout", "Dense")
    write(folder / "1_Pooling" / "config.json", MEAN)
    write(folder / "2_Dropout" / "config.json", {"dropout": 0.2})
    dense(folder / "3_Dense", 3)
    return Equal(sentence_transformers(folder))


@layout("Dense of token embeddings", answer=ST, like=["sentence-transformers 5 and later"])
def _(folder):
    bert(folder)
    listed(folder, "Transformer", "Dense", "Pooling")
    dense(folder / "1_Dense", 3, module_input_name="token_embeddings")
    write(folder / "2_Pooling" / "config.json", MEAN | {"word_embedding_dimension": 16})
    return Equal(sentence_transformers(folder))


@layout("WordEmbeddings", answer=ST,
        like=["sentence-transformers/average_word_embeddings_glove.6B.300d",
              "sentence-transformers/average_word_embeddings_komninos"])  # fmt: skip
def _(folder):
    words(folder / "0_WordEmbeddings")
    listed(folder, "WordEmbeddings", "Pooling", first="0_WordEmbeddings")
    write(folder / "1_Pooling" / "config.json", MEAN)
    return Equal(sentence_transformers(folder))


@layout("WordEmbeddings with weights", answer=ST,
        like=["sentence-transformers/average_word_embeddings_levy_dependency"])  # fmt: skip
def _(folder):
    words(folder / "0_WordEmbeddings")
    listed(folder, "WordEmbeddings", "WordWeights", "Pooling", first="0_WordEmbeddings")
    inside = folder / "1_WordWeights"
    weights = {"cat": 2.0, "dog": 0.5}
    write(inside / "config.json", {"vocab": WORDS, "word_weights": weights,
                                   "unknown_word_weight": 1})  # fmt: skip
    values = torch.tensor([[weights.get(word, 1.0)] for word in WORDS])
    save_file({"emb_layer.weight": values}, inside / "model.safetensors")
    write(folder / "2_Pooling" / "config.json", MEAN)
    return Equal(sentence_transformers(folder))


@layout("bag of words", answer=ST, like=["sentence-transformers' BoW"])
def _(folder):
    listed(folder, "BoW", first="0_BoW")
    write(folder / "0_BoW" / "config.json",
          {"vocab": WORDS[1:], "word_weights": {"cat": 2.0}, "unknown_word_weight": 1,
           "cumulative_term_frequency": True})  # fmt: skip
    return Equal(sentence_transformers(folder))


@layout("static, in a folder of its own", answer=ST,
        like=["sentence-transformers/static-retrieval-mrl-en-v1",
              "sentence-transformers/static-similarity-mrl-multilingual-v1"])  # fmt: skip
def _(folder):
    table(folder / "0_StaticEmbedding", "embedding.weight")
    listed(folder, "StaticEmbedding", first="0_StaticEmbedding")
    return Equal(sentence_transformers(folder))


@layout("model2vec", answer="model2vec 0.10's arithmetic: mean of the known words",
        like=["minishlab/potion-base-8M", "minishlab/potion-retrieval-32M"])  # fmt: skip
def _(folder):
    rows = table(folder, "embeddings")
    write(folder / "config.json",
          {"model_type": "model2vec", "architectures": ["StaticModel"], "apply_zipf": True,
           "hidden_dim": 32, "seq_length": 1000000, "normalize": True})  # fmt: skip
    listed(folder, "StaticEmbedding", "Normalize", first=".")
    backend, unknown = tokenizer().backend_tokenizer, tokenizer().unk_token_id

    def reference(texts):
        ids = [backend.encode(text, add_special_tokens=False).ids for text in texts]
        means = [rows[[i for i in each if i != unknown]].mean(0).numpy() for each in ids]
        return np.stack([mean / np.linalg.norm(mean) for mean in means])

    return Equal(reference, texts=["a cat @ sat", "the dog", "@ nobody looks"])


def router(folder: Path) -> None:
    """A static table for queries, a transformer for documents."""
    table(folder / "query_0_StaticEmbedding", "embedding.weight")
    bert(folder / "document_0_Transformer")
    write(folder / "document_0_Transformer" / "sentence_bert_config.json", {"max_seq_length": 32})
    write(folder / "document_1_Pooling" / "config.json", MEAN)
    kinds = ("query_0_StaticEmbedding", "document_0_Transformer", "document_1_Pooling")
    path = "sentence_transformers.models."
    write(
        folder / "router_config.json",
        {
            "types": {name: path + name.rpartition("_")[2] for name in kinds},
            "structure": {"query": [kinds[0]], "document": list(kinds[1:])},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        },
    )
    listed(folder, "Router", "Normalize")
    (folder / "1_Normalize").mkdir()


@layout("Router: queries through a table", answer=ST,
        like=["sentence-transformers' Router", "asymmetric static models"])  # fmt: skip
def _(folder):
    router(folder)
    return Equal(sentence_transformers(folder, method="encode_query"), encode={"role": "query"})


@layout("Router: documents through a transformer", answer=ST,
        like=["sentence-transformers' Router"])  # fmt: skip
def _(folder):
    router(folder)
    return Equal(
        sentence_transformers(folder, method="encode_document"), encode={"role": "document"}
    )


@layout("Asym of before sentence-transformers 5", answer=ST, like=["sentence-transformers' Asym"])
def _(folder):
    bert(folder)
    listed(folder, "Transformer", "Pooling", "Asym")
    write(folder / "1_Pooling" / "config.json", MEAN)
    for seed, name in enumerate(("query-0", "doc-0")):
        dense(folder / "2_Asym" / name, seed)
    kind = "sentence_transformers.models.Dense.Dense"
    write(
        folder / "2_Asym" / "config.json",
        {
            "types": {"query-0": kind, "doc-0": kind},
            "structure": {"query": ["query-0"], "doc": ["doc-0"]},
            "parameters": {"allow_empty_key": True},
        },
    )
    encode = {"role": "query"}
    return Equal(sentence_transformers(folder, method="encode_query"), encode=encode)


@layout("Dense before the pooling", like=[])
def _(folder):
    bert(folder)
    listed(folder, "Transformer", "Dense", "Pooling")
    dense(folder / "1_Dense", 3)
    write(folder / "2_Pooling" / "config.json", MEAN)
    return Refused("comes before the Pooling")


@layout("a CLIP text and image model", like=["sentence-transformers/clip-ViT-B-32"])
def _(folder):
    folder.mkdir(exist_ok=True)
    listed(folder, "CLIPModel", first="0_CLIPModel")
    return Refused("CLIP")
