"""How a pair is put to a language model that ranks: prompts by name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from polyvec.errors import SettingsError, known

SLOT = re.compile(r"\{(query|document)\}")


@dataclass(frozen=True, slots=True)
class RerankPrompt:
    """A template with {query} and {document}, each once.

    chat: it is a user's turn where the model has a chat template. source: where it is from.
    """

    template: str
    chat: bool = False
    source: str = "a user's own"

    def parts(self) -> list[tuple[str, bool]]:
        """The template cut at its slots: texts, and names of slots with True."""
        found = SLOT.split(self.template)
        return [(text, bool(place % 2)) for place, text in enumerate(found) if text]


PROMPTS: Mapping[str, RerankPrompt] = {
    "monot5": RerankPrompt(
        "Query: {query} Document: {document} Relevant:",
        source="zetaalphavector/InPars, inpars/train.py; castorini/pygaggle",
    ),
    # The same text as the prompt "followir" of polyvec synthesize.
    "followir": RerankPrompt(
        "You are an expert Google searcher, whose job is to determine if the following document "
        "is relevant to the query (true/false). Answer using only one word, one of those two "
        "choices.\n\nQuery: {query}\nDocument: {document}\nRelevant (only output one word, either "
        '"true" or "false"):',
        chat=True,
        source="orionw/FollowIR, models/rerankers/reranker_models.py",
    ),
}


def rerank_prompt(name: str, where: str = "reranker") -> RerankPrompt:
    """The prompt of a name, or of a template with both slots; else SettingsError."""
    if name in PROMPTS:
        return PROMPTS[name]
    if sorted(SLOT.findall(name)) == ["document", "query"]:
        return RerankPrompt(name)
    raise SettingsError(
        f"{where}: prompt {name!r} is not known, and is no template with {{query}} and "
        f"{{document}}, each once.{known(name, PROMPTS)}"
    )
