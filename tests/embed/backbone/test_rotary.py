"""longrope and dynamic NTK: a text's states are those of a fresh model that sees it alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers as tf
from decoders import _sizes
from torch.testing import assert_close
from transformers import AutoModel

from polyvec.embed.backbone import rotary
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.tokens import TokenBatch

ORIGINAL = 12
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": ORIGINAL,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
SHORT = {"max_position_embeddings": ORIGINAL}
CONFIGS = {
    "phi3 longrope": lambda: tf.Phi3Config(**_sizes(
        rope_parameters=LONGROPE, original_max_position_embeddings=ORIGINAL)),
    "phimoe longrope": lambda: tf.PhimoeConfig(**_sizes(
        num_local_experts=4,
        rope_parameters=LONGROPE | {"short_mscale": 1.0, "long_mscale": 1.4})),
    "minicpm3 longrope": lambda: tf.MiniCPM3Config(**_sizes(
        q_lora_rank=16, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
        num_key_value_heads=4, rope_parameters=LONGROPE)),
    "llama dynamic": lambda: tf.LlamaConfig(**_sizes(**SHORT, rope_parameters=DYNAMIC)),
    "qwen2 dynamic": lambda: tf.Qwen2Config(**_sizes(**SHORT, rope_parameters=DYNAMIC)),
    "stablelm dynamic": lambda: tf.StableLmConfig(**_sizes(
        **SHORT, rope_parameters=DYNAMIC | {"partial_rotary_factor": 0.5})),
    "gte dynamic": lambda: tf.GteConfig(**_sizes(**SHORT, rope_parameters=DYNAMIC)),
    "nomic dynamic": lambda: tf.NomicBertConfig(**_sizes(**SHORT, rope_parameters=DYNAMIC)),
    "modernbert dynamic": lambda: tf.ModernBertConfig(**_sizes(
        **SHORT, cls_token_id=1, sep_token_id=2, local_attention=64,
        rope_parameters=dict.fromkeys(("full_attention", "sliding_attention"), DYNAMIC))),
    "gemma3 dynamic": lambda: tf.Gemma3TextConfig(**_sizes(
        **SHORT, head_dim=8, sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={"full_attention": DYNAMIC,
                         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}})),
}  # fmt: skip
LENGTHS = (5, ORIGINAL + 8, 3, ORIGINAL, ORIGINAL + 1, 4 * ORIGINAL, 6)


def fresh(name: str):
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()


def texts() -> list:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, 97, (n,), generator=generator).numpy() for n in LENGTHS]


@torch.no_grad()
def reference(name: str) -> list[torch.Tensor]:
    """transformers' own states of each text, of a model that has seen no other."""
    ids = [torch.from_numpy(text)[None] for text in texts()]
    return [fresh(name)(input_ids=text).last_hidden_state[0] for text in ids]


@torch.no_grad()
def states(model: Backbone, ids: list) -> list[torch.Tensor]:
    out = model(TokenBatch.of_ids(ids)).last_BTD
    return [out[i, : len(text)] for i, text in enumerate(ids)]


@pytest.fixture(params=CONFIGS)
def name(request) -> str:
    return request.param


def test_the_family_follows_lengths_in_transformers(name):
    """Else this file tests nothing."""
    model, long, short = fresh(name), *(torch.from_numpy(texts()[i])[None] for i in (5, 0))
    pair = torch.cat([long, torch.nn.functional.pad(short, (0, long.shape[1] - 5))])
    with torch.no_grad():
        alone = fresh(name)(input_ids=short).last_hidden_state[0]
        mask = torch.ones_like(pair)
        mask[1, 5:] = 0
        beside = model(input_ids=pair, attention_mask=mask).last_hidden_state[1, :5]
    assert float((alone - beside).abs().max()) > 1e-3


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_each_text_is_as_alone_in_any_company_order_and_history(name, layout):
    model, ids, right = Backbone(fresh(name), 0, layout=layout), texts(), reference(name)
    for order in (range(len(ids)), reversed(range(len(ids))), [5, 0], [0], [1], [4, 1], [0, 2]):
        order = list(order)
        for i, found in zip(order, states(model, [ids[i] for i in order]), strict=True):
            scale = float(right[i].abs().max())
            assert_close(found, right[i], atol=2e-5 * scale, rtol=0, msg=f"{order} {i}")


def test_a_model_that_has_computed_long_texts_starts_anew(name):
    used, ids, right = fresh(name), texts(), reference(name)
    with torch.no_grad():
        used(input_ids=torch.from_numpy(ids[5])[None])
    found = states(Backbone(used, 0), ids[:1])[0]
    assert_close(found, right[0], atol=2e-5 * float(right[0].abs().max()), rtol=0)


def test_threads_do_not_mix_lengths():
    model, ids, right = Backbone(fresh("llama dynamic"), 0), texts(), reference("llama dynamic")
    order = [0, 1, 5, 4, 2] * 8
    with ThreadPoolExecutor(4) as pool:
        for i, found in zip(
            order, pool.map(lambda i: states(model, [ids[i]])[0], order), strict=True
        ):
            assert_close(found, right[i], atol=2e-5 * float(right[i].abs().max()), rtol=0)


def test_other_rotary_modules_are_left_alone():
    assert rotary.install(AutoModel.from_config(tf.LlamaConfig(**_sizes()))) == 0
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
            "original_max_position_embeddings": 32}  # fmt: skip
    assert (
        rotary.install(AutoModel.from_config(tf.LlamaConfig(**_sizes(rope_parameters=yarn)))) == 0
    )
