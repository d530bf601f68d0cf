"""The probe of memories of keys and values: what comes after sees them, and nothing before them.

A decoder that still sees the context would answer well and compress nothing. So the probe reads a
text in one pass, under a plan that hides segment 0 (context) from segment 2 (what follows), and in
two, with the memory's keys and values alone. States must agree, and must not move when the context
is another one but the memory is held.
"""

import torch
from torch import Tensor

from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.reading import read
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.leak_probe import MOVED, SAME, movement, probe_ids, tolerance
from polyvec.errors import ModelError

CONTEXT, GIST, AFTER = 0, 1, 2
HIDDEN = ((AFTER, CONTEXT),)  # the mask of gist tokens (Mu et al. 2023, arXiv:2304.08467)
SEGMENTS = (CONTEXT,) * 5 + (GIST,) * 2 + (AFTER,) * 4


@torch.no_grad()
def check_memory(backbone: Backbone) -> None:
    """Raises ModelError if what follows a memory of keys and values sees what was before it."""
    modes = ("causal",) * backbone.num_layers
    table = backbone.model.get_input_embeddings()
    ids, other = probe_ids(backbone.num_rows or 1)
    inputs_BTD = table(ids[: len(SEGMENTS)].to(backbone.device))[None]
    segment_BT = torch.tensor([SEGMENTS], device=backbone.device)
    real_BT = torch.ones_like(segment_BT, dtype=torch.bool)
    whole = read(backbone, inputs_BTD, real_BT, modes=modes, segments_BT=segment_BT, blocked=HIDDEN)
    after = whole.states_BTD[segment_BT == AFTER]
    apart = _after(backbone, inputs_BTD, modes)
    name = type(backbone.model).__name__
    limit = tolerance(SAME, after.dtype)
    if movement(after, apart) > limit:
        raise ModelError(
            f"{name}: what follows a memory has other states than under the mask of gist tokens "
            f"(by {movement(after, apart):.1e}): the model sees more than keys and values, or "
            "counts positions otherwise"
        )
    # The memory is held: only a state that sees the context itself can move.
    changed = inputs_BTD.clone()
    changed[0, 1] = table(torch.tensor(other, device=backbone.device))
    blind = (*HIDDEN, (AFTER, GIST))
    states = [
        read(
            backbone, each, real_BT, modes=modes, segments_BT=segment_BT, blocked=blind
        ).states_BTD[segment_BT == AFTER]
        for each in (inputs_BTD, changed)
    ]
    if movement(*states) > max(MOVED, tolerance(0.0, after.dtype)):
        raise ModelError(f"{name}: the mask of gist tokens lets what follows see the context")


def _after(backbone: Backbone, inputs_BTD: Tensor, modes: tuple[str, ...]) -> Tensor:
    """States of what follows, from the keys and values of the gists."""
    first = SEGMENTS.index(AFTER)
    before_BTD, after_BTD = inputs_BTD[:, :first], inputs_BTD[:, first:]
    real_BT = torch.ones(1, first, dtype=torch.bool, device=inputs_BTD.device)
    found = read(backbone, before_BTD, real_BT, modes=modes, keep=True)
    place_BM = torch.arange(SEGMENTS.index(GIST), first, device=inputs_BTD.device)[None]
    memory = MemoryBatch(
        torch.ones_like(place_BM, dtype=torch.bool),
        torch.tensor([first], device=inputs_BTD.device),
        (first,),
        pairs=found.pairs(place_BM),
    )
    real = torch.ones(after_BTD.shape[:2], dtype=torch.bool, device=inputs_BTD.device)
    again = read(
        backbone,
        after_BTD,
        real,
        modes=modes,
        past=(memory.pairs, memory.real_BM),
        start_B=memory.next_B,
    )
    return again.states_BTD[0]
