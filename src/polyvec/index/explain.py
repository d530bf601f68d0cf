"""Why a text was found: what each component scored, and which words carried it.

T tokens of a text, D numbers a state, W words.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from polyvec.data.chunking import is_late
from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.index.adding import picked
from polyvec.index.engines.interface import Description, Engine
from polyvec.index.engines.scoring import similarities
from polyvec.index.records import Component, Explanation, Hit, Share, read_as
from polyvec.index.searching import OWN_SIMILARITIES
from polyvec.interfaces import PromptChoice, RunOptions, TextEncoder, Vectors

WORD = re.compile(r"\w+")
MOST_GROUPS = 48  # texts that are encoded to see what leaving words out changes
TOLERANCE = 2e-3  # between a score and the sum of its tokens' shares, else they are not its parts


def explained(
    engine: Engine,
    query: str,
    found: Sequence[tuple[Hit, Sequence[Component]]],
    vectors: Vectors | None,
    embedder: TextEncoder | None,
    choice: PromptChoice,
) -> list[Hit]:
    """The hits of a query, each with its explanation; `vectors` are the query's own."""
    description = engine.description
    names = [hit.id for hit, _ in found]
    terms: Sequence[Mapping[str, float] | None] = [None] * len(found)
    if any(each.name == "words" for _, components in found for each in components):
        terms = engine.term_scores(sorted(set(WORD.findall(query.lower()))), names)
    out = []
    for (hit, components), held in zip(found, terms, strict=True):
        why = Explanation(tuple(components), terms=held)
        if vectors is not None and embedder is not None and _is_known(description):
            why = _with_shares(why, hit, vectors, embedder, description, choice)
        out.append(replace(hit, explanation=why))
    return out


def _is_known(description: Description) -> bool:
    if is_late(description.chunking):  # the vector is not of the text alone
        return False
    return description.similarity in (*SIMILARITIES, *OWN_SIMILARITIES)


def _with_shares(
    why: Explanation,
    hit: Hit,
    query: Vectors,
    embedder: TextEncoder,
    description: Description,
    choice: PromptChoice,
) -> Explanation:
    words = [match.span() for match in WORD.finditer(hit.text)]
    if not words:
        return why
    shares = _of_states(hit, query, embedder, description, choice, words)
    if shares is not None:
        rest = shares[-1]
        parts = [
            Share(hit.text[start:end], start, end, score)
            for (start, end), score in zip(words, shares[:-1], strict=True)
        ]
        return replace(why, shares=tuple(parts), rest=rest, method="token states")
    step = -(-len(words) // MOST_GROUPS)
    groups = [words[at : at + step] for at in range(0, len(words), step)]
    spans = [(group[0][0], group[-1][1]) for group in groups]
    shorter = [hit.text[:start] + hit.text[end:] for start, end in spans]
    texts = [read_as(text, hit.metadata) for text in (hit.text, *shorter)]
    options: Any = choice
    encoded, _ = embedder.encode_vectors(
        texts, options=RunOptions(truncate="silent", show_progress_bar=False), **options
    )
    (scores,) = similarities(query, encoded, description.similarity)
    parts = [
        Share(hit.text[start:end], start, end, float(scores[0] - without))
        for (start, end), without in zip(spans, scores[1:], strict=True)
    ]
    return replace(why, shares=tuple(parts), method="left out")


def _of_states(
    hit: Hit,
    query: Vectors,
    embedder: TextEncoder,
    description: Description,
    choice: PromptChoice,
    words: Sequence[tuple[int, int]],
) -> list[float] | None:
    """The shares of the words, and of the rest; None unless the vector is a mean of states.

    The mean's product with the query is the sum of the states' products, divided by their number,
    and by the lengths for cosine.
    """
    tokenizer = getattr(embedder, "text_tokenizer", None)
    is_mean = getattr(embedder, "pooling", None) == ("mean",)
    if tokenizer is None or not is_mean or description.similarity not in ("cosine", "dot"):
        return None
    text = read_as(hit.text, hit.metadata)
    options: Any = choice
    states_TD = cast(Any, embedder).encode(
        text, output_value="token_embeddings", truncate="silent", **options
    )
    (query_E,) = np.asarray(query.to_dense(), np.float64)
    if states_TD.shape[1] != len(query_E):
        return None
    first, last = len(tokenizer.contract.prefix), len(tokenizer.contract.suffix)
    own = tokenizer.spans(text)[: len(states_TD) - first - last]
    places = [(0, 0)] * first + own + [(0, 0)] * last
    if len(places) != len(states_TD):  # a prompt or a template is read, too
        return None
    mean_D = states_TD.astype(np.float64).mean(axis=0)
    cosine = description.similarity == "cosine"
    scale = np.linalg.norm(mean_D) * np.linalg.norm(query_E) if cosine else 1.0
    shares_T = states_TD @ query_E / (len(states_TD) * max(scale, 1e-12))
    if (
        abs(shares_T.sum() - _dense_score(hit, query, embedder, description, text, choice))
        > TOLERANCE
    ):
        return None
    shift = len(text) - len(hit.text)  # of the header
    starts = np.array([start for start, _ in words])
    found = [0.0] * (len(words) + 1)
    for (start, end), share in zip(places, shares_T.tolist(), strict=True):
        at = int(np.searchsorted(starts, start - shift, side="right")) - 1
        inside = end > start and start >= shift and at >= 0 and start - shift < words[at][1]
        found[at if inside else -1] += share
    return found


def _dense_score(
    hit: Hit,
    query: Vectors,
    embedder: TextEncoder,
    description: Description,
    text: str,
    choice: PromptChoice,
) -> float:
    options: Any = choice
    vectors, _ = embedder.encode_vectors(
        [text], options=RunOptions(truncate="silent", show_progress_bar=False), **options
    )
    return float(similarities(picked(query, [0]), vectors, description.similarity)[0, 0])
