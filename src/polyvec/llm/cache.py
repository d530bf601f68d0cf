"""A cache of answers on disk, by model, prompt and settings: no question is asked twice.

Each model has a folder, named by the hash of its identity. Neither prompts nor identities are
stored, only their hashes. An answer is on disk before it is handed out, so a job that was killed
goes on where it was.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.errors import SettingsError
from polyvec.llm.answers import Answer, Completion, GenerationSettings
from polyvec.llm.language_model import LanguageModel, WrappedLanguageModel
from polyvec.llm.prompts import Prompt
from polyvec.storage.files import cache_folder
from polyvec.storage.json_store import JsonStore, key_of

ENVIRONMENT = "POLYVEC_CACHE"
# A part of every key: raise it when values get another form, or prompts other tokens.
FORMAT = 2
ARRAYS_AT_ONCE = 256  # stored together, so that an interrupted call keeps the earlier ones


def default_folder() -> Path:
    """answers/ in POLYVEC_CACHE, else in polyvec's part of the user's cache folder."""
    given = os.environ.get(ENVIRONMENT)
    return Path(given) / "answers" if given else cache_folder("answers")


class CachedLanguageModel(WrappedLanguageModel):
    """Any language model, whose answers are kept in a folder; several processes may share it.

    Answers are found by the model's identity, the prompt and all settings (n and, above
    temperature 0, top_p and seed included). So two equal prompts get the same answer at any
    temperature, and are asked once; for different ones set n or another seed. Of equal prompts
    in one call, all but the first count as `cached`.

    Completions with an error and answers that are not of the schema are not kept. Cut answers
    are (`keep_cut`), as more `max_new_tokens` are another question; refusals are not
    (`keep_refused`), as a server may change its mind.
    Its ledger (`usage`) is the model's own.

    >>> import tempfile
    >>> from polyvec.llm.function import FunctionLanguageModel
    >>> model = CachedLanguageModel(FunctionLanguageModel(str.upper), tempfile.mkdtemp())
    >>> [model.generate(["a cat"])[0].cached for _ in range(2)]
    [False, True]
    """

    def __init__(
        self,
        model: LanguageModel,
        folder: str | Path | None = None,
        *,
        keep_cut: bool = True,
        keep_refused: bool = False,
    ) -> None:
        super().__init__(model)
        self.folder = Path(folder) if folder is not None else default_folder()
        self.keep_cut, self.keep_refused = keep_cut, keep_refused
        self._stores: dict[str, JsonStore] = {}
        JsonStore(self.folder)  # a file in its place is an error now, not after the first answer

    def stream_checked(
        self, prompts: Sequence[Prompt], settings: GenerationSettings
    ) -> Iterator[tuple[int, Completion]]:
        """Answers of the cache come first, in the order of their prompts."""
        store = self._store()
        numbers = _places(completion_key(prompt, settings) for prompt in prompts)
        missing = []
        for key in numbers:
            found = store.get(key)
            if found is None:
                missing.append(key)
                continue
            for number in numbers[key]:
                yield number, _completion(found)
        if not missing:
            return
        asked = [prompts[numbers[key][0]] for key in missing]
        try:
            for place, completion in self.model.stream_checked(asked, settings):
                key = missing[place]
                if self._is_kept(completion):
                    store.put(key, _value(completion))
                yield numbers[key][0], completion
                repeated = dataclasses.replace(completion, cached=completion.error is None)
                for number in numbers[key][1:]:
                    yield number, repeated
        finally:
            store.sync()

    def logprobs_checked(
        self, prompts: Sequence[Prompt], continuations: Sequence[str]
    ) -> list[np.ndarray]:
        pairs = list(zip(prompts, continuations, strict=True))

        def ask(numbers: list[int]) -> Iterable[np.ndarray]:
            asked = [pairs[number] for number in numbers]
            return self.model.logprobs_checked([p for p, _ in asked], [c for _, c in asked])

        return self._arrays([_array_key("logprobs", *pair) for pair in pairs], ask)

    def score_checked(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        def ask(numbers: list[int]) -> Iterable[np.ndarray]:
            return self.model.score_checked([prompts[number] for number in numbers], choices)

        rows = self._arrays([_array_key("score", each, list(choices)) for each in prompts], ask)
        return np.array(rows, np.float32).reshape(-1, len(choices))

    def _arrays(
        self, keys: Sequence[str], ask: Callable[[list[int]], Iterable[np.ndarray]]
    ) -> list[np.ndarray]:
        """The float32 array of each key; `ask` gives those of missing ones by their numbers."""
        store = self._store()
        numbers = _places(keys)
        found = {key: value for key in numbers if (value := store.get(key)) is not None}
        missing = [key for key in numbers if key not in found]
        for start in range(0, len(missing), ARRAYS_AT_ONCE):
            part = missing[start : start + ARRAYS_AT_ONCE]
            arrays = ask([numbers[key][0] for key in part])
            for key, array in zip(part, arrays, strict=True):
                found[key] = array.tolist()  # as doubles, which hold a float32 exactly
                store.put(key, found[key])
        store.sync()
        return [np.array(found[key], np.float32) for key in keys]

    def _store(self) -> JsonStore:
        """The store of the model's answers, with what other processes have added."""
        name = key_of(self.model.identity)
        store = self._stores.setdefault(name, JsonStore(self.folder / name))
        store.refresh()
        return store

    def _is_kept(self, completion: Completion) -> bool:
        finishes = {answer.finish for answer in completion.answers}
        return (
            completion.error is None
            and all(answer.error is None for answer in completion.answers)
            and (self.keep_cut or "length" not in finishes)
            and (self.keep_refused or "refusal" not in finishes)
        )


def completion_key(prompt: Prompt, settings: GenerationSettings) -> str:
    """The key of a prompt's answers; SettingsError if the schema is not JSON."""
    # At temperature 0, top_p and seed do nothing.
    drawn = [float(settings.top_p), settings.seed] if settings.temperature else []
    described = [float(settings.temperature), drawn, settings.max_new_tokens, list(settings.stop)]
    schema = None if settings.schema is None else dict(settings.schema)
    try:
        return key_of([FORMAT, "answers", _plain(prompt), described, settings.n, schema])
    except (TypeError, ValueError) as error:
        raise SettingsError(f"generate: schema is not JSON ({error})") from None


def _array_key(kind: str, prompt: Prompt, asked: str | list[str]) -> str:
    return key_of([FORMAT, kind, _plain(prompt), asked])


def _plain(prompt: Prompt) -> str | list[list[str]]:
    if isinstance(prompt, str):
        return prompt
    return [[message["role"], message["content"]] for message in prompt]


def _places(keys: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of each key, in the order in which keys first occur."""
    numbers: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        numbers.setdefault(key, []).append(number)
    return numbers


def _value(completion: Completion) -> dict[str, Any]:
    answers = [dataclasses.asdict(answer) for answer in completion.answers]
    return {"answers": answers, "prompt_tokens": completion.prompt_tokens}


def _completion(value: dict[str, Any]) -> Completion:
    answers = tuple(Answer(**answer) for answer in value["answers"])
    return Completion(answers, value["prompt_tokens"], cached=True)
