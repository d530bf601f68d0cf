"""Tiny random models of many families, with one tokenizer, for tests of what must hold for all."""

from collections.abc import Callable

import torch
import transformers as tf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

WORDS = "the a cat dog sat on mat while nobody looks query passage vector of two very long text"
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]


def tokenizer(bos: bool = True, eos: bool = True, **options) -> PreTrainedTokenizerFast:
    """A byte-free word tokenizer: specials 0 to 4, then words, digits and letters."""
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789[]{}<>/.,!?:")
    words = dict.fromkeys([*SPECIALS, *WORDS.split(), *letters, *(f"##{x}" for x in letters)])
    vocab = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    template = " ".join((["<s>"] if bos else []) + ["$A"] + (["</s>"] if eos else []))
    specials = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=48,
        **options,
    )


VOCAB = len(tokenizer())
# Of encoders that tests build by themselves, with room for XLM-R's position offset.
ENCODER_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


def _sizes(**more) -> dict:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return sizes | more


# (config, whether it must run packed): losing the packed path unnoticed would be a slow-down.
FAMILIES: dict[str, tuple[Callable[[], tf.PretrainedConfig], bool]] = {
    "bert": (lambda: tf.BertConfig(**_sizes()), True),
    "roberta": (lambda: tf.RobertaConfig(**_sizes(max_position_embeddings=65)), True),
    "xlm_roberta": (
        lambda: tf.XLMRobertaConfig(**_sizes(max_position_embeddings=65)),
        True,
    ),
    "electra": (lambda: tf.ElectraConfig(**_sizes(embedding_size=32)), True),
    "albert": (lambda: tf.AlbertConfig(**_sizes(embedding_size=32)), True),
    "distilbert": (
        lambda: tf.DistilBertConfig(
            vocab_size=VOCAB,
            dim=32,
            hidden_dim=48,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=64,
        ),
        True,
    ),
    "ernie": (lambda: tf.ErnieConfig(**_sizes()), True),
    "mpnet": (lambda: tf.MPNetConfig(**_sizes(max_position_embeddings=65)), False),
    "deberta_v2": (lambda: tf.DebertaV2Config(**_sizes()), False),
    "modernbert": (
        lambda: tf.ModernBertConfig(
            **_sizes(
                cls_token_id=1, sep_token_id=2, local_attention=8, global_attn_every_n_layers=2
            )
        ),
        True,
    ),
    "t5_encoder": (
        lambda: tf.T5Config(
            vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0
        ),
        False,
    ),
    "gte": (lambda: tf.GteConfig(**_sizes()), True),
    "nomic_bert": (lambda: tf.NomicBertConfig(**_sizes()), True),
    "jina_embeddings_v3": (lambda: tf.JinaEmbeddingsV3Config(**_sizes()), True),
    "eurobert": (lambda: tf.EuroBertConfig(**_sizes(num_key_value_heads=2)), True),
    "longt5": (
        lambda: tf.LongT5Config(
            vocab_size=VOCAB,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            pad_token_id=0,
            local_radius=3,
        ),
        False,
    ),
    "llama": (lambda: tf.LlamaConfig(**_sizes(num_key_value_heads=2)), True),
    "qwen3": (lambda: tf.Qwen3Config(**_sizes(num_key_value_heads=2, head_dim=8)), True),
    "gpt2": (
        lambda: tf.GPT2Config(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
        ),
        True,
    ),
    "mistral_sliding": (
        lambda: tf.MistralConfig(**_sizes(num_key_value_heads=2, sliding_window=4)),
        True,
    ),
}


def build(name: str) -> PreTrainedModel:
    """A model of the family with weights large enough that leaks and slips show."""
    torch.manual_seed(0)
    config = FAMILIES[name][0]()
    classes = {"t5_encoder": tf.T5EncoderModel, "longt5": tf.LongT5EncoderModel}
    model = classes[name](config) if name in classes else AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return model.eval()
