"""Step 1: a text and its prompt become spans.

A prompt is literal text that may hold special tokens. A text is data: a special-token string
or a brace inside it stays characters (SILENT row 32).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from polyvec.embed.inputs.spans import Span
from polyvec.errors import InputError, known
from polyvec.interfaces import ROLES, Prompt

# Stored names in use on the hub; encode_document takes the first of its three that is set.
ROLE_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True, slots=True)
class PromptTable:
    """A model's stored prompts by name, and the name of the one that plain `encode` uses.

    An empty stored prompt counts as not set: sentence-transformers 6.2 writes
    `"document": ""` by default, which would hide a "passage" prompt (SILENT row 13).
    """

    by_name: Mapping[str, str] = field(default_factory=dict)
    default_name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.by_name, Mapping):
            kind = type(self.by_name).__name__
            raise InputError(f"prompts is {kind}, not a table of names and strings")
        for name, text in self.by_name.items():
            if not isinstance(name, str):
                raise InputError(f"prompts: name {name!r} is {type(name).__name__}, not a string")
            if text is not None and not isinstance(text, str):
                raise InputError(f"prompt {name!r} is {type(text).__name__}, not a string")
        default = self.default_name
        if default is not None and not (isinstance(default, str) and default in self.by_name):
            raise InputError(
                f"default prompt {self.default_name!r} is not stored with the model."
                + known(self.default_name, self.by_name)
            )

    @classmethod
    def of_folder(cls, prompts: Mapping[str, str], default_name: str | None) -> "PromptTable":
        """The prompts of a sentence-transformers folder: a side without one has no default.

        A default "query" prompt is not put before documents, nor before queries another one.
        """
        if default_name is not None and isinstance(prompts, Mapping):
            set_names = [name for name in prompts if prompts[name]]
            empty = [role for role, names in ROLE_PROMPTS.items() if not {*names} & {*set_names}]
            prompts = {**dict.fromkeys(empty, ""), **prompts}
        return cls(prompts, default_name)

    def resolve(
        self, prompt: str | None = None, prompt_name: str | None = None, role: str | None = None
    ) -> Prompt:
        """The prompt to use: the given text, else a stored name, the role's, or the default.

        Raises InputError for a prompt that is no string, and a name or role that is not known.
        """
        if role is not None and role not in ROLES:
            hint = "; prompt_name chooses a stored prompt" if role in self.by_name else ""
            raise InputError(f"role {role!r} is not known{hint}.{known(role, ROLES)}")
        if prompt is not None:
            if not isinstance(prompt, str):
                raise InputError(f"prompt is {type(prompt).__name__}, not a string")
            return Prompt(None, prompt, role, given=True)
        if prompt_name is not None:
            if not isinstance(prompt_name, str) or prompt_name not in self.by_name:
                raise InputError(
                    f"prompt_name {prompt_name!r} is not stored with the model."
                    + known(prompt_name, self.by_name)
                )
            return Prompt(prompt_name, self.by_name[prompt_name] or "", role, given=True)
        names = ROLE_PROMPTS[role] if role else ()
        # A side's own empty prompt keeps the default, made for the other side, from it.
        declared = any(self.by_name.get(name) is not None for name in names)
        for name in (*names, None if declared else self.default_name):
            if name is not None and self.by_name.get(name):
                return Prompt(name, self.by_name[name], role)
        return Prompt(role=role)


def render(text: str, prompt: Prompt, *, pool_prompt: bool = True) -> tuple[Span, ...]:
    """Spans of one text: the prompt in front of it, then the text itself as data.

    Of a prompt that is not pooled, the tokens it has alone are left out, as sentence-transformers
    counts them (and GritLM's and NV-Embed's code): a space at its end may be one of them.
    """
    if not prompt.text:
        return (Span(text),)
    before = Span(prompt.text, pooled=pool_prompt, markup=True, counted=not pool_prompt)
    return (before, Span(text))
