"""Folders of sentence-transformers encoders, and folders that hold no embedder."""

import json
from pathlib import Path

import torch
import transformers as tf
from families import tokenizer
from layouts import Equal, Refused, layout, sentence_transformers
from safetensors.torch import load_file

ST = "sentence-transformers 6.2"
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def bert(folder: Path, **config: object) -> None:
    """A random BERT of 32 dimensions with its tokenizer."""
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
        "pad_token_id": 0, "initializer_range": 0.4,
    }  # fmt: skip
    tf.BertModel(tf.BertConfig(**sizes | config)).eval().save_pretrained(folder)
    words.save_pretrained(folder)


def modules(folder: Path, pooling: str, *, normalize: bool = False, **more: object) -> None:
    """The legacy files of a sentence-transformers folder, as most of the hub has them."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
        ],
    )
    flags = {flag: name == pooling for name, flag in POOLINGS.items()}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **flags})
    write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": 32, "do_lower_case": False, **more},
    )


@layout("BERT, CLS, normalised", like=["BAAI/bge-small-en-v1.5", "BAAI/bge-large-zh"], answer=ST)
def _(folder):
    bert(folder)
    modules(folder, "cls", normalize=True)
    return Equal(sentence_transformers(folder))


@layout("empty folder", like=[])
def _(folder):
    return Refused("not a model folder")


@layout("E5: BERT, mean, normalised, prompts in the text", like=["intfloat/e5-small-v2"], answer=ST)
def _(folder):
    bert(folder)
    modules(folder, "mean", normalize=True)
    return Equal(sentence_transformers(folder), texts=("query: a cat", "passage: the dog sat"))


@layout(
    "BERT with stored prompts",
    like=["mixedbread-ai/mxbai-embed-large-v1", "Snowflake/snowflake-arctic-embed-m"],
    answer=ST,
)
def _(folder):
    bert(folder)
    modules(folder, "cls", max_seq_length=64)
    prompt = "Represent this sentence for searching relevant passages: "
    stored = {"prompts": {"query": prompt, "passage": ""}, "similarity_fn_name": "cosine"}
    write(folder / "config_sentence_transformers.json", stored)
    reference = sentence_transformers(folder, method="encode_query")
    return Equal(reference, encode={"role": "query"})


@layout("bare checkpoint", like=["facebook/contriever", "thenlper/gte-base"], answer=ST)
def _(folder):
    bert(folder)
    pickled(folder)
    return Equal(sentence_transformers(folder))


def pickled(folder: Path) -> None:
    """The weights as older programs wrote them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@layout(
    "Dense with a pickle, CLS, normalised",
    like=["sentence-transformers/LaBSE"],
    answer=ST,
)
def _(folder):
    bert(folder)
    modules(folder, "cls", normalize=True)
    listed = json.loads((folder / "modules.json").read_text())
    dense = {**listed[1], "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    listed = [*listed[:2], {**dense, "idx": 2, "name": "2"}, {**listed[2], "idx": 3, "name": "3"}]
    listed[3]["path"] = "3_Normalize"
    write(folder / "modules.json", listed)
    config = {"in_features": 32, "out_features": 32, "bias": True}
    config["activation_function"] = "torch.nn.modules.activation.Tanh"
    write(folder / "2_Dense" / "config.json", config)
    layer = torch.nn.Linear(32, 32)
    state = {f"linear.{name}": tensor for name, tensor in layer.state_dict().items()}
    torch.save(state, folder / "2_Dense" / "pytorch_model.bin")
    return Equal(sentence_transformers(folder))


@layout(
    "transformer in 0_Transformer/, no config.json at the root",
    like=["sentence-transformers/msmarco-distilbert-base-tas-b"],
    answer=ST,
)
def _(folder):
    bert(folder / "0_Transformer")
    modules(folder, "cls")
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    write(folder / "modules.json", listed)
    (folder / "sentence_bert_config.json").rename(
        folder / "0_Transformer" / "sentence_distilbert_config.json"
    )
    return Equal(sentence_transformers(folder))


@layout("settings of version 6", like=["saved by sentence-transformers 6"], answer=ST)
def _(folder):
    bert(folder)
    modules(folder, "mean")
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": text},
        "module_output_name": "token_embeddings",
        "processing_kwargs": {"text": {"max_length": 8}},
    }
    write(folder / "sentence_bert_config.json", settings)
    return Equal(sentence_transformers(folder))


