"""Decoders whose makers ship their own code, and decoders that need none."""

import json

import torch
import transformers as tf
from families import tokenizer
from folders import ST, modules
from layouts import Equal, Refused, layout, sentence_transformers
from own_code import change, code, decoder, ids, latent_vectors, nv_embed, states
from torch.nn import functional as F

REFERENCE = "plain transformers with the mask and pooling of the maker's code"
QWEN = {
    "AutoModel": "modeling_qwen.Qwen2Model",
    "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
    "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
}
INSTRUCT = "Instruct: looks for text\nQuery: "


def mean(model, texts, first, last=()):
    """Means of the states after the first tokens."""
    found = [states(model, [*first, *ids(text), *last])[len(first) :].mean(0) for text in texts]
    return torch.stack(found)


def prompts(folder, **named):
    """The prompts that a sentence-transformers folder stores."""
    change(folder / "config_sentence_transformers.json", prompts=named, similarity_fn_name="cosine")


@layout(
    "gte-Qwen2: bidirectional Qwen2, EOS pooled",
    like=["Alibaba-NLP/gte-Qwen2-1.5B-instruct", "Alibaba-NLP/gte-Qwen2-7B-instruct",
          "infly/inf-retriever-v1"],
    answer=REFERENCE,
)  # fmt: skip
def _(folder):
    decoder(folder, "qwen2", architectures=["Qwen2ForCausalLM"], auto_map=QWEN)
    change(folder / "tokenizer_config.json", add_eos_token=True)
    modules(folder, "lasttoken", normalize=True)
    prompts(folder, query=INSTRUCT)

    def vectors(texts):
        model = tf.Qwen2Model.from_pretrained(folder)
        last = [states(model, [1, *ids(INSTRUCT + text), 2])[-1] for text in texts]
        return F.normalize(torch.stack(last), dim=-1).numpy()

    return Equal(vectors, encode={"prompt_name": "query"})


@layout("stella: bidirectional Qwen2, mean, Dense", like=["NovaSearch/stella_en_1.5B_v5"],
        answer=REFERENCE)  # fmt: skip
def _(folder):
    decoder(folder, "qwen2", architectures=["Qwen2ForCausalLM"], auto_map=QWEN)
    change(folder / "tokenizer_config.json", add_eos_token=True)
    modules(folder, "mean")
    torch.manual_seed(3)
    dense = torch.nn.Linear(32, 24)
    inside = folder / "2_Dense_1024"
    inside.mkdir()
    tensors = {"linear.weight": dense.weight.data, "linear.bias": dense.bias.data}
    from safetensors.torch import save_file

    save_file(tensors, inside / "model.safetensors")
    settings = {"in_features": 32, "out_features": 24, "bias": True}
    name = "torch.nn.modules.linear.Identity"
    (inside / "config.json").write_text(json.dumps({**settings, "activation_function": name}))
    listed = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.Dense"
    listed.append({"idx": 2, "name": "2", "path": "2_Dense_1024", "type": kind})
    (folder / "modules.json").write_text(json.dumps(listed))

    def vectors(texts):
        model = tf.Qwen2Model.from_pretrained(folder)
        found = [states(model, [1, *ids(text), 2]).mean(0) for text in texts]
        return dense(torch.stack(found)).detach().numpy()

    return Equal(vectors)


@layout("GritLM: bidirectional Mistral, mean without its prompt",
        like=["GritLM/GritLM-7B", "parasail-ai/GritLM-7B-vllm"], answer=REFERENCE)  # fmt: skip
def _(folder):
    auto = code("modeling_gritlm7b.MistralModel")
    decoder(folder, "mistral", sliding_window=4, architectures=["MistralForCausalLM"], **auto)
    prompt = "<|user|>\nlooks for text\n<|embed|>\n"

    def vectors(texts):
        config = tf.MistralConfig.from_pretrained(folder, sliding_window=None)
        model = tf.MistralModel.from_pretrained(folder, config=config)
        return F.normalize(mean(model, texts, [1, *ids(prompt)]), dim=-1).numpy()

    return Equal(vectors, encode={"prompt": prompt})


