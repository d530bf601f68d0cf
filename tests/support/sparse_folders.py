"""Tiny sparse models, with the files that sentence-transformers and FlagEmbedding write."""

import json
from pathlib import Path

import torch
import transformers as tf
from families import ENCODER_SIZES, VOCAB, tokenizer

SPARSE = "sentence_transformers.sparse_encoder.models"
SIZES = {"vocab_size": VOCAB, **ENCODER_SIZES}
DISTILBERT = {"vocab_size": VOCAB, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}


def masked(folder: Path, family: str = "bert") -> Path:
    """A bare masked language model."""
    torch.manual_seed(0)
    config = tf.AutoConfig.for_model(family, **(DISTILBERT if family == "distilbert" else SIZES))
    model = tf.AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    model.save_pretrained(folder)
    words = tokenizer()
    words.model_max_length = 48
    words.save_pretrained(folder)
    return folder


def splade(folder: Path, family: str = "bert", pooling: dict | None = None, **stored) -> Path:
    """A folder as naver's and opensearch's SPLADE models have it."""
    masked(folder, family)
    kinds = [("", "MLMTransformer"), ("1_SpladePooling", "SpladePooling")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"{SPARSE}.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    own = {
        "pooling_strategy": "max",
        "activation_function": "relu",
        "word_embedding_dimension": None,
    }
    (folder / "1_SpladePooling").mkdir()
    write(folder / "modules.json", listed)
    write(folder / "1_SpladePooling" / "config.json", own | (pooling or {}))
    write(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    known = {"model_type": "SparseEncoder", "prompts": {"query": "", "document": ""}}
    known |= {"default_prompt_name": None, "similarity_fn_name": "dot"}
    write(folder / "config_sentence_transformers.json", known | stored)
    return folder


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def static(folder: Path) -> Path:
    """A SparseStaticEmbedding alone: the query side of inference-free SPLADE."""
    torch.manual_seed(0)
    words = tokenizer()
    words.model_max_length = 20
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder import modules

    module = modules.SparseStaticEmbedding(words, weight=torch.rand(VOCAB) + 0.1)
    SparseEncoder(modules=[module], device="cpu").save_pretrained(str(folder))
    return folder


def m3(folder: Path) -> Path:
    """bge-m3: XLM-R, CLS pooling, and two more heads as torch files."""
    torch.manual_seed(0)
    config = tf.XLMRobertaConfig(**{**SIZES, "initializer_range": 0.5})
    tf.XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    words = tokenizer(cls_token="<s>", sep_token="</s>")
    words.save_pretrained(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ],
    )
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}
    write(folder / "1_Pooling" / "config.json", pooling)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    for name, size in (("sparse_linear.pt", 1), ("colbert_linear.pt", 16)):
        torch.save(torch.nn.Linear(32, size).state_dict(), folder / name)
    return folder


def inference_free(folder: Path, **options) -> Path:
    """As opensearch's doc models: a Router of static weights (query) and SPLADE (document)."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sparse_encoder import modules

    bare = masked(folder.parent / "bare", "distilbert")
    words = tokenizer()
    words.model_max_length = 48
    router = Router.for_query_document(
        query_modules=[
            modules.SparseStaticEmbedding(words, weight=torch.rand(VOCAB) + 0.1, frozen=True)
        ],
        document_modules=[
            Transformer(str(bare), transformer_task="fill-mask"),
            modules.SpladePooling("max", activation_function="log1p_relu"),
        ],
    )
    made = SparseEncoder(modules=[router], device="cpu", similarity_fn_name="dot", **options)
    made.save_pretrained(str(folder))
    return folder
