"""One kernel for packed texts of any lengths: what it is asked for is what the plan says."""

import itertools

import pytest
import torch

from polyvec import Embedder
from polyvec.embed.backbone import varlen
from polyvec.embed.backbone.attention import AttentionPlan

TEXTS = ["one", "two words", "a text of some more words than that", "b", "and so on, and on"]
RUNS = ((2, 1), (1, 3), (3, 5), (1, 9))
OPTIONS = {"blocked": False, "dropout": 0.0, "softcap": None, "sinks": None}


def dense(query, key, value, starts, starts_k, max_q, max_k, *, scale, window_size=(-1, -1)):
    """torch.nn.attention.varlen.varlen_attn by its documentation, one text at a time."""
    assert starts.dtype == torch.int32
    assert max_q == max_k == int(starts.diff().max())
    out = []
    for begin, end in itertools.pairwise(starts):
        q, k, v = (x[begin:end].transpose(0, 1).float() for x in (query, key, value))
        place = torch.arange(end - begin)
        ahead = place[None] - place[:, None]
        left, right = window_size
        hidden = (ahead > right if right >= 0 else ahead < -len(place)) | (
            ahead < -left if left >= 0 else ahead < -len(place)
        )
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out).to(query.dtype)


@pytest.fixture
def on_gpu(monkeypatch):
    """As on a GPU, in float32 for exact comparison; counts the calls."""
    calls = []

    def counted(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
        calls.append(len(cu_seq_q) - 1)
        return dense(
            *(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k),
            scale=scale,
            window_size=window_size,
        )

    monkeypatch.setattr(varlen, "kernel", lambda: counted)
    monkeypatch.setattr(varlen, "flash_device", lambda device: True)
    monkeypatch.setattr(varlen, "HALF", (torch.float32,))
    return calls


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 9])
def test_sides_are_those_of_the_mask(mode, window):
    length = 9
    plan = AttentionPlan((mode,), runs=((1, length),))
    mask = plan.mask(mode, window, 0, torch.device("cpu"))
    seen = mask[0, 0] if mask is not None else torch.ones(length, length, dtype=torch.bool)
    if mask is None and mode == "causal":
        seen = seen.tril()
    left, right = varlen.sides(mode, window)
    ahead = torch.arange(length)[None] - torch.arange(length)[:, None]
    near = (ahead <= (right if right >= 0 else length)) & (
        -ahead <= (left if left >= 0 else length)
    )
    assert torch.equal(near, seen)


def test_starts_are_the_ends_of_the_texts():
    plan = AttentionPlan(("causal",), runs=RUNS)
    assert plan.starts_on(torch.device("cpu")).tolist() == [0, 1, 2, 5, 10, 15, 20, 29]


@pytest.mark.parametrize("attention", ["native", "bidirectional", "last-2"])
def test_one_call_a_layer_and_the_same_vectors(on_gpu, monkeypatch, attention):
    model = Embedder.from_pretrained(
        "polyvec/nano-lm", pooling="mean", attention=attention, device="cpu"
    )
    model.to(dtype=torch.float32).eval()
    model.encode(TEXTS[:1], show_progress_bar=False)  # fused layers are made and checked
    on_gpu.clear()
    found = model.encode(TEXTS, show_progress_bar=False)
    assert on_gpu == [len(TEXTS)] * model.backbone.model.config.num_hidden_layers
    monkeypatch.setattr(varlen, "flash_device", lambda device: False)
    on_gpu.clear()
    expected = model.encode(TEXTS, show_progress_bar=False)
    assert not on_gpu
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), atol=5e-5, rtol=1e-5
    )  # of numbers up to 7


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 0.1},
        {"softcap": 30.0},
        {"sinks": torch.zeros(2)},
        {"blocked": True},
        {"mode": "prefix"},
        {"size": 512},
        {"dtype": torch.float64},
    ],
)
def test_what_the_kernel_cannot_do_is_left_to_the_others(on_gpu, change):
    change = dict(change)
    query = torch.zeros(1, 2, 29, change.pop("size", 16), dtype=change.pop("dtype", torch.float32))
    mode = change.pop("mode", "causal")
    assert not varlen.serves(mode, query, query, **{**OPTIONS, **change})
    plain = torch.zeros(1, 2, 29, 16)
    assert varlen.serves("causal", plain, plain, **OPTIONS)


@pytest.mark.skipif(
    not varlen.flash_device(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    reason="needs a GPU with flash attention",
)
@pytest.mark.parametrize("attention", ["native", "bidirectional"])
def test_packed_equals_padded_on_a_gpu(attention):
    model = Embedder.from_pretrained("polyvec/nano-lm", pooling="mean", attention=attention)
    model.to("cuda", dtype=torch.bfloat16).eval()
    found = {}
    for packed in (True, False):
        model.backbone.runner.packed = packed
        found[packed] = torch.as_tensor(model.encode(TEXTS, show_progress_bar=False)).float()
    cosine = torch.nn.functional.cosine_similarity(found[True], found[False])
    assert cosine.min() > 0.999
