"""A function as a language model: for rules, and for tests of what uses a model."""

from collections.abc import Callable, Iterator, Sequence

from polyvec.llm.answers import Answer, Completion, GenerationSettings
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.prompts import Prompt
from polyvec.llm.schema import with_value


class FunctionLanguageModel(LanguageModel):
    """Answers with `function(prompt)`; of a chat, with that of the last message's content.

    Tokens are the words between spaces; `max_new_tokens` and `stop` cut as they do elsewhere.
    `name` is its identity: change it when the function changes, or a cache keeps old answers.
    """

    def __init__(self, function: Callable[[str], str], name: str | None = None) -> None:
        super().__init__()
        self.function = function
        self._name = name or getattr(function, "__qualname__", type(function).__name__)

    @property
    def identity(self) -> str:
        return f"function:{self._name}"

    def count_tokens(self, prompts: Sequence[Prompt]) -> int:
        return sum(len(_asked(prompt).split()) for prompt in prompts)

    def stream_checked(
        self, prompts: Sequence[Prompt], settings: GenerationSettings
    ) -> Iterator[tuple[int, Completion]]:
        for number, prompt in enumerate(prompts):
            asked = _asked(prompt)
            text = self.function(asked)
            answers = (with_value(_cut(text, settings), settings.schema),) * settings.n
            yield number, Completion(answers, prompt_tokens=len(asked.split()))


def _asked(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _cut(text: str, settings: GenerationSettings) -> Answer:
    places = [place for stop in settings.stop if (place := text.find(stop)) >= 0]
    text = text[: min(places)] if places else text
    words = text.split()
    if len(words) <= settings.max_new_tokens:
        return Answer(text, "stop", len(words))
    kept = words[: settings.max_new_tokens]
    return Answer(" ".join(kept), "length", len(kept))
