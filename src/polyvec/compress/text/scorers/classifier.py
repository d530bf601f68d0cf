"""A scorer by a token classifier: a folder of transformers', or one that `fit` trained here.

B windows, T tokens.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.compress.text.document import Asked, Document
from polyvec.compress.text.scorer import SCORERS, How, Scorer, per_unit
from polyvec.compress.text.units import Span, sentences
from polyvec.errors import InputError, ModelError, SettingsError, known
from polyvec.storage.files import atomic_file

SETTINGS = "polyvec_classifier.json"  # beside the weights of a classifier trained here
KEEP = ("keep", "preserve", "label_1", "1")  # names of the label of kept tokens
BATCH_TOKENS = 4096
QUESTION_TOKENS = 64  # of a window, at most, for a classifier that reads the question


class TokenClassifier:
    """A transformer that says of each token how likely it is kept.

    model: an AutoModelForTokenClassification; tokenizer: its own. with_question: the question is
    read as the first text of a pair. `keep` is the number of the label of kept tokens.
    """

    def __init__(self, model: Any, tokenizer: Any, *, keep: int, with_question: bool) -> None:
        from polyvec.embed.inputs.contract import bare

        self.model, self.tokenizer = model.eval(), tokenizer
        self.keep, self.with_question = keep, with_question
        self.encoder = bare(tokenizer, specials_are_text=True)
        self._specials = _specials(self.encoder, with_question)
        self._after = self._specials[2]
        limit = getattr(model.config, "max_position_embeddings", None) or 512
        # RoBERTa's positions begin after its padding.
        offset = 2 if "roberta" in str(model.config.model_type) else 0
        self.max_length = min(512, int(limit) - offset)

    @classmethod
    def load(cls, name: str | Path, label: str | None = None) -> "TokenClassifier":
        """Of a folder or hub id, such as microsoft/llmlingua-2-xlm-roberta-large-meetingbank.

        label: the name of the label of kept tokens, if the folder does not call it keep, preserve,
        1 or LABEL_1. Raises ModelError for what is no token classifier.
        """
        import torch
        from transformers import AutoModelForTokenClassification

        from polyvec.embed.backbone.quiet import quiet_transformers
        from polyvec.embed.formats.devices import best_device
        from polyvec.embed.formats.sources import model_folder
        from polyvec.embed.formats.tokenizer import load_tokenizer
        from polyvec.embed.formats.transformer import load_config

        if str(name).startswith("./") and not Path(name).is_dir():
            raise ModelError(
                f"{name}: no such folder; train a token classifier first: see docs/compression.md"
            )
        root = model_folder(name, namespace=None)
        config = load_config(root)
        if not any("TokenClassification" in each for each in config.architectures or ()):
            raise ModelError(
                f"{name}: {', '.join(config.architectures or ('no architecture',))} is no token "
                "classifier (ForTokenClassification); train one: see docs/compression.md"
            )
        names = {int(number): text for number, text in (config.id2label or {}).items()}
        keep = _keep(names, label, str(name))
        with quiet_transformers():
            try:
                model, info = AutoModelForTokenClassification.from_pretrained(
                    root,
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    output_loading_info=True,
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise ModelError(f"{name}: {' '.join(str(error).split())[:300]}") from None
        if info["missing_keys"]:
            raise ModelError(f"{name}: weights are missing: {sorted(info['missing_keys'])[0]}")
        settings = {}
        if (Path(root) / SETTINGS).is_file():
            settings = json.loads((Path(root) / SETTINGS).read_text("utf-8"))
        asks = bool(settings.get("with_question"))
        tokenizer = load_tokenizer(root)
        return cls(model.to(best_device()), tokenizer, keep=keep, with_question=asks)

    def save(self, folder: Path) -> None:
        """Write a folder that `load` and transformers read."""
        from polyvec.embed.formats.tokenizer import write_tokenizer
        from polyvec.storage.files import atomic_folder

        with atomic_folder(folder, replaceable=SETTINGS) as target:
            self.model.save_pretrained(target)
            write_tokenizer(self.tokenizer, target)
            with atomic_file(target / SETTINGS, "w") as file:
                json.dump({"with_question": self.with_question}, file)

    def windows(self, text: str, question: str | None = None) -> list["Window"]:
        """The text in windows that the model reads whole, cut at the ends of sentences."""
        before = self._before(question)
        room = self.max_length - len(before) - len(self._after)
        encoded = self.encoder.encode(text, add_special_tokens=False)
        all_ids, all_spans = encoded.ids, encoded.offsets  # each access makes a new list
        ends = np.array([end for _, end in all_spans], np.int64)
        stops = set(np.searchsorted(ends, [end for _, end in sentences(text)]).tolist())
        found, start = [], 0
        while start < len(ends):
            stop = min(start + room, len(ends))
            if stop < len(ends):
                cuts = (each for each in range(stop, start + room // 2, -1) if each - 1 in stops)
                stop = next(cuts, stop)
            ids = [*before, *all_ids[start:stop], *self._after]
            types = [0] * len(before) + [int(self.with_question)] * (len(ids) - len(before))
            found.append(Window(ids, types, len(before), all_spans[start:stop]))
            start = stop
        return found

    def _before(self, question: str | None) -> list[int]:
        """Special tokens, and the question, in front of the text."""
        if not self.with_question:
            return self._specials[0]
        asked = self.encoder.encode(question or "", add_special_tokens=False)
        return [*self._specials[0], *asked.ids[:QUESTION_TOKENS], *self._specials[1]]

    def probabilities(
        self, text: str, question: str | None = None
    ) -> tuple[list[Span], np.ndarray]:
        """Each token as a span, and how likely it is kept, float32 [T]."""
        import torch

        windows = self.windows(text, question)
        spans = [span for each in windows for span in each.spans]
        found: list[np.ndarray] = [np.zeros(0, np.float32)]
        size = max(1, BATCH_TOKENS // self.max_length)
        for start in range(0, len(windows), size):
            batch = windows[start : start + size]
            with torch.inference_mode():
                logits_BTC = self.logits(batch).float()
            kept_BT = logits_BTC.softmax(-1)[..., self.keep].cpu().numpy()
            for row, each in enumerate(batch):
                found.append(kept_BT[row, each.place : each.place + len(each.spans)])
        return spans, np.concatenate(found)

    def logits(self, windows: Sequence["Window"]) -> Any:
        """Logits of the labels, [B, T, labels], of windows padded on the right."""
        import torch

        longest = max(len(each.ids) for each in windows)
        pad = self.tokenizer.pad_token_id or 0
        ids_BT = torch.full((len(windows), longest), pad)
        mask_BT, types_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
        for row, each in enumerate(windows):
            ids_BT[row, : len(each.ids)] = torch.tensor(each.ids)
            types_BT[row, : len(each.ids)] = torch.tensor(each.types)
            mask_BT[row, : len(each.ids)] = 1
        device = self.model.device
        options = {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            options["token_type_ids"] = types_BT.to(device)
        return self.model(**options).logits


@dataclass(frozen=True, slots=True)
class Window:
    """Ids that are read together, their types, and where the text's own tokens begin in them."""

    ids: list[int]
    types: list[int]
    place: int
    spans: list[Span]


