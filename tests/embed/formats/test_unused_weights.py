"""Weights and tokenizers that are not those of the model that config.json describes."""

import json
import shutil
import warnings

import pytest
import torch
import transformers as tf
from families import tokenizer
from folders import bert, modules, write
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from polyvec import Embedder
from polyvec.errors import ModelError, UnusedWeightsWarning


@pytest.fixture
def folder(tmp_path):
    bert(tmp_path / "model", num_hidden_layers=4)
    modules(tmp_path / "model", "mean")
    return tmp_path / "model"


def edit(path, **changes):
    write(path, {**json.loads(path.read_text()), **changes})


def add_weights(folder, **tensors):
    path = folder / "model.safetensors"
    save_file({**load_file(path), **tensors}, path, {"format": "pt"})


def loads_silently(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusedWeightsWarning)
        return Embedder.from_pretrained(folder, pooling="mean")


def test_fewer_layers_than_the_weights_have_are_refused(folder):
    edit(folder / "config.json", num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"32 weights belong to layers .* num_hidden_layers 2"):
        Embedder.from_pretrained(folder)


def test_fewer_layers_that_the_folders_own_settings_ask_for(folder):
    """As sentence-transformers reads config_args."""
    edit(folder / "sentence_bert_config.json", config_args={"num_hidden_layers": 2})
    assert loads_silently(folder).backbone.num_layers == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda c: tf.BertForMaskedLM(c(tf.BertConfig)),
        lambda c: tf.BertForPreTraining(c(tf.BertConfig)),
        lambda c: tf.RobertaForMaskedLM(c(tf.RobertaConfig)),
        lambda c: tf.LlamaForCausalLM(c(tf.LlamaConfig)),
    ],
    ids=["bert", "bert pretraining", "roberta", "llama"],
)
@pytest.mark.parametrize("cut", [False, True])
def test_of_a_checkpoint_with_a_head_the_layers_count(tmp_path, make, cut):
    """Names have a prefix there; the weights of heads are nobody's loss."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    more = {"vocab_size": len(tokenizer()), "num_attention_heads": 4, "pad_token_id": 0}
    make(lambda kind: kind(**sizes, **more, max_position_embeddings=64)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    if not cut:
        loads_silently(tmp_path)
        return
    edit(tmp_path / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelError, match="weights belong to layers that the model does not have"):
        Embedder.from_pretrained(tmp_path, pooling="mean")


def test_encoders_of_encoder_decoders_leave_the_decoder(tmp_path):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = tf.T5Config(**sizes, vocab_size=len(tokenizer()), decoder_start_token_id=0)
    tf.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loads_silently(tmp_path)


def test_weights_inside_a_layer_that_is_used_are_told(folder):
    """A model of another class: Qwen3's norms of queries under the name of Qwen2, say."""
    add_weights(folder, **{"encoder.layer.0.attention.self.query_norm.weight": torch.ones(8)})
    with pytest.warns(UnusedWeightsWarning, match=r"1 weights are not used by BertModel.*y_norm"):
        Embedder.from_pretrained(folder)


def test_tables_that_are_computed_now_are_nothing_to_tell(folder):
    add_weights(folder, **{"embeddings.position_ids": torch.arange(64)[None]})
    loads_silently(folder)


def test_a_tokenizer_of_a_smaller_vocabulary_is_told(folder, tmp_path):
    loads_silently(folder)
    other = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "cat": 2}, unk_token="[UNK]"))
    shutil.copytree(folder, tmp_path / "other")
    other.save(str(tmp_path / "other" / "tokenizer.json"))
    write(tmp_path / "other" / "tokenizer_config.json", {"unk_token": "[UNK]"})
    with pytest.warns(UnusedWeightsWarning, match=r"the tokenizer has 3 tokens, the model 118"):
        Embedder.from_pretrained(tmp_path / "other")
