"""The most used sentence-transformers models of other backbones than BERT."""

import json

import torch
import transformers as tf
from families import FAMILIES, tokenizer
from folders import ST, modules, pickled, write
from layouts import Equal, layout, sentence_transformers
from tokenizers import processors

TANH = "torch.nn.modules.activation.Tanh"
IDENTITY = "torch.nn.modules.linear.Identity"


def backbone(folder, config, *, specials=True, model=None):
    """A random model of a family with its tokenizer; weights large enough to tell texts apart."""
    torch.manual_seed(0)
    made = model(config) if model else tf.AutoModel.from_config(config)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
    made.eval().save_pretrained(folder)
    words = tokenizer(bos=specials, eos=specials)
    words.save_pretrained(folder)
    return words


def dense(folder, *layers, normalize=True, pickle=False):
    """Dense modules behind the pooling, each (inputs, outputs, bias, activation)."""
    listed = json.loads((folder / "modules.json").read_text())[:2]
    for idx, (size, out, bias, activation) in enumerate(layers, 2):
        path = folder / f"{idx}_Dense"
        settings = {"in_features": size, "out_features": out, "bias": bias}
        write(path / "config.json", {**settings, "activation_function": activation})
        torch.manual_seed(idx)
        layer = torch.nn.Linear(size, out, bias=bias)
        state = {f"linear.{name}": tensor for name, tensor in layer.state_dict().items()}
        torch.save(state, path / "pytorch_model.bin") if pickle else save(state, path)
        listed.append({**listed[1], "idx": idx, "name": str(idx), "path": path.name})
        listed[-1]["type"] = "sentence_transformers.models.Dense"
    if normalize:
        idx = len(listed)
        end = {"idx": idx, "name": str(idx), "path": f"{idx}_Normalize"}
        listed.append({**end, "type": "sentence_transformers.models.Normalize"})
    write(folder / "modules.json", listed)


def save(state, path):
    from safetensors.torch import save_file

    save_file(state, path / "model.safetensors")


def t5(folder):
    config = tf.T5Config(
        vocab_size=len(tokenizer()), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    backbone(folder, config, model=tf.T5EncoderModel)
    modules(folder, "mean")


@layout(
    "T5 encoder, mean, pickled Dense, normalised",
    like=["sentence-transformers/sentence-t5-base", "sentence-transformers/gtr-t5-large"],
    answer=ST,
)
def _(folder):
    t5(folder)
    dense(folder, (32, 24, False, IDENTITY), pickle=True)
    pickled(folder)
    return Equal(sentence_transformers(folder))


@layout(
    "INSTRUCTOR: T5, the instruction is not pooled",
    like=["hkunlp/instructor-large", "hkunlp/instructor-xl"],
    answer=ST,
)
def _(folder):
    # Known by its name, as its folder does not say that prompts are not pooled.
    named = folder / "instructor-large"
    t5(named)
    dense(named, (32, 24, False, IDENTITY))
    for path in list(named.iterdir()):
        (folder / path.name).symlink_to(path)
    prompt = "represent the passage : "

    def vectors(texts):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(named), device="cpu")
        model.set_pooling_include_prompt(False)  # what it does for the three hub ids
        return model.encode(list(texts), prompt=prompt)

    return Equal(vectors, folder=named, encode={"prompt": prompt})


@layout("MPNet, mean, normalised", like=["sentence-transformers/all-mpnet-base-v2"], answer=ST)
def _(folder):
    backbone(folder, FAMILIES["mpnet"][0]())
    modules(folder, "mean", normalize=True, max_seq_length=48)
    return Equal(sentence_transformers(folder))


