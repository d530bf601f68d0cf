"""A scorer that asks a language model about each unit."""

from dataclasses import dataclass

import numpy as np

from polyvec.compress.text.document import Asked, Document
from polyvec.compress.text.models import language_model
from polyvec.compress.text.scorer import SCORERS, Scorer
from polyvec.errors import SettingsError
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL
from polyvec.llm.slots import SlotTemplate

PROMPT = (
    "Text: {text}\nQuestion: {question}\nDoes the text help to answer the question? Answer yes or "
    "no.\nAnswer:"
)


@SCORERS.register("llm")
@dataclass(frozen=True)
class Judge(Scorer):
    """The probability that a language model says of each unit that it helps with the question.

    prompt: a template with the slots {text} and {question}. One call a unit: for sentences and
    passages.
    """

    needs_question = True

    model: str | LanguageModel = DEFAULT_LANGUAGE_MODEL
    prompt: str = PROMPT
    choices: tuple[str, str] = (" yes", " no")

    def __post_init__(self) -> None:
        if "text" not in SlotTemplate.parse(self.prompt, "scorer 'llm': prompt").slots:
            raise SettingsError("scorer 'llm': prompt has no slot {text}")

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        template = SlotTemplate.parse(self.prompt)
        prompts = [
            template.render({"text": piece, "question": asked.question or ""})
            for piece in document.pieces()
        ]
        found_UC = language_model(self.model).score(prompts, list(self.choices))
        return np.asarray(found_UC[:, 0], np.float64)
