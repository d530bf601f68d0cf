"""LAMP: the tokens of a text, in order, from a gradient without that of the token table.

T tokens, D state size, V tokens that are tried.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyvec.errors import InputError, ShapeError
from polyvec.settings import check_seed

Loss = Callable[[Tensor], Tensor]
# Mean negative log-probability of each row of ids [N, T] by a language model, [N].
Fluency = Callable[[Tensor], Tensor]

FOUND = 1e-4  # distance of gradients that are equal but for rounding


@dataclass(frozen=True, slots=True)
class Recovered:
    """Ids in order, and how far their gradient is from the one seen: 0 if equal, at most 2."""

    ids: tuple[int, ...]
    distance: float


def lamp(
    loss: Loss,
    parameters: Sequence[Tensor],
    seen: Sequence[Tensor],
    table_VD: Tensor,
    num_tokens: int,
    *,
    fluency: Fluency | None = None,
    weight: float = 0.2,
    rounds: int = 4,
    steps: int = 60,
    starts: int = 100,
    restarts: int = 1,
    draws: int = 60,
    choices: int = 8,
    learning_rate: float = 0.1,
    length: float = 0.1,
    seed: int = 0,
) -> Recovered:
    """A text whose fine-tuning step gives the gradients `seen`.

    loss: of input embeddings [1, T, D], with whatever else of the batch the attacker knows. It
    must have gradients with respect to the `parameters`, twice. table_VD: embeddings of the tokens
    that are tried; ids are its rows. fluency: a language model's loss, times `weight` beside the
    distance of gradients where orders of tokens are compared. learning_rate: in root mean squares
    of the table.

    Alternates between Adam on embeddings (mean cosine distance of gradients, and `length` times the
    difference of their mean length from the table's) and moves of tokens, of which the best is
    kept (Balunovic et al. 2022, arXiv:2202.08827). Beyond the paper, each token gives way to the
    best of the `choices` that are nearest to its embedding, and Adam goes on from halfway to the
    best text so far. restarts: of which the nearest is kept, or the first at a distance of 0: who
    has found the text knows it.
    """
    check_seed(seed)
    for name, value in (("num_tokens", num_tokens), ("restarts", restarts)):
        if value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    shapes = [tuple(each.shape) for each in parameters]
    if shapes != [tuple(each.shape) for each in seen]:
        raise ShapeError(f"gradients {[tuple(e.shape) for e in seen]} of parameters {shapes}")
    draw = torch.Generator().manual_seed(seed)
    table_VD = table_VD.detach()
    usual, rms = table_VD.norm(dim=1).mean(), float(table_VD.square().mean().sqrt())

    def distance(inputs_TD: Tensor, *, again: bool = False) -> Tensor:
        found = torch.autograd.grad(loss(inputs_TD[None]), parameters, create_graph=again)
        return torch.stack(
            [1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
             for a, b in zip(found, seen, strict=True)]
        ).mean()  # fmt: skip

    def score(ids_T: Tensor) -> float:
        found = float(distance(table_VD[ids_T]))
        return found if fluency is None else found + weight * float(fluency(ids_T[None])[0])

    def attempt() -> Tensor:
        # Starts are tokens, not noise: a first layer norm makes short vectors as long as others.
        tried = [torch.randint(len(table_VD), (num_tokens,), generator=draw) for _ in range(starts)]
        best_T = min(tried, key=lambda ids: float(distance(table_VD[ids])))
        inputs_TD = table_VD[best_T].clone().requires_grad_(True)
        for _ in range(rounds):
            optimizer = torch.optim.Adam([inputs_TD], learning_rate * rms)
            for _ in range(steps):
                optimizer.zero_grad()
                total = distance(inputs_TD, again=True)
                total = total + length * (inputs_TD.norm(dim=1).mean() - usual) ** 2
                (inputs_TD.grad,) = torch.autograd.grad(total, [inputs_TD])
                optimizer.step()
            order = _best_order(nearest(inputs_TD, table_VD), score, draws, draw)
            with torch.no_grad():
                inputs_TD.copy_(inputs_TD[order].clone())
            now_T = _replaced(inputs_TD, table_VD, score, choices)
            best_T = min((now_T, best_T), key=score)
            if float(distance(table_VD[best_T])) < FOUND:
                break
            with torch.no_grad():
                inputs_TD.copy_((inputs_TD + table_VD[best_T]) / 2)
        return best_T

    found: list[Recovered] = []
    # The fused kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        while len(found) < restarts and all(each.distance >= FOUND for each in found):
            best_T = attempt()
            found.append(Recovered(tuple(best_T.tolist()), float(distance(table_VD[best_T]))))
    return min(found, key=lambda each: each.distance)


def nearest(inputs_TD: Tensor, table_VD: Tensor) -> Tensor:
    """The row of the table that points most nearly the same way, of each input, [T]."""
    scores_TV = F.normalize(inputs_TD.detach(), dim=-1) @ F.normalize(table_VD, dim=-1).T
    return scores_TV.argmax(1)


def _replaced(
    inputs_TD: Tensor, table_VD: Tensor, score: Callable[[Tensor], float], choices: int
) -> Tensor:
    """The nearest tokens, of which each in turn gives way to the best of its nearest few, [T]."""
    scores_TV = F.normalize(inputs_TD.detach(), dim=-1) @ F.normalize(table_VD, dim=-1).T
    near_TK = scores_TV.topk(min(choices, len(table_VD)), dim=1).indices
    ids_T = near_TK[:, 0].clone()
    for place, others in enumerate(near_TK):
        tried = [torch.cat([ids_T[:place], each[None], ids_T[place + 1 :]]) for each in others]
        ids_T = min(tried, key=score)
    return ids_T


def _best_order(
    ids_T: Tensor, score: Callable[[Tensor], float], draws: int, draw: torch.Generator
) -> Tensor:
    """The best of some orders of the tokens, each a move away from the best so far."""
    order = torch.arange(len(ids_T))
    best = score(ids_T)
    for _ in range(draws if len(ids_T) > 1 else 0):
        moved = _moved(order, draw)
        now = score(ids_T[moved])
        if now < best:
            order, best = moved, now
    return order


def _moved(order_T: Tensor, draw: torch.Generator) -> Tensor:
    """A swap of two tokens, or a stretch of them that goes elsewhere: LAMP's moves."""
    length = len(order_T)
    found = order_T.tolist()
    a, b = sorted(torch.randperm(length + 1, generator=draw)[:2].tolist())
    if bool(torch.rand((), generator=draw) < 0.5):
        b = min(b, length - 1)
        found[a], found[b] = found[b], found[a]
    else:
        stretch, rest = found[a:b], found[:a] + found[b:]
        at = int(torch.randint(len(rest) + 1, (), generator=draw))
        found = rest[:at] + stretch + rest[at:]
    return torch.tensor(found)
