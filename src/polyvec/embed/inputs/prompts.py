"""Step 1: a text and its prompt become spans.

A prompt is the maker's words and may hold special tokens; a text is data, so a
special-token string or a brace inside it stays what it is: characters
(SILENT row 32). Spans keep the two apart until the token ids are made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polyvec.errors import InputError, known

if TYPE_CHECKING:
    from polyvec.embed.inputs.demonstrations import Example

# encode_document takes the first of these that is set: the names in use on the hub.
ROLE_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of what the model reads.

    `pooled` says whether its states enter the vector; `markup` whether special-token
    strings in it stand for special tokens (a prompt's do, a text's never); `fixed` that
    truncation leaves it whole; `segment` is its number for masks between segments of an input.
    """

    text: str
    pooled: bool = True
    markup: bool = False
    fixed: bool = False
    segment: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one call puts around its texts: a stored name, if it has one, and the words.

    With a template the words are its instruction; `role` says which side is read, and
    `examples` (None: the template's own) the demonstrations. `given` means that the call
    asked for the words: a template without a place for them then refuses.
    """

    name: str | None = None
    text: str = ""
    role: str | None = None
    examples: "tuple[Example, ...] | Callable[[str], Sequence[Example]] | None" = None
    given: bool = False


@dataclass(frozen=True, slots=True)
class PromptTable:
    """A model's stored prompts, by name, and the one that plain `encode` uses.

    An empty stored prompt means "not set": sentence-transformers 6.2 writes
    `"document": ""` by default, which shadows a real "passage" prompt (SILENT row 13).
    """

    by_name: Mapping[str, str] = field(default_factory=dict)
    default_name: str | None = None

    def __post_init__(self) -> None:
        if self.default_name is not None and self.default_name not in self.by_name:
            raise InputError(
                f"default prompt {self.default_name!r} is not stored with the model."
                + known(self.default_name, self.by_name)
            )

    def resolve(
        self, prompt: str | None = None, prompt_name: str | None = None, role: str | None = None
    ) -> Prompt:
        """The prompt to use: given words, else a stored name, else the role's, else the default."""
        if prompt is not None:
            return Prompt(None, prompt, role, given=True)
        if prompt_name is not None:
            if prompt_name not in self.by_name:
                raise InputError(
                    f"prompt_name {prompt_name!r} is not stored with the model."
                    + known(prompt_name, self.by_name)
                )
            return Prompt(prompt_name, self.by_name[prompt_name] or "", role, given=True)
        names = ROLE_PROMPTS[role] if role else ()
        for name in (*names, self.default_name):
            if name is not None and self.by_name.get(name):
                return Prompt(name, self.by_name[name], role)
        return Prompt(role=role)


def render(text: str, prompt: Prompt, *, pool_prompt: bool = True) -> tuple[Span, ...]:
    """Spans of one text: the prompt in front of it, then the text itself as data."""
    if not prompt.text:
        return (Span(text),)
    return (Span(prompt.text, pooled=pool_prompt, markup=True), Span(text))
