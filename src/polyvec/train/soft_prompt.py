"""Soft prompts: tokens of their own at the beginning of every text, whose embeddings are trained.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) as tokens of the tokenizer, which adds them
after BOS by itself, in transformers and sentence-transformers too.
"""

from typing import Any

import torch

from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.contract import set_ends
from polyvec.errors import SettingsError

NAME = "<prompt_{}>"


def soft_prompt_ids(embedder: Embedder) -> list[int]:
    """Ids of the soft prompt's tokens, in order; [] if the embedder has none."""
    vocabulary = embedder.tokenizer.get_vocab()
    found: list[int] = []
    while NAME.format(len(found)) in vocabulary:
        found.append(vocabulary[NAME.format(len(found))])
    return found


def add_soft_prompt(embedder: Embedder, num_tokens: int) -> list[int]:
    """Put so many new tokens before every text; returns their ids.

    Their embeddings are copies of those of random tokens, from a fixed seed: what the model
    reads is then a text, if a strange one. Raises SettingsError where no room for a text is left.
    """
    words = embedder.text_tokenizer
    contract, tokenizer = words.contract, embedder.tokenizer
    fixed = num_tokens + len(contract.prefix) + len(contract.suffix)
    if num_tokens < 1 or (words.max_length is not None and fixed >= words.max_length):
        raise SettingsError(
            f"adapter 'prompt': num_tokens {num_tokens} is not between 1 and what leaves room for "
            f"a text in {words.max_length} tokens"
        )
    tokenizer.add_tokens([NAME.format(i) for i in range(num_tokens)], special_tokens=True)
    ids = soft_prompt_ids(embedder)
    backbone = embedder.backbone
    model: Any = backbone.model if backbone.lm is None else backbone.lm
    before = int(backbone.num_rows or 0)
    if max(ids) >= before:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    body: Any = backbone.model
    weight = body.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    taken = torch.randint(min(ids), (num_tokens,), generator=generator)
    with torch.no_grad():
        weight[ids] = weight[taken.to(weight.device)].clone()
    set_ends(tokenizer.backend_tokenizer, (*contract.prefix, *ids), contract.suffix)
    words.check_rows(backbone.num_rows)
    return ids