@layout("NV-Embed: bidirectional Mistral and latent attention",
        like=["nvidia/NV-Embed-v2", "nvidia/NV-Embed-v1"], answer=REFERENCE)  # fmt: skip
def _(folder):
    nv_embed(folder)
    modules(folder, "mean", normalize=True)
    change(folder / "sentence_bert_config.json", max_seq_length=128)
    change(folder / "1_Pooling/config.json", include_prompt=False)
    return Equal(
        lambda texts: latent_vectors(folder, texts, INSTRUCT).numpy(), encode={"prompt": INSTRUCT}
    )


@layout("Llama-Nemotron: bidirectional Llama, mean",
        like=["nvidia/llama-embed-nemotron-8b", "nvidia/llama-3.2-nv-embedqa-1b-v2",
              "nvidia/llama-nemotron-embed-1b-v2"],
        answer=REFERENCE)  # fmt: skip
def _(folder):
    decoder(folder, "llama")
    model = tf.LlamaModel.from_pretrained(folder)
    auto = {
        "AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig",
        "AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel",
    }
    change(
        folder / "config.json", model_type="llama_bidirec", pooling="avg", auto_map=auto,
        architectures=["LlamaBidirectionalModel"],
    )  # fmt: skip
    modules(folder, "mean", normalize=True)

    def vectors(texts):
        found = torch.stack([states(model, [1, *ids(text)]).mean(0) for text in texts])
        return F.normalize(found, dim=-1).numpy()

    return Equal(vectors)


@layout("LLM2Vec, merged: bidirectional Llama in its chat frame",
        like=["McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp"], answer=REFERENCE)  # fmt: skip
def _(folder):
    base = "meta-llama/Meta-Llama-3-8B-Instruct"
    auto = code("modeling_llama_encoder.LlamaEncoderModel")
    decoder(folder, "llama", architectures=["LlamaEncoderModel"], _name_or_path=base, **auto)
    frame = "<|start_header_id|>user<|end_header_id|>\n\n"

    def vectors(texts):
        model = tf.LlamaModel.from_pretrained(folder)
        return mean(model, texts, [1, *ids(frame)], ids("<|eot_id|>")).numpy()

    return Equal(vectors)


@layout("Mistral, EOS pooled",
        like=["Salesforce/SFR-Embedding-Mistral", "Linq-AI-Research/Linq-Embed-Mistral"],
        answer=ST)  # fmt: skip
def _(folder):
    decoder(folder, "mistral", eos=True, architectures=["MistralModel"])
    modules(folder, "lasttoken", normalize=True)
    return Equal(sentence_transformers(folder))


@layout("KaLM: causal Qwen2, mean",
        like=["HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v1"],
        answer="plain transformers")  # fmt: skip
def _(folder):
    decoder(folder, "qwen2", architectures=["Qwen2Model"])
    modules(folder, "mean", normalize=True)

    def vectors(texts):  # transformers 5 reads a replica's tokenizer.json as Qwen2's
        model = tf.Qwen2Model.from_pretrained(folder).eval()
        with torch.no_grad():
            found = [model(torch.tensor([[1, *ids(text)]])).last_hidden_state for text in texts]
        return F.normalize(torch.stack([each[0].mean(0) for each in found]), dim=-1).numpy()

    return Equal(vectors)


@layout("Gemma 2, EOS pooled", like=["BAAI/bge-multilingual-gemma2"], answer=ST)
def _(folder):
    torch.manual_seed(0)
    config = tf.Gemma2Config(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, query_pre_attn_scalar=8,
        initializer_range=0.2,
    )  # fmt: skip
    tf.Gemma2Model(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    modules(folder, "lasttoken", normalize=True)
    return Equal(sentence_transformers(folder))


@layout("the maker's own code, not trusted",
        like=["jinaai/jina-embeddings-v4", "NovaSearch/jasper_en_vision_language_v1",
              "Salesforce/SFR-Embedding-Code-2B_R"])  # fmt: skip
def _(folder):
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    decoder(folder, "llama", model_type="own_model", auto_map=auto)
    return Refused("needs its own code.*trust_remote_code=True")
