"""The trainable poolings of MLTP: the released file's names and sizes, and what its code computes.

The values were computed once by `PerceiverResampler` of yixuantt/PoolingAndAttn
(pooling_layers/, both files) with weights and states of the formula below.
"""

import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from polyvec.embed.backbone.states import States
from polyvec.embed.pooling.trainable import TrainablePooling

D, N, H, C, L = 6, 5, 2, 3, 4  # state size, latents, heads, size of a head, layers


def released(size: int, latents: int, inner: int, layers: int | None) -> dict[str, tuple[int, ...]]:
    """The tensors of a released attn_pool.pt and their shapes."""
    first, second = "cross_attend_blocks.0.", "cross_attend_blocks.1."
    shapes = {
        "latents": (latents, size),
        f"{first}norm.weight": (size,),
        f"{first}norm.bias": (size,),
        f"{first}norm_context.weight": (size,),
        f"{first}norm_context.bias": (size,),
        f"{first}fn.to_q.weight": (inner, size),
        f"{first}fn.to_kv.weight": (2 * inner, size),
        f"{first}fn.to_out.weight": (size, inner),
        f"{second}norm.weight": (size,),
        f"{second}norm.bias": (size,),
        f"{second}fn.net.0.weight": (8 * size, size),
        f"{second}fn.net.0.bias": (8 * size,),
        f"{second}fn.net.2.weight": (size, 4 * size),
        f"{second}fn.net.2.bias": (size,),
    }
    return shapes | ({"pos_emb.weight": (layers, size)} if layers else {})


def waves(shape: Iterable[int], start: int) -> Tensor:
    """Numbers that need no generator: 0.8 * sin(0.7 * start + 1.3 * place)."""
    shape = tuple(shape)
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return (0.8 * torch.sin(0.7 * start + 1.3 * places)).float().reshape(shape)


def weights(layers: int | None = None) -> dict[str, Tensor]:
    shapes = released(D, N, H * C, layers)
    return {name: waves(shape, i) for i, (name, shape) in enumerate(sorted(shapes.items()))}


def text(length: int = 3) -> States:
    layers = tuple(waves((1, length, D), 30 + i) for i in range(L + 1))
    yes = torch.ones(1, length, dtype=torch.bool)
    return States(layers[-1], yes, yes, yes, torch.ones(1, length, dtype=torch.long), layers)


EXPECTED = {
    "last token": (
        {"over": "last_token"},
        [-4.251764, 2.623216, 4.446486, -0.390733, -1.148604, 5.351003],
    ),
    "last layer": (
        {"over": "last_layer"},
        [-3.622738, 3.321321, 3.904691, -1.137218, -0.679556, 6.153269],
    ),
    "layers, last": (
        {"over": "all_layers", "num_layers": L, "layer_pooling": "last"},
        [-3.599325, 3.351052, 3.884888, -1.168767, -0.662939, 6.18672],
    ),
    "layers, mean": (
        {"over": "all_layers", "num_layers": L, "layer_pooling": "mean"},
        [-3.542723, 3.490659, 3.844641, -1.311769, -0.637561, 6.332612],
    ),
}


@pytest.mark.equality
@pytest.mark.parametrize("case", EXPECTED)
def test_vectors_of_the_released_code(case):
    settings, expected = EXPECTED[case]
    module = TrainablePooling(D, num_latents=N, num_heads=H, head_size=C, **settings)
    module.load_state_dict(weights(settings.get("num_layers")))
    assert_close(module(text())[0], torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [None, 32])
def test_the_released_file_fits_at_its_own_size(layers):
    """768 latents, 32 heads of 2,048 and Mistral's 4,096 states and 32 layers."""
    settings = {"over": "all_layers", "num_layers": 32, "layer_pooling": "last"} if layers else {}
    with torch.device("meta"):
        module = TrainablePooling(4096, **settings)
        file = {
            name: torch.empty(shape)
            for name, shape in released(4096, 768, 32 * 2048, layers).items()
        }
        assert module.load_state_dict(file, assign=True).missing_keys == []


def test_our_own_names_load_too():
    module = TrainablePooling(D, num_latents=N, num_heads=H, head_size=C)
    again = TrainablePooling(D, num_latents=N, num_heads=H, head_size=C)
    again.load_state_dict(module.state_dict())
    assert_close(again(text()), module(text()))


def test_a_file_of_another_design_is_refused():
    module = TrainablePooling(D, num_latents=N, num_heads=H, head_size=C)
    with pytest.raises(RuntimeError, match="layers_LD"):
        module.load_state_dict(weights(L))