@layout(
    "BERT with XLM-R's vocabulary",
    like=["sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"],
    answer=ST,
)
def _(folder):
    backbone(folder, FAMILIES["bert"][0]())
    modules(folder, "mean", max_seq_length=48)
    path = folder / "tokenizer_config.json"
    write(path, {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"})
    return Equal(sentence_transformers(folder))


@layout(
    "DistilBERT, mean, Dense with tanh",
    like=["sentence-transformers/distiluse-base-multilingual-cased-v2"],
    answer=ST,
)
def _(folder):
    backbone(folder, FAMILIES["distilbert"][0]())
    modules(folder, "mean", max_seq_length=48)
    dense(folder, (32, 24, True, TANH), normalize=False)
    return Equal(sentence_transformers(folder))


@layout(
    "XLM-R, mean, normalised",
    like=["intfloat/multilingual-e5-base", "intfloat/multilingual-e5-large-instruct"],
    answer=ST,
)
def _(folder):
    backbone(folder, FAMILIES["xlm_roberta"][0]())
    modules(folder, "mean", normalize=True, max_seq_length=48)
    return Equal(sentence_transformers(folder), texts=("query: a cat", "passage: the dog sat"))


@layout(
    "XLM-R, CLS, a prompt for queries",
    like=["Snowflake/snowflake-arctic-embed-l-v2.0", "BAAI/bge-m3 (dense)"],
    answer=ST,
)
def _(folder):
    backbone(folder, FAMILIES["xlm_roberta"][0]())
    modules(folder, "cls", normalize=True, max_seq_length=48)
    stored = {"prompts": {"query": "query: "}, "similarity_fn_name": "cosine"}
    write(folder / "config_sentence_transformers.json", stored)
    reference = sentence_transformers(folder, method="encode_query")
    return Equal(reference, encode={"role": "query"})


@layout(
    "ModernBERT, mean",
    like=["nomic-ai/modernbert-embed-base", "Alibaba-NLP/gte-modernbert-base"],
    answer=ST,
)
def _(folder):
    backbone(folder, FAMILIES["modernbert"][0]())
    modules(folder, "mean", max_seq_length=48)
    return Equal(sentence_transformers(folder))


@layout(
    "ModernBERT, CLS, normalised",
    like=["ibm-granite/granite-embedding-english-r2", "lightonai/modernbert-embed-large"],
    answer=ST,
)
def _(folder):
    backbone(folder, FAMILIES["modernbert"][0]())
    modules(folder, "cls", normalize=True, max_seq_length=48)
    return Equal(sentence_transformers(folder))


@layout("RoBERTa, CLS, normalised", like=["ibm-granite/granite-embedding-125m-english"], answer=ST)
def _(folder):
    backbone(folder, FAMILIES["roberta"][0]())
    modules(folder, "cls", normalize=True, max_seq_length=48)
    return Equal(sentence_transformers(folder))


@layout(
    "Qwen3, the last token, an instruction for queries",
    like=["Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-8B"],
    answer="plain transformers",
)
def _(folder):
    words = backbone(folder, FAMILIES["qwen3"][0](), specials=False)
    words.padding_side = "left"
    # Its tokenizer.json ends every text in <|endoftext|>, which is its PAD.
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <pad>", special_tokens=[("<pad>", 0)]
    )
    words.save_pretrained(folder)
    modules(folder, "lasttoken", normalize=True, max_seq_length=48)
    prompt = "instruct : a long query : "
    stored = {"prompts": {"query": prompt, "document": ""}, "similarity_fn_name": "cosine"}
    write(folder / "config_sentence_transformers.json", stored)

    def vectors(texts):  # transformers 5 reads the replica's words as Qwen2's
        model = tf.Qwen3Model.from_pretrained(folder).eval()
        ids = [words.backend_tokenizer.encode(prompt + text).ids for text in texts]
        with torch.no_grad():
            last = [model(torch.tensor([each])).last_hidden_state[0, -1] for each in ids]
        return torch.nn.functional.normalize(torch.stack(last), dim=-1).numpy()

    return Equal(vectors, encode={"role": "query"})


@layout(
    "Gemma 3, bidirectional, mean, two Dense",
    like=["google/embeddinggemma-300m"],
    answer=ST,
)
def _(folder):
    config = tf.Gemma3TextConfig(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
        sliding_window=16, layer_types=["sliding_attention", "full_attention"],
        use_bidirectional_attention=True, query_pre_attn_scalar=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    backbone(folder, config)
    path = folder / "tokenizer_config.json"
    write(path, {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"})
    modules(folder, "mean", max_seq_length=48)
    dense(folder, (32, 64, False, IDENTITY), (64, 32, False, IDENTITY))
    prompts = {"query": "query : ", "document": "title : "}
    stored = {"prompts": prompts, "similarity_fn_name": "cosine"}
    write(folder / "config_sentence_transformers.json", stored)
    reference = sentence_transformers(folder, method="encode_document")
    return Equal(reference, encode={"role": "document"})
