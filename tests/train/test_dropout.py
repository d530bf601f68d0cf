"""Dropout of a stage: where it is, that it drops while training only, and is put back."""

import pytest
import torch
import transformers as tf
from decoders import DECODERS
from families import FAMILIES
from transformers import AutoModel

from polyvec.embed.backbone import attention
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import SettingsError
from polyvec.train.dropout import dropout_set

MODELS = {
    **{name: DECODERS[name][0] for name in ("llama", "qwen2", "gpt2", "phi", "bloom")},
    **{name: FAMILIES[name][0] for name in ("bert", "albert", "distilbert", "modernbert")},
    **{name: FAMILIES[name][0] for name in ("mpnet", "deberta_v2", "t5_encoder", "nomic_bert")},
    "opt": lambda: tf.OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0, dropout=0.1,
    ),
}  # fmt: skip
BATCH = TokenBatch.of_ids([torch.arange(5, 17).numpy(), torch.arange(9, 14).numpy()])


def model_of(name):
    torch.manual_seed(0)
    config = MODELS[name]()
    model = tf.T5EncoderModel(config) if name == "t5_encoder" else AutoModel.from_config(config)
    return model.eval()


def states(backbone):
    with torch.no_grad():
        out = backbone(BATCH)
    return out.last_BTD[out.attention_mask_BT]


@pytest.mark.parametrize("name", MODELS)
def test_attention_dropout_drops_while_training_and_not_in_evaluation(name):
    model = model_of(name)
    backbone = Backbone(model)
    plain = states(backbone)
    with dropout_set(model, attention_dropout=0.5):
        assert torch.equal(states(backbone), plain)
        model.train()
        with dropout_set(model, attention_dropout=0.5, **hidden(name, 0.0)):
            one, two = states(backbone), states(backbone)
        assert not torch.equal(one, two)
        with dropout_set(model, attention_dropout=0.0, **hidden(name, 0.0)):
            torch.testing.assert_close(states(backbone), plain)
    assert not [p for p in shares(model) if p == 0.5], "what was there is there again"


def hidden(name, share):
    """Llama and Qwen have no dropout but in their attention."""
    return {} if name in ("llama", "qwen2") else {"dropout": share}


def shares(model):
    inner = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    return inner + [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if "drop" in name and isinstance(value, float)
    ]


def test_the_share_that_arrives_at_the_attention_is_the_one_set(monkeypatch):
    """Of every family that our attention function runs."""
    arrived = []
    attend = attention.attend

    def seen(*args, **options):
        arrived.append(options["dropout"])
        return attend(*args, **options)

    monkeypatch.setattr(attention, "attend", seen)
    for name in MODELS:
        model = model_of(name)
        backbone = Backbone(model)
        if backbone.mechanism != "plan":
            continue
        model.train()
        with dropout_set(model, attention_dropout=0.25, **hidden(name, 0.125)):
            arrived.clear()
            states(backbone)
        assert set(arrived) == {0.25}, name
        model.eval()
        arrived.clear()
        states(backbone)
        assert set(arrived) == {0.0}, name


def test_dropped_attention_is_scaled_as_torch_does():
    """Each weight is zero or 1 / (1 - p) of itself, in a softcapped or plain kernel."""
    torch.manual_seed(0)
    value = torch.eye(6)[None, None]
    query = key = torch.zeros(1, 1, 6, 6)
    for softcap in (None, 30.0):
        out, _ = attention.attend(
            query, key, value, None, False,
            scaling=1.0, dropout=0.5, softcap=softcap, sinks=None, weights=False,
        )  # fmt: skip
        rounded = {round(float(x), 5) for x in out.flatten()}
        assert rounded == {0.0, round(2 / 6, 5)}


def test_gradients_flow_through_packed_texts_as_through_each_alone():
    torch.manual_seed(0)
    model = model_of("llama")
    backbone = Backbone(model)
    assert backbone.layout == "packed"
    together = backbone(BATCH)
    (together.last_BTD[together.attention_mask_BT] ** 2).sum().backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    for text in (torch.arange(5, 17), torch.arange(9, 14)):
        alone = model(
            input_ids=text[None], plan=attention.AttentionPlan((), runs=((1, len(text)),))
        )
        (alone.last_hidden_state**2).sum().backward()
    for name, each in model.named_parameters():
        torch.testing.assert_close(found[name], each.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.1}, "dropout does nothing: LlamaModel has no such dropout. Try attention"),
        ({"attention_dropout": 1.0}, "is not at least 0 and less than 1"),
    ],
)
def test_a_share_that_does_nothing_is_an_error(options, message):
    with pytest.raises(SettingsError, match=message), dropout_set(model_of("llama"), **options):
        pass
