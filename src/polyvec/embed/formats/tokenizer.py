"""The tokenizer of a folder: its ids are those of the folder's own tokenizer files.

transformers 5 rebuilds a tokenizer from its class name or model_type, which overrules
tokenizer.json (transformers#45701, #45920), and invents a vocabulary where the files are missing.
Here tokenizer.json decides (SILENT rows 33 to 35).
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import (
    TOKENIZER_MAPPING_NAMES,
    tokenizer_class_from_name,
)

from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.formats.gguf.finding import is_gguf
from polyvec.embed.formats.gguf.loading import load_gguf_tokenizer
from polyvec.embed.formats.schema import check_pointer, read_json, write_json
from polyvec.embed.formats.vocabularies import VOCABULARIES, convert, promised_by_class
from polyvec.embed.inputs.contract import PROBES, bare, keep_promises, unlimited
from polyvec.errors import MissingExtraError, TokenizerError

CONFIG = "tokenizer_config.json"
JSON = "tokenizer.json"
# Classes whose makers' code, like transformers 4 and 5, lets flags of tokenizer_config.json
# overrule the normaliser or pre-tokeniser inside tokenizer.json.
BERT_FLAGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
BERT_CLASSES = ("Bert", "DistilBert", "Electra", "MPNet", "MobileBert", "ConvBert", "SqueezeBert")
PREFIX_SPACE_CLASSES = ("GPT2", "Roberta", "Bart", "Longformer", "LED", "CodeGen", "Deberta")


def has_tokenizer(root: Path) -> bool:
    """Whether a folder has a tokenizer of its own; an adapter's may be its base model's."""
    return any((root / name).is_file() for name in (JSON, CONFIG, *VOCABULARIES))


def load_tokenizer(
    root: Path, trust_remote_code: bool = False, **options: Any
) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, with the ids of its tokenizer.json.

    `options` replace settings of tokenizer_config.json. Where there is no tokenizer.json, its
    vocabulary is converted by transformers. BOS and EOS that tokenizer_config.json promises
    are added. Raises TokenizerError if the files are missing, unreadable, or give other ids.
    """
    if is_gguf(root):
        return load_gguf_tokenizer(root)
    for name in (JSON, *VOCABULARIES):
        if (root / name).is_file():
            check_pointer(root / name)
    config = read_json(root / CONFIG, {})
    settings = {**read_json(root / "special_tokens_map.json", {}), **config, **options}
    options.pop("tokenizer_type", None)  # see write_tokenizer
    check_length(settings.get("model_max_length"), root / CONFIG)
    try:
        with quiet_transformers():
            if (root / JSON).is_file():
                found = _from_json(root, settings, options)
            else:
                name = _class_name(root, settings)
                found = convert(root, name, trust_remote_code, options)
                settings = {**promised_by_class(root, name), **settings}
    except (TokenizerError, MissingExtraError):
        raise
    except Exception as error:  # noqa: BLE001 - the Rust tokenizer raises bare Exception
        raise TokenizerError(
            f"{root}: cannot read the tokenizer of {JSON} and {CONFIG} "
            f"({' '.join(str(error).split())[:200]})"
        ) from None
    keep_promises(found, settings, where=root / CONFIG)
    return found


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, str]:
    """Write the tokenizer so that it loads to the same ids, in transformers, too.

    Returns the `tokenizer_args` that sentence-transformers needs for that, mostly none.
    """
    with quiet_transformers():
        tokenizer.save_pretrained(folder)
        config = read_json(folder / CONFIG, {})
        if tokenizer.truncation_side != config.get("truncation_side", "right"):
            # transformers 5 writes what it loaded, not what was set since.
            config["truncation_side"] = tokenizer.truncation_side
        # The one name by which transformers 4 and 5 both leave tokenizer.json alone.
        write_json(folder / CONFIG, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
        model_type = read_json(folder / "config.json", {}).get("model_type")
        if TOKENIZER_MAPPING_NAMES.get(model_type) in (None, "TokenizersBackend"):
            return {}
        theirs = AutoTokenizer.from_pretrained(folder)
    if _first_difference(bare(theirs), bare(tokenizer), ends=True) is None:
        return {}
    # transformers 5 takes the class of model_type (qwen2) whatever the files say. This key
    # names a type without a class of its own.
    return {"tokenizer_type": "granite"}


def check_length(length: object, where: Path) -> None:
    """Raises TokenizerError for a length that is no number; a float is one, as 1e30 for none."""
    if length is None:
        return
    if isinstance(length, bool) or not isinstance(length, int | float) or length < 1:
        raise TokenizerError(f"{where}: model_max_length is {length!r}, expected a number from 1")


def _from_json(
    root: Path, settings: Mapping[str, Any], options: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    """tokenizer.json as it is, with the settings beside it."""
    own = Tokenizer.from_file(str(root / JSON))
    found = PreTrainedTokenizerFast.from_pretrained(root, **options)
    with unlimited(own), unlimited(found.backend_tokenizer) as theirs:
        difference = _first_difference(theirs, own, ends=False)
    if difference is not None:
        probe, got, expected = difference
        raise TokenizerError(
            f"{root / JSON}: transformers reads {probe!r} as {got[:8]}, the file says "
            f"{expected[:8]}; update transformers, or save the tokenizer again with it"
        )
    name = _class_name(root, settings)
    _take_defaults(found, name, settings)
    _obey_flags(found, name, settings)
    return found


def _first_difference(
    found: Tokenizer, expected: Tokenizer, *, ends: bool
) -> tuple[str, list[int], list[int]] | None:
    """The first probe that the two read differently, and the ids of both.

    `ends`: with the special tokens around it, which options may change.
    """
    for probe in PROBES:
        pair = [each.encode(probe, add_special_tokens=ends).ids for each in (found, expected)]
        if pair[0] != pair[1]:
            return probe, pair[0], pair[1]
    return None


def _class_name(root: Path, settings: Mapping[str, Any]) -> str:
    """The tokenizer's class as the folder names it, else that of its model_type."""
    config = read_json(root / "config.json", {})
    name = settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = name or TOKENIZER_MAPPING_NAMES.get(config.get("model_type"))
    return str(name or "").removesuffix("Fast")


def _take_defaults(
    tokenizer: PreTrainedTokenizerBase, name: str, settings: Mapping[str, Any]
) -> None:
    """Special tokens that no file names, as the class has them: BERT's [PAD] and [MASK]."""
    try:
        found = tokenizer_class_from_name(name) if name else None
        parameters = inspect.signature(found.__init__).parameters if found is not None else {}
    except Exception:  # noqa: BLE001 - a class that needs a missing package has no defaults
        return
    names = list(getattr(found, "model_input_names", ()))
    if names and "model_input_names" not in settings:
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    for key, parameter in parameters.items():
        token = parameter.default
        unset = key.endswith("_token") and key not in settings and isinstance(token, str)
        if unset and tokenizer.backend_tokenizer.token_to_id(token) is not None:
            setattr(tokenizer, key, token)


def _obey_flags(tokenizer: PreTrainedTokenizerBase, name: str, settings: Mapping[str, Any]) -> None:
    """Flags beside tokenizer.json that the classes of BERT and GPT-2 put above it."""
    backend = tokenizer.backend_tokenizer
    family = name.removesuffix("Tokenizer")
    if family in BERT_CLASSES and isinstance(backend.normalizer, normalizers.BertNormalizer):
        state = json.loads(backend.normalizer.__getstate__())
        flags = {ours: settings[key] for key, ours in BERT_FLAGS.items() if key in settings}
        wanted = {"clean_text": state["clean_text"], **{k: state[k] for k in BERT_FLAGS.values()}}
        if wanted != (wanted := {**wanted, **flags}):
            backend.normalizer = normalizers.BertNormalizer(**wanted)
    if family in PREFIX_SPACE_CLASSES and isinstance(
        backend.pre_tokenizer, pre_tokenizers.ByteLevel
    ):
        asked = settings.get("add_prefix_space")
        if asked is not None and asked != backend.pre_tokenizer.add_prefix_space:
            regex = backend.pre_tokenizer.use_regex
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=bool(asked), use_regex=regex
            )