def classifier(folder: Path) -> None:
    bert(folder)
    config = tf.BertConfig.from_pretrained(folder)
    config.num_labels = 1
    tf.BertForSequenceClassification(config).save_pretrained(folder)


@layout("cross-encoder", like=["BAAI/bge-reranker-base", "cross-encoder/ms-marco-MiniLM-L6-v2"])
def _(folder):
    classifier(folder)
    return Refused("cross-encoder, reranker or classifier.*CrossEncoder")


@layout("CrossEncoder of version 6", like=["saved by sentence-transformers 6"])
def _(folder):
    classifier(folder)
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    write(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    write(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    return Refused("cross-encoder")


@layout("reranker of a decoder", like=["Qwen/Qwen3-Reranker-0.6B"])
def _(folder):
    bert(folder)
    (folder / "README.md").write_text("---\npipeline_tag: text-ranking\n---\n# Reranker\n")
    return Refused("reranker")


@layout("CLIP", like=["openai/clip-vit-base-patch32"])
def _(folder):
    write(folder / "config.json", {"model_type": "clip", "architectures": ["CLIPModel"]})
    return Refused("images and texts")


@layout("CLIP of sentence-transformers", like=["sentence-transformers/clip-ViT-B-32"])
def _(folder):
    kind = "sentence_transformers.models.CLIPModel"
    path = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": kind}
    write(folder / "modules.json", [path])
    return Refused("images and texts")


def holds(*names: str, **config: object):
    """A folder with files of these names, and a config.json if there are settings for it."""

    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
        if config:
            bert(folder)
            (folder / "model.safetensors").unlink()
            read = json.loads((folder / "config.json").read_text())
            write(folder / "config.json", {**read, **config})

    return make


BERT = {"model_type": "bert"}
FOREIGN = {
    "several GGUF files": (
        ["Qwen/Qwen3-Embedding-0.6B-GGUF"],
        holds("model-Q8_0.gguf", "model-f16.gguf"),
        "2 models in GGUF.*give one of them",
    ),
    "ONNX only": (["Xenova/all-MiniLM-L6-v2"], holds("onnx/model.onnx", **BERT), "ONNX"),
    "OpenVINO only": (["openvino exports"], holds("openvino_model.xml", **BERT), "OpenVINO"),
    "TensorFlow weights": (["tf_model.h5 only"], holds("tf_model.h5", **BERT), "TensorFlow"),
    "Flax weights": (["flax_model.msgpack only"], holds("flax_model.msgpack", **BERT), "Flax"),
    "training run": (
        ["output_dir of a Trainer"],
        holds("checkpoint-500/config.json", "checkpoint-1000/config.json"),
        "training run.*checkpoint-1000",
    ),
    "checkpoint without weights": (
        ["a Trainer's checkpoint"], holds("trainer_state.json", "optimizer.pt"), "training run"
    ),
    "tokenizer only": (["a tokenizer's folder"], holds("tokenizer.json"), "holds a tokenizer"),
    "weights without config.json": (["weights alone"], holds("model.safetensors"), "config.json"),
    "config.json without weights": (["an incomplete copy"], holds(**BERT), "no weights"),
    "GPTQ": (
        ["GPTQ exports"], holds(quantization_config={"quant_method": "gptq"}), "pip install gptq"
    ),
    "AWQ": (["AWQ exports"], holds(quantization_config={"quant_method": "awq"}), "pip install"),
    "bitsandbytes": (
        ["4-bit copies"], holds(quantization_config={"quant_method": "bitsandbytes"}), "pip install"
    ),
    "compressed-tensors": (
        ["RedHatAI's quantised copies"],
        holds(quantization_config={"quant_method": "compressed-tensors"}),
        "pip install compressed-tensors",
    ),
}  # fmt: skip


def _refused(make, message):
    def layout_of(folder: Path) -> Refused:
        make(folder)
        return Refused(message)

    return layout_of


for _name, (_like, _make, _message) in FOREIGN.items():
    layout(_name, like=_like)(_refused(_make, _message))


@layout("pointer of git-lfs", like=["a clone without git-lfs"])
def _(folder):
    bert(folder)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n"
    (folder / "model.safetensors").write_text(pointer)
    return Refused("git lfs pull")


@layout("truncated weights", like=["a download that broke off"])
def _(folder):
    bert(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return Refused("truncated")


class _Code:
    def __reduce__(self):
        return print, ("ran",)


@layout("pickle with code", like=["a malicious pytorch_model.bin"])
def _(folder):
    bert(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": _Code()}, folder / "pytorch_model.bin")
    return Refused("could run code")
