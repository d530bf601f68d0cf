"""Step 3: token batches become hidden states, through any Hugging Face backbone.

B texts, T tokens of the longest text, D state size.
"""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyvec.embed.backbone import runners
from polyvec.embed.backbone import selection as probing
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.prepending import TokenPrepending
from polyvec.embed.backbone.states import SIDE_OUTPUTS, States
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import ModelError

LAYOUTS = ("auto", "packed", "padded")


class Backbone(nn.Module):
    """A transformers model that sees what `attention` says, without padding where it can.

    How is measured at construction. A model on transformers' attention interface gets our
    attention function if short random texts, packed, then have the states of the same texts
    alone ("plan"). Otherwise batches are padded on the right, where no real token can see
    the padding: by the model itself ("native") or, for another attention than its own, with
    masks put into each layer ("hooks"). `layout_reason` says why; `verdict` is what the leak
    probe found. Raises ModelError where the model cannot do what `attention` says.

    `lm` is the language model whose body `model` is, where a pooling needs its head.
    """

    lm: Any  # not a submodule: its weights are the model's

    def __init__(
        self,
        model: PreTrainedModel,
        pad_id: int = 0,
        *,
        attention: str | AttentionSpec = "native",
        layout: str = "auto",
        lm: PreTrainedModel | None = None,
        prepending: TokenPrepending | None = None,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ModelError(f"layout {layout!r} is not known. Known: {', '.join(LAYOUTS)}.")
        self.model = model
        self.lm_head = lm.get_output_embeddings() if lm is not None else None
        object.__setattr__(self, "lm", lm)
        self.pad_id = pad_id
        self.prepending = prepending
        spec = AttentionSpec.parse(attention) if isinstance(attention, str) else attention
        self.spec = spec if spec != probing.OWN else probing.stored_spec(model)
        self.runner, self.layout_reason = probing.choose(model, pad_id, self.spec, layout)
        self.verdict = probing.verdict(self.runner, self.spec)

    @property
    def layout(self) -> str:
        return "packed" if self.runner.packed else "padded"

    @property
    def mechanism(self) -> str:
        """How the model is run: "plan", "native" or "hooks"."""
        return self.runner.name

    @property
    def position_offset(self) -> int:
        return getattr(self.runner, "offset", 0)

    @property
    def hidden_size(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def num_layers(self) -> int:
        return runners.num_layers(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def max_positions(self) -> int | None:
        """Most tokens that the position table holds, its offset taken off; None: no such limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is None or limit < 1:
            return None
        return limit - probing.declared_offset(self.model)

    def forward(
        self,
        batch: TokenBatch,
        *,
        needs: frozenset[str] = frozenset(),
        attention: AttentionSpec | None = None,
    ) -> States:
        """States of a batch, with the side outputs in `needs` (states.SIDE_OUTPUTS).

        `attention` switches the mode for this call (GritLM, arXiv:2402.09906: bidirectional
        to embed, causal to generate, same weights). Raises ModelError for a side output
        that the model does not have, or a mode that it cannot switch to.
        """
        if attention is not None and attention != self.spec and self.mechanism == "native":
            raise ModelError(
                f"{type(self.model).__name__} runs its own attention ({self.layout_reason}) "
                f"and cannot switch to {str(attention)!r}"
            )
        prepending = self.prepending.into(self.model, batch) if self.prepending else None
        with prepending or contextlib.nullcontext():
            out = self.runner.run(batch, attention or self.spec, needs)
        return self._states(batch, out, needs, attention)

    def _states(
        self,
        batch: TokenBatch,
        out: Any,
        needs: frozenset[str],
        attention: AttentionSpec | None,
    ) -> States:
        attention_mask_BT = runners.attention_mask(batch, self.device)
        to_padded = lambda state: self.runner.to_padded(state, batch)  # noqa: E731
        encoder = getattr(out, "encoder_last_hidden_state", None)
        layers = getattr(out, "hidden_states" if encoder is None else "encoder_hidden_states", None)
        layers = self._side("all_layers", needs, layers)
        routes = self._side("router", needs, getattr(out, "router_logits", None))
        start_BD = out.last_hidden_state[:, 0] if encoder is not None else None
        return States(
            to_padded(out.last_hidden_state if encoder is None else encoder),
            attention_mask_BT,
            runners.flags(batch.pooled_T, attention_mask_BT),
            runners.flags(batch.text_T, attention_mask_BT),
            runners.flags(batch.ids_T.astype(np.int64), attention_mask_BT),
            all_layers=layers and tuple(to_padded(state) for state in layers),
            attentions=self._side("attentions", needs, getattr(out, "attentions", None)),
            router=routes and tuple(to_padded(logits).float().softmax(-1) for logits in routes),
            lm_head=self._side("lm_head", needs, self.lm_head) and self.logits,
            decoder_start=self._side("decoder_start", needs, start_BD),
            generate=self._side("generate", needs, self.lm_head)
            and (lambda steps: self._generate(batch, attention, steps)),
        )

    def _generate(
        self, batch: TokenBatch, attention: AttentionSpec | None, steps: int
    ) -> tuple[Tensor, Tensor]:
        """States that choose the next tokens, [B, n, D], and whether EOS came before, [B, n].

        Each step reads the whole text again: a few steps, and the same states as in a batch of
        one, which a cache over padded rows would not give.
        """
        ends = getattr(self.model.config.get_text_config(), "eos_token_id", None)
        ends = set(ends) if isinstance(ends, list) else {ends}
        texts = np.split(batch.ids_T, np.cumsum(batch.lengths)[:-1])
        chosen, real, open_B = [], [], np.ones(len(texts), bool)
        for _ in range(steps):
            states = self(TokenBatch.of_ids(texts), attention=attention)
            rows = torch.arange(len(texts), device=self.device)
            last_BD = states.last_BTD[rows, states.attention_mask_BT.sum(dim=1) - 1]
            chosen.append(last_BD)
            real.append(torch.from_numpy(open_B.copy()))
            ids = self.logits(last_BD).argmax(-1).cpu().numpy()
            texts = [np.append(text, token) for text, token in zip(texts, ids, strict=True)]
            open_B &= ~np.isin(ids, list(ends - {None}))
        return torch.stack(chosen, 1), torch.stack(real, 1).to(self.device)

    def _side(self, name: str, needs: frozenset[str], found: Any) -> Any:
        """A side output if it was asked for; ModelError if this model has none."""
        if name not in SIDE_OUTPUTS or name not in needs:
            return None
        if found is None or (isinstance(found, tuple) and (not found or found[0] is None)):
            raise ModelError(
                f"{type(self.model).__name__} gives no {name}, which the pooling needs"
            )
        return found

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits with the scale and cap that the family puts on them, [..., V]."""
        if self.lm_head is None:
            raise ModelError(f"{type(self.model).__name__} was loaded without its LM head")
        config = self.model.config.get_text_config()
        logits = self.lm_head(states)
        if getattr(config, "logit_scale", None):  # Cohere
            logits = logits * config.logit_scale
        if getattr(config, "logits_scaling", None):  # Granite
            logits = logits / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        return logits if not cap else cap * torch.tanh(logits / cap)
