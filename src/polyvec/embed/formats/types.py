"""Types of the values in a model folder's JSON files, checked when a file is read.

What transformers reads of config.json and the tokenizer's files is left to it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polyvec.errors import ModelError

Check = tuple[str, Callable[[Any], bool]]


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(each) is int for each in pair)
        for pair in value
    )


def _is_prompts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        each is None or isinstance(each, str) for each in value.values()
    )


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int for each in value)


TEXT: Check = ("a string", lambda value: isinstance(value, str))
TEXTS: Check = ("a list of strings", _is_texts)
NAMES: Check = ("a string or a list of strings", lambda v: isinstance(v, str) or _is_texts(v))
FLAG: Check = ("true or false", lambda value: type(value) is bool)
COUNT: Check = ("a whole number from 1", _is_count)
WHOLE: Check = ("a whole number", lambda value: type(value) is int)
TABLE: Check = ("a table {...}", lambda value: isinstance(value, dict))
PROMPTS: Check = ("a table of names and strings", _is_prompts)
IDS: Check = ("a list of token ids", _is_ids)
FORMAT: Check = (
    "1, the only format that this version of polyvec reads",
    lambda value: type(value) is int and value == 1,
)
NUMBER: Check = ("a number", lambda v: isinstance(v, int | float) and type(v) is not bool)
TOKEN: Check = ("a token or its id", lambda v: isinstance(v, str) or type(v) is int)
WEIGHTS: Check = (
    "a table of words and numbers",
    lambda v: isinstance(v, dict) and all(type(each) in (int, float) for each in v.values()),
)
CONTRACT = {"prefix": IDS, "suffix": IDS, "pad_id": WHOLE, "vocab_size": COUNT}

POLYVEC = {
    "format": FORMAT,
    "tokenizer_contract": TABLE,
    "attention": TEXT,
    "blocked": ("a list of pairs of numbers", _is_pairs),
    "pool_prompt": FLAG,
    "special_tokens": TEXT,
    "template": TABLE,
    "prepending": TABLE,
    "variants": TABLE,
    "calibration_texts": WHOLE,
}
CHECKS: Mapping[str, Mapping[str, Check]] = {
    "config_sentence_transformers.json": {
        "model_type": TEXT,
        "prompts": PROMPTS,
        "default_prompt_name": TEXT,
        "similarity_fn_name": TEXT,
        "max_active_dims": COUNT,
        # PyLate's:
        "query_prefix": TEXT,
        "document_prefix": TEXT,
        "query_length": COUNT,
        "document_length": COUNT,
        "skiplist_words": TEXTS,
    },
    "sentence_bert_config.json": {
        "transformer_task": TEXT,
        "modality_config": TABLE,
        "query_length": COUNT,
        "document_length": COUNT,
        "query_expansion": TABLE,
    },
    "config.json": {
        "architectures": TEXTS,
        "model_type": TEXT,
        # Of modules:
        "in_features": COUNT,
        "out_features": COUNT,
        "bias": FLAG,
        "activation_function": TEXT,
        "use_residual": FLAG,
        "pooling_mode": NAMES,
        "include_prompt": FLAG,
        "pooling_mode_cls_token": FLAG,
        "pooling_mode_max_tokens": FLAG,
        "pooling_mode_mean_tokens": FLAG,
        "pooling_mode_mean_sqrt_len_tokens": FLAG,
        "pooling_mode_weightedmean_tokens": FLAG,
        "pooling_mode_lasttoken": FLAG,
        "module_input_name": TEXT,
        "module_output_name": TEXT,
        "vocab": TEXTS,
        "word_weights": WEIGHTS,
        "unknown_word_weight": NUMBER,
        "cumulative_term_frequency": FLAG,
        "skiplist_words": TEXTS,
        "skiplist_tasks": NAMES,
    },
    "adapter_config.json": {"peft_type": TEXT, "base_model_name_or_path": TEXT},
    "polyvec.json": POLYVEC,
}
INSIDE: Mapping[str, Mapping[str, Check]] = {
    "tokenizer_contract": CONTRACT,
    "query_expansion": {"strategy": TEXT, "attend": FLAG, "token": TOKEN, "length": COUNT},
}
WITHOUT_NULL = ("polyvec.json",)  # elsewhere null is what is not set
NEVER_NULL = (
    "in_features",
    "out_features",
    "activation_function",
    "pooling_mode",
    "vocab",
    "unknown_word_weight",
)


def check_types(table: Mapping[str, Any], path: Path) -> None:
    """Raises ModelError, naming file, key and what is expected, for a value of another type."""
    for key, (expected, is_right) in CHECKS.get(path.name, {}).items():
        if key in table:
            _check(table[key], key, expected, is_right, path)
    for outer, checks in INSIDE.items():
        inside = table.get(outer) if outer in CHECKS.get(path.name, {}) else None
        for key, (expected, is_right) in checks.items():
            if inside and key in inside:
                _check(inside[key], f"{outer} {key}", expected, is_right, path)


def _check(
    value: Any, key: str, expected: str, is_right: Callable[[Any], bool], path: Path
) -> None:
    if value is None and path.name not in WITHOUT_NULL and key not in NEVER_NULL:
        return
    if not is_right(value):
        raise ModelError(f"{path}: {key} is {repr(value)[:60]}, expected {expected}")
