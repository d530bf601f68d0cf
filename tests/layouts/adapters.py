"""Adapters: on a base that is named, or that is beside them; one on another; and refusals."""

import json
import shutil

import torch
import transformers as tf
from folders import ST, bert, modules
from layouts import Equal, Refused, layout, sentence_transformers
from own_code import change, code, decoder, words
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

PEFT, CONFIG = "peft 0.21", "adapter_config.json"


def lora(folder, base, *, named, seed=1, cls=tf.AutoModel, modules=("q_proj", "v_proj"), **more):
    """An adapter as peft writes it, whose weights are not zero, on a base named so."""
    settings = LoraConfig(r=4, target_modules=list(modules), init_lora_weights=False, **more)
    torch.manual_seed(seed)
    get_peft_model(cls.from_pretrained(base), settings).save_pretrained(folder)
    change(folder / CONFIG, base_model_name_or_path=named)


def last(model):
    """Vectors of the last token by a model that reads one text after another."""

    def vectors(texts):
        with torch.no_grad():
            found = [
                model(**words()(text, return_tensors="pt"), output_hidden_states=True)
                for text in texts
            ]
        return torch.stack([each.hidden_states[-1][0, -1] for each in found]).numpy()

    return vectors


@layout("sentence-transformers folder with an adapter, its base elsewhere",
        like=["tomaarsen/bert-base-uncased-gooaq-peft"], answer=ST)  # fmt: skip
def _(folder):
    base = folder.parent / "base"
    base.mkdir()
    bert(base)
    lora(folder, base, named=str(base), modules=["query", "key", "value"],
         task_type="FEATURE_EXTRACTION")  # fmt: skip
    modules(folder, "mean", normalize=True)
    shutil.copy(base / "tokenizer.json", folder)
    shutil.copy(base / "tokenizer_config.json", folder)
    return Equal(sentence_transformers(folder))


@layout("sentence-transformers folder with an adapter, its base beside it", like=[], answer=ST)
def _(folder):
    bert(folder)
    lora(folder, folder, named=str(folder), modules=["query"])
    modules(folder, "mean")
    return Equal(sentence_transformers(folder))


@layout("RepLLaMA: an adapter alone, base by path",
        like=["castorini/repllama-v1-7b-lora-passage"], answer=PEFT)  # fmt: skip
def _(folder):
    base = decoder(folder / "llama-2", "llama", architectures=["LlamaForCausalLM"])
    lora(folder, base, named="llama-2", modules=["q_proj", "v_proj", "o_proj", "down_proj",
         "up_proj", "gate_proj", "k_proj"], task_type="FEATURE_EXTRACTION")  # fmt: skip
    model = PeftModel.from_pretrained(tf.AutoModel.from_pretrained(base), folder)
    return Equal(last(model.eval()), load={"pooling": "last"})


@layout("Promptriever: an adapter in adapter_model.bin, base by option",
        like=["samaya-ai/promptriever-llama2-7b-v1"], answer=PEFT)  # fmt: skip
def _(folder):
    base = decoder(folder.parent / "llama-2", "llama")
    lora(folder, base, named="meta-llama/Llama-2-7b-hf")
    model = PeftModel.from_pretrained(tf.AutoModel.from_pretrained(base), folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    return Equal(last(model.eval()), load={"pooling": "last", "base_model": base})


@layout("DoRA, merged at load", like=[], answer=PEFT)
def _(folder):
    base = decoder(folder.parent / "base", "llama")
    lora(folder, base, named="../base", use_dora=True, use_rslora=True)
    model = PeftModel.from_pretrained(tf.AutoModel.from_pretrained(base), folder)
    return Equal(last(model.eval()), load={"pooling": "last", "merge_adapters": True})


@layout("LLM2Vec: the second of two adapters",
        like=["McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp-supervised",
              "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp-unsup-simcse"],
        answer="peft 0.21, the first adapter merged")  # fmt: skip
def _(folder):
    from makers import mean
    from own_code import ids

    base = decoder(folder.parent / "base", "mistral", sliding_window=4)
    raw = json.loads((base / "config.json").read_text())
    first = folder / "LLM2Vec-Mistral-7B-Instruct-v2-mntp"
    lora(first, base, named="../../base", seed=1)
    lora(folder, base, named=first.name, seed=2)
    words().save_pretrained(first)
    name = "mistralai/Mistral-7B-Instruct-v0.2"
    auto = code("modeling_mistral_encoder.MistralEncoderModel")
    change(first / "config.json", **{**raw, "_name_or_path": name}, **auto)
    config = tf.MistralConfig.from_pretrained(base, sliding_window=None)
    model = tf.AutoModel.from_pretrained(base, config=config)
    model = PeftModel.from_pretrained(model, first).merge_and_unload()
    model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return Equal(lambda texts: mean(model, texts, [1, *ids("[INST] ")], ids(" [/INST]")).numpy())


@layout("an adapter whose base is not here", like=["castorini/repllama-v1-7b-lora-passage"])
def _(folder):
    lora(folder, decoder(folder.parent / "base", "llama"), named="no-lab/No-7B")
    return Refused("'no-lab/No-7B'.*not available.*base_model=", load={"local_files_only": True})


@layout("an adapter made for another model", like=[])
def _(folder):
    other = folder.parent / "bert"
    other.mkdir()
    bert(other)
    lora(folder, other, named="../llama", modules=["query"])
    decoder(folder.parent / "llama", "llama")
    return Refused("[Tt]arget modules.*query")


@layout("virtual tokens (prompt tuning)", like=[])
def _(folder):
    base = decoder(folder.parent / "base", "llama")
    model = tf.AutoModelForCausalLM.from_pretrained(base)
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(model, settings).save_pretrained(folder)
    return Refused("'PROMPT_TUNING' adds virtual tokens")
