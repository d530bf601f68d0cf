"""Folders whose tokenizer transformers 5 loads as another one, and what is refused of them.

The reference is the same model with the ids of tokenizers' own reader, or of sentencepiece.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from families import tokenizer
from folders import write
from layouts import TEXTS, Equal, Refused, layout
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 66, "pad_token_id": 0, "initializer_range": 0.4,
}  # fmt: skip
MODELS = {
    "qwen2": (tf.Qwen2Config, tf.Qwen2Model, {"num_key_value_heads": 2}),
    "mistral": (tf.MistralConfig, tf.MistralModel, {"num_key_value_heads": 2}),
    "llama": (tf.LlamaConfig, tf.LlamaModel, {}),
    "gpt_neox": (tf.GPTNeoXConfig, tf.GPTNeoXModel, {}),
    "roberta": (tf.RobertaConfig, tf.RobertaModel, {}),
    "xlm-roberta": (tf.XLMRobertaConfig, tf.XLMRobertaModel, {}),
    "bert": (tf.BertConfig, tf.BertModel, {}),
}


def model(folder: Path, kind: str, words: int, **sizes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config, cls, more = MODELS[kind]
    made = cls(config(vocab_size=words, **{**SIZES, **more, **sizes})).eval()
    made.save_pretrained(folder)
    return made


def settings(folder: Path, **values: object) -> None:
    """tokenizer_config.json with these values in the place of those that it has."""
    path = folder / "tokenizer_config.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    write(path, {k: v for k, v in {**found, **values}.items() if v is not None})


def pooling(folder: Path, name: str) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ],
    )
    write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 32, f"pooling_mode_{name}": True},
    )
    write(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})


def vectors(made: torch.nn.Module, ids_of, pooled: str):
    """Vectors of the model itself for the ids of each text, one text at a time."""

    def reference(texts):
        out = []
        for text in texts:
            with torch.inference_mode():
                states = made(input_ids=torch.tensor([ids_of(text)])).last_hidden_state[0]
            out.append(
                {"lasttoken": states[-1], "cls_token": states[0]}.get(pooled, states.mean(0))
            )
        return np.stack([each.numpy() for each in out])

    return reference


def own_reader(folder: Path, *, end: int | None = None):
    """Ids by tokenizers' own reader of tokenizer.json, and a token at the end."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: [*backend.encode(text).ids, *([] if end is None else [end])]


def byte_level(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE as of Qwen2, whose post-processor adds nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet, "at", "Ġc", "Ġs"])}
    backend = Tokenizer(models.BPE(vocab, [("a", "t"), ("Ġ", "c"), ("Ġ", "s")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)


def promised(folder, kind, words, name, **more):
    words.save_pretrained(folder)
    settings(folder, tokenizer_class=name, add_eos_token=True, **more)
    made = model(folder, kind, len(words))
    pooling(folder, "lasttoken")
    end = words.eos_token_id
    return Equal(vectors(made, own_reader(folder, end=end), "lasttoken"))


@layout(
    "EOS promised, not added: Mistral",
    like=["intfloat/e5-mistral-7b-instruct", "Salesforce/SFR-Embedding-Mistral"],
    answer="transformers' model with tokenizer.json's ids and EOS",
)
def _(folder):
    return promised(folder, "mistral", tokenizer(True, False), "LlamaTokenizer", add_bos_token=True)


@layout(
    "EOS promised, not added: Qwen2",
    like=["Alibaba-NLP/gte-Qwen2-1.5B-instruct", "Alibaba-NLP/gte-Qwen2-7B-instruct"],
    answer="transformers' model with tokenizer.json's ids and EOS",
)
def _(folder):
    return promised(folder, "qwen2", byte_level(folder), "Qwen2Tokenizer")


def overruled(folder, kind, name, pooled="mean_tokens", words=None):
    words = words or tokenizer()
    words.save_pretrained(folder)
    settings(folder, tokenizer_class=name)
    made = model(folder, kind, len(words))
    pooling(folder, pooled)
    return Equal(vectors(made, own_reader(folder), pooled))


TRUE = "transformers' model with tokenizer.json's ids"


@layout("tokenizer.json of words under a Qwen2 model", like=["fine-tuned Qwen2"], answer=TRUE)
def _(folder):
    return overruled(folder, "qwen2", None, "lasttoken")


@layout("tokenizer.json of words, RobertaTokenizer", like=["fine-tuned RoBERTa"], answer=TRUE)
def _(folder):
    return overruled(folder, "roberta", "RobertaTokenizer", "cls_token")


@layout("tokenizer.json of words, XLMRobertaTokenizer", like=["fine-tuned XLM-R"], answer=TRUE)
def _(folder):
    return overruled(folder, "xlm-roberta", "XLMRobertaTokenizerFast")


@layout("byte-level tokenizer.json, LlamaTokenizer", like=["fine-tuned Llama 3"], answer=TRUE)
def _(folder):
    return overruled(folder, "llama", "LlamaTokenizerFast", words=byte_level(folder))


@layout("byte-level tokenizer.json, GPTNeoXTokenizer", like=["EleutherAI/pythia-410m"], answer=TRUE)
def _(folder):
    return overruled(folder, "gpt_neox", "GPTNeoXTokenizer", words=byte_level(folder))


@layout("vocab.txt alone", like=["old BERT folders"], answer="tokenizers' BertWordPieceTokenizer")
def _(folder):
    from tokenizers import BertWordPieceTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "a", "dog"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    settings(folder, do_lower_case=True, model_max_length=512)
    made = model(folder, "bert", len(words))
    pooling(folder, "cls_token")
    own = BertWordPieceTokenizer(str(folder / "vocab.txt"))
    return Equal(vectors(made, lambda text: own.encode(text).ids, "cls_token"))


@layout(
    "sentencepiece.bpe.model alone", like=["old XLM-R folders"], answer="sentencepiece's pieces"
)
def _(folder):
    import sentencepiece

    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join([*TEXTS, "Ünïcode 漢字"] * 20))
    file = folder / "sentencepiece.bpe.model"
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "made"), minloglevel=3,
        hard_vocab_limit=False, vocab_size=60,
    )  # fmt: skip
    (folder / "made.model").rename(file)
    (folder / "made.vocab").unlink()
    corpus.unlink()
    own = sentencepiece.SentencePieceProcessor(model_file=str(file))
    # fairseq's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, then the pieces after sentencepiece's three.
    made = model(folder, "xlm-roberta", own.get_piece_size() + 2, pad_token_id=1)
    pooling(folder, "mean_tokens")

    def ids(text):
        pieces = [3 if i == own.unk_id() else i + 1 for i in own.encode(text)]
        return [0, *pieces, 2]

    return Equal(vectors(made, ids, "mean_tokens"))


@layout("no vocabulary", like=["weights without a tokenizer"])
def _(folder):
    overruled(folder, "bert", "BertTokenizer")
    (folder / "tokenizer.json").unlink()
    return Refused(r"no tokenizer \(neither tokenizer.json nor vocab.txt")


@layout("tokens beyond the embedding table", like=["a base model with a fine-tuned tokenizer"])
def _(folder):
    words = tokenizer()
    made = overruled(folder, "bert", None)
    words.add_tokens(["zebra"])
    words.save_pretrained(folder)
    assert made
    return Refused(r"token 'zebra' \(id \d+\) has no row in the embedding table")
