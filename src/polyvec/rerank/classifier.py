"""Sequence classifiers of pairs of texts: folders in sentence-transformers' format, read and
written."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.formats.checksums import check_files, write_checksums
from polyvec.embed.formats.schema import listed_modules, read_json, write_json
from polyvec.embed.formats.tokenizer import check_length
from polyvec.embed.formats.transformer import load_config, odd_keys
from polyvec.embed.formats.weights import find_weights
from polyvec.errors import ModelError, PolyvecError

SETTINGS = "config_sentence_transformers.json"
# What sentence-transformers 5.4 and later read of a sequence classifier.
CLASSIFIER = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}
MODULE = {
    "idx": 0,
    "name": "0",
    "path": "",
    "type": "sentence_transformers.base.modules.transformer.Transformer",
}


def write_classifier(folder: Path, model: Any, tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Write what `load_classifier` and sentence-transformers read, into a folder that is there.

    settings: of config_sentence_transformers.json; `activation_fn` among them.
    """
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = read_json(folder / "config.json")
    # Where versions before 5.4 look for it.
    config["sentence_transformers"] = {"activation_fn": settings["activation_fn"]}
    write_json(folder / "config.json", config)
    write_json(folder / SETTINGS, settings)
    write_json(folder / "sentence_bert_config.json", CLASSIFIER)
    (folder / "modules.json").write_text(json.dumps([MODULE], indent=2) + "\n", "utf-8")
    write_checksums(folder)


@torch.no_grad()
def _check_scores(model: Any, tokenizer: Any) -> None:
    """Scores a pair, so that settings that do not fit are an error of the folder's, not later."""
    read = tokenizer("a", "b", truncation=True, return_tensors="pt")
    if not bool(model.eval()(**read).logits.isfinite().all()):
        raise ValueError("the score of a pair is not finite; the weights are damaged")


def load_classifier(
    folder: Path,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    trusted: bool = False,
    *,
    untrained: bool = True,
) -> tuple[Any, Any]:
    """Model and tokenizer of a folder, with other settings of config.json in `config`.

    Weights that are not stored start at random: with `untrained` a warning says so, without it
    that is an error. Raises ModelError for another kind of model.
    """
    own = read_json(folder / SETTINGS, {}).get("model_type") == "CrossEncoder"
    if own and (folder / "modules.json").is_file() and len(listed_modules(folder)) > 1:
        raise ModelError(
            f"{folder}: scores come from several modules (modules.json); polyvec's CrossEncoder "
            "runs sequence classifiers only"
        )
    check_files(folder)
    find_weights(folder)  # raises ModelError for damage that transformers reads over
    settings = load_config(folder, trusted, **config)
    try:
        with quiet_transformers():
            named = " ".join(settings.architectures or ())
            if not named.endswith("ForSequenceClassification") and not config.get("num_labels"):
                settings.num_labels = 1
            if "ForCausalLM" in named:
                raise ModelError(
                    f"{folder}: a language model that writes its judgement; polyvec's CrossEncoder "
                    "runs sequence classifiers only"
                )
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=settings,
                dtype=dtype,
                trust_remote_code=trusted,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
            check_length(tokenizer.model_max_length, folder / "tokenizer_config.json")
            _check_scores(model, tokenizer)
    except PolyvecError:
        raise
    except Exception as error:  # noqa: BLE001 - settings of another type raise anything
        raise ModelError(
            f"{folder}: {' '.join(str(error).split())[:300]}{odd_keys(settings, folder)}"
        ) from None
    missing = sorted(info["missing_keys"])
    if missing:
        told = (
            f"{folder}: {len(missing)} weights are not stored and start at random, the first "
            f"{missing[0]}; train the model before it scores pairs"
        )
        if not untrained:
            raise ModelError(told)
        warnings.warn(told, stacklevel=3)
    return model, tokenizer


def outline_classifier(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model without its weights, on the device "meta", and its tokenizer."""
    settings = load_config(folder, **config)
    with torch.device("meta"), quiet_transformers():
        model = AutoModelForSequenceClassification.from_config(settings)
        return model.eval(), AutoTokenizer.from_pretrained(folder)
