"""A local model with a soft prompt: vectors that it reads before every prompt, as tokens of theirs.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691). P tokens of the prompt, D state size, V rows
of the embedding table.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from polyvec.embed.inputs.contract import bare, read_contract, set_ends
from polyvec.errors import ModelError
from polyvec.llm.local import LocalLanguageModel

NAME = "<prompt_{}>"


class SoftPromptedModel(LocalLanguageModel):
    """Plain prompts begin with the soft prompt, after BOS; a chat is sent as a plain prompt."""

    @property
    def takes_chats(self) -> bool:
        return False


def with_soft_prompt(model: LocalLanguageModel, prompt_PD: Tensor) -> SoftPromptedModel:
    """The model with these vectors before each prompt; the given one must not be used any more.

    Only the table that tokens are read by gets rows: the head cannot write them. Raises
    ModelError for vectors of another size than the model's states.
    """
    lm: Any = model.model.lm
    table = lm.get_input_embeddings()
    rows_VD = table.weight.detach()
    if prompt_PD.ndim != 2 or prompt_PD.shape[1] != rows_VD.shape[1]:
        raise ModelError(
            f"a soft prompt of shape {tuple(prompt_PD.shape)} does not fit {model.name}, whose "
            f"tokens have {rows_VD.shape[1]} dimensions"
        )
    tokenizer = model.tokens.tokenizer
    contract = read_contract(tokenizer, None, copy=bare(tokenizer))
    names = [NAME.format(i) for i in range(len(prompt_PD))]
    tokenizer.add_tokens(names, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(names)
    set_ends(tokenizer.backend_tokenizer, (*contract.prefix, *ids), contract.suffix)
    extended_VD = rows_VD.new_zeros(max(len(rows_VD), max(ids) + 1), rows_VD.shape[1])
    extended_VD[: len(rows_VD)] = rows_VD
    extended_VD[ids] = prompt_PD.to(rows_VD)
    lm.set_input_embeddings(nn.Embedding.from_pretrained(extended_VD))
    digest = hashlib.sha256(prompt_PD.float().contiguous().cpu().numpy().tobytes()).hexdigest()
    return SoftPromptedModel(
        lm.eval(),
        tokenizer,
        name=f"{model.name} with a soft prompt",
        identity=f"{model.identity.removeprefix('local:')}+{digest}",
        batch_size=model.batch_size,
        batch_tokens=model.batch_tokens,
        prompt_price=model.usage.prompt_price,
        new_price=model.usage.new_price,
    )


@torch.no_grad()
def begun_as(model: LocalLanguageModel, text: str, num_tokens: int) -> Tensor:
    """The vectors of a text's tokens, repeated or cut to so many, float32 [P, D]."""
    ids = model.tokens.of_text(text)
    if not ids:
        raise ModelError(f"the text {text!r}, with which a soft prompt begins, has no tokens")
    table = model.model.lm.get_input_embeddings()
    places = [ids[i % len(ids)] for i in range(num_tokens)]
    rows_PD: Tensor = table(torch.tensor(places, device=model.model.device))
    return rows_PD.float().clone()
