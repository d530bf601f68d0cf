"""Which units are kept under a budget of tokens, which is met as it is counted in the end.

Units are taken by score. What a text costs is not the sum of its units: tokenizers join what
comes to stand side by side. So each choice is joined and counted, and then corrected. U units.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

Count = Callable[[np.ndarray], int]
NEAR = 4  # tokens below the budget from which units are added one by one
TRIES = 48  # counts of the whole text until a budget that no choice meets exactly is left open
MOST_TRIES = 600  # of all stages together, for the last token
STEPS = 6  # units by which a run is lengthened
SWAPS = 12  # pairs of units that are tried for the last tokens


@dataclass(slots=True)
class Search:
    """A selection in the making: the units kept, and what they cost together."""

    count: Count
    kept_U: np.ndarray
    cost: int
    tries: int = field(default=0)

    def cost_of(self, kept_U: np.ndarray) -> int:
        self.tries += 1
        return self.count(kept_U)

    def take(self, kept_U: np.ndarray, budget: int) -> bool:
        """Move to another selection if it is within the budget and fills it more."""
        cost = self.cost_of(kept_U)
        if self.cost < cost <= budget:
            self.kept_U, self.cost = kept_U, cost
            return True
        return False


def select(
    scores_U: np.ndarray,
    costs_U: np.ndarray,
    budget: int,
    count: Count,
    forced_U: np.ndarray | None = None,
    allowed_U: np.ndarray | None = None,
    *,
    exchange: bool = False,
) -> np.ndarray:
    """bool [U]: the best units whose text has at most `budget` tokens, and as many as can be.

    costs_U: about what each unit costs alone. count: tokens of the text of the kept units. Forced
    units are kept (the caller checks that they fit), units that are not allowed never. Of equal
    scores the first comes first. exchange: give up one of the worst kept units for dearer ones
    where that meets the budget to the last token; for small units, of which one more or less is no
    loss.
    """
    forced_U = np.zeros(len(scores_U), bool) if forced_U is None else forced_U
    allowed_U = np.ones(len(scores_U), bool) if allowed_U is None else allowed_U
    order = np.lexsort((np.arange(len(scores_U)), -scores_U, ~forced_U))
    order = order[(allowed_U | forced_U)[order]]
    found, length = _prefix(order, costs_U, budget, count, int(forced_U.sum()))
    if found.cost < budget:
        _fill(found, order[length:], costs_U, budget)
    if exchange and found.cost < budget:
        _neighbours(found, order[length:], budget)
    if exchange and found.cost < budget:
        _exchange(found, order, costs_U, budget, forced_U)
    if exchange and found.cost < budget:
        _without(found, order, costs_U, budget, forced_U)
    return found.kept_U


def _prefix(
    order: np.ndarray, costs_U: np.ndarray, budget: int, count: Count, least: int
) -> tuple[Search, int]:
    """The longest beginning of the order that fits, by bisection from an estimate."""

    def kept(length: int) -> np.ndarray:
        kept_U = np.zeros(len(costs_U), bool)
        kept_U[order[:length]] = True
        return kept_U

    sums = np.cumsum(costs_U[order])
    low, high = least, len(order)  # low fits; what is above high does not
    search = Search(count, kept(low), 0)
    search.cost = search.cost_of(search.kept_U)
    guess = int(np.searchsorted(sums, budget, side="right"))
    while low < high and search.cost < budget - NEAR:
        guess = min(max(guess, low + 1), high)
        cost = search.cost_of(candidate := kept(guess))
        if cost <= budget:
            low, search.kept_U, search.cost = guess, candidate, cost
            if cost == budget:
                break
        else:
            high = guess - 1
        # Where the sums say that the budget lies, seen from the length that was counted.
        here = sums[guess - 1] if guess else 0
        guess = int(np.searchsorted(sums, here + budget - cost, side="right"))
        if search.tries > TRIES // 2:
            guess = (low + high + 1) // 2
    return search, low


def _fill(
    search: Search, rest: np.ndarray, costs_U: np.ndarray, budget: int, most: int = TRIES
) -> None:
    """Add units in their order, where they fit; at most so many counts."""
    tries = 0
    while len(rest) and search.cost < budget and tries < most:
        rest = rest[costs_U[rest] <= budget - search.cost]
        # All that fit by their sum at once; if the count disagrees, half of them.
        length = int(np.searchsorted(np.cumsum(costs_U[rest]), budget - search.cost, "right"))
        while length and tries < most:
            tries += 1
            kept_U = search.kept_U.copy()
            kept_U[rest[:length]] = True
            if search.take(kept_U, budget):
                rest = rest[length:]
                break
            if length == 1:
                rest = rest[1:]  # it does not fit; perhaps the next does
            length //= 2


def _neighbours(search: Search, rest: np.ndarray, budget: int) -> None:
    """Lengthen runs of kept units, which needs no separator, until the budget is met."""
    free_U = np.zeros(len(search.kept_U), bool)
    free_U[rest] = True
    free_U &= ~search.kept_U
    padded = np.concatenate([[False], search.kept_U, [False]])
    after_U, before_U = padded[:-2] & free_U, padded[2:] & free_U
    tries = 0
    for unit in rest[(after_U | before_U)[rest]].tolist():
        step = 1 if after_U[unit] else -1
        kept_U = search.kept_U.copy()
        # Several units may cost no more than one, where they become a single token.
        for place in range(unit, unit + step * STEPS, step):
            if not (0 <= place < len(free_U) and free_U[place] and tries < TRIES):
                break
            tries += 1
            kept_U[place] = True
            cost = search.cost_of(kept_U)
            if cost == budget:
                search.kept_U, search.cost = kept_U, cost
                return
            if cost > budget + 1:
                break


def _exchange(
    search: Search, order: np.ndarray, costs_U: np.ndarray, budget: int, forced_U: np.ndarray
) -> None:
    """Exchange a kept unit for a dearer one, or for two, so that no token is left over."""
    for out, into in _exchanges(search.kept_U, order, costs_U, budget - search.cost, forced_U):
        kept_U = search.kept_U.copy()
        kept_U[out], kept_U[into] = False, True
        if search.take(kept_U, budget) and search.cost == budget:
            return


def _without(
    search: Search, order: np.ndarray, costs_U: np.ndarray, budget: int, forced_U: np.ndarray
) -> None:
    """Leave out one of the worst kept units, or several, and fill the budget once more."""
    kept = [unit for unit in order[::-1].tolist() if search.kept_U[unit] and not forced_U[unit]]
    worst = kept[:SWAPS]
    for left in (*([unit] for unit in worst), *(worst[:n] for n in range(2, len(worst) + 1))):
        if search.tries > MOST_TRIES:
            return
        kept_U = search.kept_U.copy()
        kept_U[left] = False
        other = Search(search.count, kept_U, search.count(kept_U), search.tries + 1)
        if other.cost > budget:
            continue
        rest = order[~search.kept_U[order]]
        _fill(other, rest, costs_U, budget, STEPS)
        _neighbours(other, rest, budget)
        search.tries = other.tries
        if other.cost == budget:
            search.kept_U, search.cost = other.kept_U, other.cost
            return


def _exchanges(
    kept_U: np.ndarray, order: np.ndarray, costs_U: np.ndarray, room: int, forced_U: np.ndarray
) -> Iterator[tuple[int, list[int]]]:
    """The worst kept unit and the best others, for each pair of costs that fills the room."""
    free = [int(u) for u in order if not kept_U[u]]
    kept = [int(u) for u in order[::-1] if kept_U[u] and not forced_U[u]]
    place = {unit: number for number, unit in enumerate(order.tolist())}
    best: dict[int, list[int]] = {}
    for unit in free:
        best.setdefault(int(costs_U[unit]), []).append(unit)
    worst: dict[int, list[int]] = {}
    for unit in kept:
        worst.setdefault(int(costs_U[unit]), []).append(unit)
    found: list[tuple[int, int, list[int]]] = []
    for cost, outs in worst.items():
        for out in outs[:SWAPS]:
            wanted = cost + room
            ways = [[each] for each in best.get(wanted, ())[:2]]
            for first, firsts in best.items():
                if (second := wanted - first) == first and len(firsts) > 1:
                    ways.append(firsts[:2])
                elif second > first and second in best:
                    ways.append([firsts[0], best[second][0]])
            found += [(max(place[u] for u in way) - place[out], out, way) for way in ways]
    found.sort(key=lambda each: each[0])
    for _, out, way in found[:SWAPS]:
        yield out, way