@SCORERS.register("token_classifier")
@dataclass(frozen=True)
class Classifier(Scorer):
    """How likely a classifier keeps the tokens of a unit.

    LLMLingua-2 (Pan et al. 2024, arXiv:2403.12968), and what `fit_token_classifier` and
    `fit_policy` train; the latter is PCRL's policy (Jung and Kim 2023, arXiv:2308.08758).
    """

    model: str | TokenClassifier
    label: str | None = None
    how: How = "mean"

    @property
    def needs_question(self) -> bool:  # type: ignore[override]
        return self.classifier().with_question

    def classifier(self) -> TokenClassifier:
        if isinstance(self.model, TokenClassifier):
            return self.model
        return _loaded(self.model, self.label)

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        spans, kept_T = self.classifier().probabilities(document.text, asked.question)
        return per_unit(spans, kept_T, document.units, self.how)


@functools.lru_cache(4)
def _loaded(name: str, label: str | None) -> TokenClassifier:
    return TokenClassifier.load(name, label)


def _keep(names: dict[int, str], label: str | None, where: str) -> int:
    wanted = (label,) if label is not None else KEEP
    for number, text in names.items():
        if text in wanted or (label is None and text.lower() in wanted):
            return number
    if label is not None:
        raise SettingsError(f"{where}: label {label!r} is not known.{known(label, names.values())}")
    raise InputError(
        f"{where}: which of its labels is that of kept tokens? Name it: label=. Known: "
        f"{', '.join(names.values())}."
    )


def _specials(encoder: Any, pair: bool) -> tuple[list[int], list[int], list[int]]:
    """Special tokens before a first text, between it and a second one, and at the end."""
    word = encoder.encode("a", add_special_tokens=False).ids
    whole = encoder.encode("a", "a").ids if pair else encoder.encode("a").ids
    size = len(word)
    places = [i for i in range(len(whole) - size + 1) if whole[i : i + size] == word]
    if len(places) != 1 + pair:
        raise ModelError("the tokenizer changes a text's ids where it adds special tokens")
    first, last = places[0], places[-1]
    return whole[:first], whole[first + size : last], whole[last + size :]
