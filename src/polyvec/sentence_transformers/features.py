"""Dictionaries of tensors in and out: `preprocess` and `forward`, as losses and trainers use them.

B texts, T tokens of the longest, D state size, E vector size.
"""

import dataclasses
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding

from polyvec.embed import encoding
from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.tables import TableTokenizer
from polyvec.embed.inputs.tokens import TokenBatch, Tokens
from polyvec.errors import InputError
from polyvec.interfaces import Prompt

Pair = tuple[str, str]
Features = MutableMapping[str, Any]


def as_inputs(inputs: Any) -> list[str | Pair]:
    """The texts of inputs: strings, dicts {"text": ...}, lists or tuples with one of them or two.

    Two are a pair, which the model reads together. Raises InputError, with the index, for images,
    sounds and conversations.
    """
    if isinstance(inputs, np.ndarray):
        if not inputs.ndim:  # whose list would be a string, read as its characters
            raise InputError("inputs is an ndarray without dimensions; pass a list of strings")
        inputs = inputs.tolist()
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable):
        raise InputError(f"inputs is {type(inputs).__name__}; pass a list of strings")
    return [_input(each, index) for index, each in enumerate(inputs)]


def _input(each: Any, index: int) -> str | Pair:
    if isinstance(each, Mapping) and set(each) == {"text"}:
        each = each["text"]
    if isinstance(each, list | tuple) and len(each) == 1:
        each = each[0]
    if isinstance(each, list | tuple) and len(each) == 2:
        first, second = (encoding.check_text(text, index) for text in each)
        return first, second
    if isinstance(each, list | tuple | Mapping):
        raise InputError(
            f"inputs[{index}] is a {type(each).__name__} of {len(each)}, not a text or a pair of "
            "texts; images, sounds and conversations are not read"
        )
    return encoding.check_text(each, index)


def has_pairs(inputs: Sequence[str | Pair]) -> bool:
    """Whether one of the inputs is a pair of texts."""
    return any(isinstance(each, tuple) for each in inputs)


def features_of(embedder: Embedder, inputs: Sequence[str | Pair], prompt: Prompt) -> Features:
    """The tokens of texts or pairs, padded on the right: input_ids and attention_mask, [B, T].

    A BatchEncoding, as transformers' tokenizers give it: a mapping with `to(device)`. Beside them
    token_type_ids, if the tokenizer has them, prompt_length, if there is a prompt, and
    pooling_mask where the pooled tokens are not those after the prompt. Raises InputError for an
    embedder that averages several inputs a text.
    """
    if not inputs:
        return {}
    model = cast(Embedder, embedder.for_role(prompt.role))
    if has_pairs(inputs):
        rows, types = _pair_tokens(model, inputs, prompt), True
    else:
        rows, types = _text_tokens(model, cast(Sequence[str], inputs), prompt), False
    longest = max(len(each) for each in rows)
    ids_BT = np.full((len(rows), longest), embedder.backbone.pad_id, np.int64)
    masks_BT, types_BT, pooled_BT = np.zeros((3, len(rows), longest), np.int64)
    for row, each in enumerate(rows):
        ids_BT[row, : len(each)], masks_BT[row, : len(each)] = each.ids, 1
        types_BT[row, : len(each)] = each.segments if types else 0
        pooled_BT[row, : len(each)] = each.pooled
    features: dict[str, Any] = {"input_ids": torch.from_numpy(ids_BT)}
    if "token_type_ids" in embedder.tokenizer.model_input_names:
        features["token_type_ids"] = torch.from_numpy(types_BT)
    features["attention_mask"] = torch.from_numpy(masks_BT)
    features["modality"] = "text"
    length = _prompt_length(model, prompt)
    if length is not None:
        features["prompt_length"] = length
    pooled = _pooled(model, features, features["attention_mask"].bool())
    wanted_BT = masks_BT if pooled is None else pooled.numpy()
    if not np.array_equal(pooled_BT, wanted_BT):
        features["pooling_mask"] = torch.from_numpy(pooled_BT)
    return BatchEncoding(features)


