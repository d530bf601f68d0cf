"""BigBird: the vectors are those of a fresh model for each text alone, whatever came before."""

import pickle

import pytest
import torch
import transformers as tf
from decoders import VOCAB
from torch.testing import assert_close

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import ModelError

LENGTHS = (5, 30, 29, 28, 47, 3, 64)  # with blocks of 4, full attention up to 28 tokens
BLOCKS = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}


def fresh(name: str):
    torch.manual_seed(0)
    if name == "big_bird":
        config = tf.BigBirdConfig(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=96, pad_token_id=0, **BLOCKS,
        )  # fmt: skip
        model = tf.BigBirdModel(config, add_pooling_layer=False)
    else:
        config = tf.BigBirdPegasusConfig(
            vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
            decoder_ffn_dim=48, max_position_embeddings=96, pad_token_id=0, **BLOCKS,
        )  # fmt: skip
        model = tf.BigBirdPegasusModel(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model.eval()


def texts() -> list:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, VOCAB, (n,), generator=generator).numpy() for n in LENGTHS]


@torch.no_grad()
def reference(name: str) -> list[torch.Tensor]:
    found = []
    for text in texts():
        model = fresh(name)
        body = model if name == "big_bird" else model.get_encoder()
        found.append(body(input_ids=torch.from_numpy(text)[None]).last_hidden_state[0])
    return found


@torch.no_grad()
def states(model: Backbone, ids: list) -> list[torch.Tensor]:
    out = model(TokenBatch.of_ids(ids), needs=frozenset({"all_layers"}))
    assert_close(out.all_layers[-1], out.last_BTD)
    return [out.last_BTD[i, : len(text)] for i, text in enumerate(ids)]


@pytest.mark.parametrize("name", ["big_bird", "bigbird_pegasus"])
def test_each_text_is_as_alone_in_a_fresh_model(name):
    used, ids, right = fresh(name), texts(), reference(name)
    with torch.no_grad():  # switches it to full attention
        (used if name == "big_bird" else used.get_encoder())(
            input_ids=torch.from_numpy(ids[0])[None]
        )
    model = Backbone(used, 0)
    for order in (range(len(ids)), [6, 0, 1], [5], [4], [3, 2, 4], [1]):
        for i, found in zip(order, states(model, [ids[i] for i in order]), strict=True):
            assert_close(found, right[i], atol=1e-5 * float(right[i].abs().max()), rtol=0)
    again = pickle.loads(pickle.dumps(model))
    assert_close(states(again, ids[:3])[1], states(model, ids[:3])[1])


def test_sparse_and_full_attention_differ():
    """Else the test above tests nothing."""
    ids = torch.from_numpy(texts()[6])[None]
    full = fresh("big_bird")
    full.set_attention_type("original_full")
    with torch.no_grad():
        moved = full(input_ids=ids).last_hidden_state[0] - reference("big_bird")[6]
    assert float(moved.abs().max()) > 1e-2


def test_it_cannot_be_made_causal():
    with pytest.raises(ModelError, match=r"BigBirdModel cannot be made 'causal': .*block-sparse"):
        Backbone(fresh("big_bird"), 0, attention="causal")
    assert Backbone(fresh("big_bird"), 0, attention="bidirectional").mechanism == "native"
