"""Dictionaries of tensors in and out: `preprocess` and `forward`, as losses and trainers use them.

B texts, T tokens of the longest, D state size, E vector size.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from polyvec.embed import encoding
from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.tokens import TokenBatch, Tokens
from polyvec.errors import InputError
from polyvec.interfaces import Prompt

Features = dict[str, Any]


def as_texts(inputs: Any) -> list[str]:
    """The texts of inputs: strings, dicts {"text": ...}, and lists or tuples with one of them.

    Raises InputError, with the index, for images, sounds, conversations and pairs.
    """
    if isinstance(inputs, np.ndarray):
        if not inputs.ndim:  # whose list would be a string, read as its characters
            raise InputError("inputs is an ndarray without dimensions; pass a list of strings")
        inputs = inputs.tolist()
    return [_text(each, index) for index, each in enumerate(inputs)]


def _text(each: Any, index: int) -> str:
    if isinstance(each, Mapping) and set(each) == {"text"}:
        each = each["text"]
    if isinstance(each, list | tuple) and len(each) == 1:
        each = each[0]
    if isinstance(each, list | tuple | Mapping):
        raise InputError(
            f"inputs[{index}] is a {type(each).__name__} of {len(each)}, not a text; pairs are for "
            "CrossEncoder, and images and conversations are not read"
        )
    return encoding.check_text(each, index)


def features_of(embedder: Embedder, texts: Sequence[str], prompt: Prompt) -> Features:
    """The tokens of the texts, padded on the right: input_ids and attention_mask, [B, T].

    Beside them token_type_ids, if the tokenizer has them, and pooling_mask where not every
    token is pooled. Raises InputError for an embedder that averages several inputs a text.
    """
    if not texts:
        return {}
    model = cast(Embedder, embedder.for_role(prompt.role))
    rows = encoding.tokenize(model, texts, prompt)
    if any(len(inputs) != 1 for inputs in rows):
        raise InputError("this model averages several inputs a text, which have no one input_ids")
    tokens = [inputs[0] for inputs in rows]
    longest = max(len(each) for each in tokens)
    ids_BT = np.full((len(tokens), longest), embedder.backbone.pad_id, np.int64)
    masks_BT, pooled_BT = np.zeros((2, len(tokens), longest), np.int64)
    for row, each in enumerate(tokens):
        ids_BT[row, : len(each)], masks_BT[row, : len(each)] = each.ids, 1
        pooled_BT[row, : len(each)] = each.pooled
    features: Features = {"input_ids": torch.from_numpy(ids_BT)}
    if "token_type_ids" in embedder.tokenizer.model_input_names:
        features["token_type_ids"] = torch.zeros_like(features["input_ids"])
    features["attention_mask"] = torch.from_numpy(masks_BT)
    if not np.array_equal(masks_BT, pooled_BT):
        features["pooling_mask"] = torch.from_numpy(pooled_BT)
    return {**features, "modality": "text"}


def computed(embedder: Embedder, features: Mapping[str, Any], task: str | None) -> Features:
    """The features with token_embeddings [B, T, D] and sentence_embedding [B, E]; differentiable.

    Also of features that another tokenizer made: padded on either side, or flat with offsets.
    """
    model = cast(Embedder, embedder.for_role(task))
    ids, mask_BT = features["input_ids"], features.get("attention_mask")
    if "offsets" in features:
        texts = list(torch.tensor_split(ids, features["offsets"][1:].cpu()))
        states = model.backbone(_batch(texts, None), needs=model.needs)
        return {**features, "sentence_embedding": model._vectors(states)}
    if mask_BT is None:
        mask_BT = torch.ones_like(ids)
    real_BT = mask_BT.bool()
    pooled_BT = _pooled(model, features, real_BT)
    texts = [row[keep] for row, keep in zip(ids, real_BT, strict=True)]
    pooled = None if pooled_BT is None else pooled_BT[real_BT]
    states = model.backbone(_batch(texts, pooled), needs=model.needs)
    tokens_BTD = model._pooled_states(states)
    placed_BTD = tokens_BTD.new_zeros(*ids.shape, tokens_BTD.shape[-1])
    placed_BTD[real_BT.to(placed_BTD.device)] = tokens_BTD[states.attention_mask_BT]
    vectors_BE = model._vectors(states)
    return {**features, "token_embeddings": placed_BTD, "sentence_embedding": vectors_BE}


def _pooled(model: Embedder, features: Mapping[str, Any], real_BT: Tensor) -> Tensor | None:
    """Which tokens are pooled, if not all: by pooling_mask, or by the length of the prompt."""
    if "pooling_mask" in features:
        return cast(Tensor, features["pooling_mask"]).bool()
    length = features.get("prompt_length")
    if length is None or model.pool_prompt:
        return None
    places_BT = real_BT.long().cumsum(dim=1)
    return real_BT & (places_BT > torch.as_tensor(length, device=real_BT.device).reshape(-1, 1))


def _batch(texts: Sequence[Tensor], pooled: Tensor | None) -> TokenBatch:
    arrays = [text.cpu().numpy().astype(np.int32) for text in texts]
    batch = TokenBatch.of_ids(arrays)
    if pooled is None:
        return batch
    flags = pooled.cpu().numpy()
    ends = np.cumsum([0, *batch.lengths])
    tokens = [
        Tokens(
            ids, flags[start:stop], np.ones(len(ids), bool), np.zeros(len(ids), np.int8), len(ids)
        )
        for ids, start, stop in zip(arrays, ends, ends[1:], strict=False)
    ]
    return TokenBatch.of(range(len(tokens)), tokens)