def _text_tokens(model: Embedder, texts: Sequence[str], prompt: Prompt) -> list[Tokens]:
    rows = encoding.tokenize(model, texts, prompt)
    if any(len(inputs) != 1 for inputs in rows):
        raise InputError("this model averages several inputs a text, which have no one input_ids")
    return [inputs[0] for inputs in rows]


def _pair_tokens(model: Embedder, inputs: Sequence[str | Pair], prompt: Prompt) -> list[Tokens]:
    """Tokens of pairs as the tokenizer joins them, the prompt before the first text.

    Their `segments` are the token types. Raises InputError for a model that reads single texts
    only.
    """
    words = model.text_tokenizer
    reason = (
        ("a template" if model.template is not None else "")
        or ("a static table" if isinstance(words, TableTokenizer) else "")
        or ('special_tokens="text"' if not words.parses_texts else "")
        or ("a pooling of words" if model.reads_words or model.reads_text_mask else "")
    )
    if reason:
        raise InputError(f"pairs of texts are not read with {reason}; pass single texts")
    lower = str.lower if words.lower_case else str
    joined = [
        tuple(map(lower, (prompt.text + each[0], each[1])))
        if isinstance(each, tuple)
        else lower(prompt.text + each)
        for each in inputs
    ]
    found = model.tokenizer(
        joined,
        truncation="longest_first" if words.max_length else False,
        max_length=words.max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    length = 0 if model.pool_prompt else _prompt_length(model, prompt) or 0
    rows = zip(found["input_ids"], found["token_type_ids"], strict=True)
    return [
        Tokens(
            np.asarray(ids, np.int32),
            np.arange(len(ids)) >= length,
            np.ones(len(ids), bool),
            np.asarray(types, np.int8),
            len(ids),
        )
        for ids, types in rows
    ]


def _prompt_length(model: Embedder, prompt: Prompt) -> int | None:
    """Tokens of the prompt alone, with the special tokens before it; None where none is read."""
    words = model.text_tokenizer
    if not prompt.text or model.template is not None or isinstance(words, TableTokenizer):
        return None
    lower = str.lower if words.lower_case else str
    ids = model.tokenizer(
        lower(prompt.text), truncation=bool(words.max_length), max_length=words.max_length
    )["input_ids"]
    return len(ids) - (bool(ids) and ids[-1] in model.tokenizer.all_special_ids)


def computed(embedder: Embedder, features: Mapping[str, Any], task: str | None) -> Features:
    """The features with token_embeddings [B, T, D] and sentence_embedding [B, E]; differentiable.

    Also of features that another tokenizer made: padded on either side, or flat with offsets.
    """
    model = cast(Embedder, embedder.for_role(task))
    ids, mask_BT = features["input_ids"], features.get("attention_mask")
    if "offsets" in features:
        texts = list(torch.tensor_split(ids, features["offsets"][1:].cpu()))
        states = model.backbone(_batch(texts), needs=model.needs)
        return {**features, "sentence_embedding": model._vectors(states)}
    if mask_BT is None:
        mask_BT = torch.ones_like(ids)
    real_BT = mask_BT.bool()
    pooled_BT = _pooled(model, features, real_BT)
    texts = [row[keep] for row, keep in zip(ids, real_BT, strict=True)]
    pooled = None if pooled_BT is None else pooled_BT[real_BT]
    types = features.get("token_type_ids")
    types = types[real_BT] if types is not None and bool(types.any()) else None
    states = model.backbone(_batch(texts, pooled, types), needs=model.needs)
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


def _batch(
    texts: Sequence[Tensor], pooled: Tensor | None = None, types: Tensor | None = None
) -> TokenBatch:
    """The batch of token ids; `pooled` and `types` are those of all tokens, one after another."""
    arrays = [text.cpu().numpy().astype(np.int32) for text in texts]
    batch = TokenBatch.of_ids(arrays)
    if pooled is not None:
        batch = dataclasses.replace(batch, pooled_T=pooled.cpu().numpy())
    if types is not None:
        batch = dataclasses.replace(batch, types_T=types.cpu().numpy())
    return batch
