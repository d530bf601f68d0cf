"""Step 3: a Hugging Face backbone turns token batches into hidden states.

B texts, T tokens of the longest text, D state size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed.backbone import onnx_layers, precision, rotary, runners, selection, static
from polyvec.embed.backbone.attention import AttentionSpec, register
from polyvec.embed.backbone.fast import FAST, fast_linears
from polyvec.embed.backbone.fused import FAMILIES, Bert, FusedModel
from polyvec.embed.backbone.hooks import changing, install
from polyvec.embed.backbone.linears import Linear
from polyvec.embed.backbone.prepending import TokenPrepending
from polyvec.embed.backbone.states import SIDE_OUTPUTS, States
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import ModelError, SlowPathWarning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYOUTS = ("auto", "packed", "padded")

# A forked process has none of the threads that computed in its parent, and would wait for them
# for ever at its first product (GNU OpenMP).
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


class Backbone(nn.Module):
    """A transformers model with the attention that `attention` says, packed where possible.

    How to run it is measured at construction. A model on transformers' attention interface gets
    our attention function if short random texts, packed, then have the states of the same texts
    alone ("plan"). Otherwise batches are padded on the right, where no real token sees the
    padding: with the model's own attention ("native") or, for another one, with masks passed to
    each layer ("hooks"). `layout_reason` says why; `verdict` is what the leak probe found.
    Raises ModelError where the model cannot do what `attention` says.

    `lm` is the language model whose body is `model`, where a pooling needs its head. Nothing
    here or in the model changes while batches are computed, so threads may share both.
    """

    evaluated_apart = ("model",)  # see modes
    lm: Any  # not a submodule: its weights are the model's
    fast = ""  # how products of fewer bits than the weights are made, if they are
    card: Any = None  # formats.cards.Card of the folder that the weights came from, if it had one

    def __init__(
        self,
        model: PreTrainedModel,
        pad_id: int = 0,
        *,
        attention: str | AttentionSpec = "native",
        layout: str = "auto",
        lm: PreTrainedModel | None = None,
        prepending: TokenPrepending | None = None,
        probe: bool = True,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ModelError(f"layout {layout!r} is not known. Known: {', '.join(LAYOUTS)}.")
        from polyvec.embed.backbone.heads import head_modules

        self.model = model
        self.lm_head = head_modules(lm) if lm is not None else None
        object.__setattr__(self, "lm", lm)
        # Padding is masked, but its id needs a row: a [PAD] added for training may have none.
        pad_id = pad_id if self.num_rows is None or pad_id < self.num_rows else 0
        self.pad_id = pad_id
        self.prepending = prepending
        if prepending is not None:
            prepending.check(self.num_layers)
            install(model)
        if probe:
            rotary.install(model)
        spec = AttentionSpec.parse(attention) if isinstance(attention, str) else attention
        self.spec = spec if spec != selection.OWN else selection.stored_spec(model)
        self.measured = probe
        if probe:
            self.runner, self.layout_reason, self.verdict = precision.probed(
                model, pad_id, self.spec, layout
            )
        else:  # a model without weights
            self.runner, self.layout_reason = runners.Native(model, pad_id), "not measured"
            self.verdict = None
        if isinstance(self.runner, runners.Planned):
            self.runner.fused = FusedModel()

    def prepare(self, needs: frozenset[str]) -> None:
        """Set the model up for a pooling's side outputs, once, before it computes batches.

        Of the model's own attention functions only the eager one returns attention weights.
        """
        if "attentions" in needs and self.mechanism == "native":
            runners.set_attention(self.model, "eager")

    def compute_fast(self, sample: TokenBatch | None = None) -> None:
        """Compute in 8-bit integers or bfloat16, where that is faster and gives near states.

        `sample`: texts on which BERT's family finds fixed 8-bit levels; without it, levels are
        found for each token. Warns where no products are faster or near enough, or there are
        none for this family: the model is then computed in float32.
        """
        found = None
        if isinstance(self.runner, runners.Planned):
            kinds: Any = fast_linears
            if sample is not None and self.spec == selection.OWN:
                kinds = static.WithStatic(fast_linears, sample)
            self.runner.fused = FusedModel(kinds)
            found = self.runner.fused_products()
        self.fast = "" if found in (None, Linear.name) else f"{FAST}, {found}"
        if found == static.StaticInt8.name and sample is not None:
            self.fast += f" {static.FORMAT} by {sample.digest()}"
        if not self.fast and self.device.type == "cpu":
            warnings.warn(
                f"dtype='fast': no products of this processor are faster for "
                f"{type(self.model).__name__}, or none are near enough; computed in float32",
                SlowPathWarning,
                stacklevel=3,
            )

    @property
    def backend(self) -> str:
        """What was asked to compute short texts that come alone: "torch" or "onnx"."""
        fused = self.runner.fused if isinstance(self.runner, runners.Planned) else None
        is_onnx = fused is not None and fused.short is not None
        return onnx_layers.ONNX if is_onnx else onnx_layers.TORCH

    def use_backend(self, name: str) -> None:
        """Compute short texts that come alone by "torch", or "onnx": ONNX Runtime.

        Raises ModelError, with the reason, if that computes no such model, or gave other states
        than its own layers (by more than 1e-5 of the largest), and MissingExtraError without it.
        """
        onnx_layers.check_backend(name)
        if name == self.backend:
            return
        runner = self.runner
        if name == onnx_layers.TORCH:
            assert isinstance(runner, runners.Planned)  # else it was not "onnx"
            runner.fused = FusedModel()
            return
        onnx_layers.packages()
        reason = self._why_not_onnx()
        if reason is None and isinstance(runner, runners.Planned):
            before = runner.fused
            runner.fused = FusedModel(short=onnx_layers.ShortTexts)
            if self.computes_short_apart:
                return
            runner.fused = before
            reason = "not for parts of other kinds, weights over 1.5 GB, or processors without AVX2"
        raise ModelError(f"backend {name!r}: {reason}")

    def _why_not_onnx(self) -> str | None:
        """What of the model's settings ONNX Runtime does not compute here."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        if FAMILIES.get(self.family) is not Bert:
            return f"for BERT, RoBERTa and XLM-R, not for {self.family}"
        if self.fast:
            return (
                "not with dtype='fast', as a text alone would have another vector than in a batch"
            )
        if self.device.type != "cpu" or dtype != Linear.name:
            return f"for float32 on the CPU; the model is in {dtype} on {self.device.type}"
        if self.spec.kind not in onnx_layers.SEEING_ALL or self.spec.blocked:
            return f"not with attention {str(self.spec)!r}"
        if not self.runner.packed:
            return f"for packed batches; these are padded ({self.layout_reason})"
        if self.model.training:
            return "not in training mode; call eval() before"
        return None

    @property
    def computes_short_apart(self) -> bool:
        """Whether ONNX Runtime computes short texts that come alone, as the model now is."""
        found = self.runner.fused_layers() if isinstance(self.runner, runners.Planned) else None
        return found is not None and found.short is not None

    def computes_side_by_side(self, needs: frozenset[str]) -> bool:
        """Whether threads may compute batches at once: by fused layers, as the model now is."""
        return isinstance(self.runner, runners.Planned) and self.runner.fuses(needs)

    @property
    def products(self) -> str:
        """The numbers that are multiplied: "int8", or those of the weights."""
        found = self.runner.fused_products() if isinstance(self.runner, runners.Planned) else None
        return found or str(self.model.dtype).removeprefix("torch.")

    def __getstate__(self) -> dict[str, Any]:
        """The state with its weights shared and without transformers' hooks.

        transformers records the states of all layers by hooks that are local functions, which
        cannot be pickled. They are removed from a copy of the modules: other threads may be
        computing with the model itself.
        """
        models = [model for model in (self.model, self.lm) if model is not None]
        tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
        state = copy.deepcopy(self.__dict__, {id(tensor): tensor for tensor in tensors})
        for model in (state["_modules"]["model"], state["lm"], _full(state["runner"])):
            if model is not None:
                selection.remove_recording_hooks(model)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        register()  # in the process that unpickles
        for model in (self.model, self.lm, _full(self.runner)):
            if model is not None:
                selection.register_recording(model)
        # transformers adds its hooks at the first forward that asks for all layers; adding
        # them while another thread iterates over them would be an error there.
        selection.record_once(self.runner)

    @property
    def family(self) -> str:
        """The model's class in transformers."""
        return type(self.model).__name__

    @property
    def known_fingerprints(self) -> Mapping[str, str]:
        """Fingerprints of a model whose weights are not loaded (direct.py), by its settings."""
        return {}

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
        """Size of the last states: not the config's where they are projected (OPT-350m)."""
        measured = self.runner.state_size
        return measured or int(self.model.config.get_text_config().hidden_size)

    @property
    def num_layers(self) -> int:
        return runners.num_layers(self.model)

    @property
    def device(self) -> torch.device:
        return runners.device_of(self.model)

    @property
    def max_positions(self) -> int | None:
        """Most tokens that have positions, after the table's offset; None: no such limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is None or limit < 1:
            return None
        longest = max(
            int(limit * rotary.extension(self.model)),
            int(getattr(self.model.config, "n_positions", None) or 0),  # nomic-embed's scaled ones
        )
        return longest - selection.declared_offset(self.model)

    @property
    def num_rows(self) -> int | None:
        """Rows of the table of token embeddings; None if the model has no such table."""
        try:
            table = self.model.get_input_embeddings()
        except (AttributeError, NotImplementedError):  # of models with code of their own
            return None
        weight = getattr(table, "weight", None)
        return None if weight is None else len(weight)

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
        with contextlib.ExitStack() as stack:
            if self.prepending is not None:
                change = self.prepending.change(batch)
                if self.prepending.start < self.prepending.stop:
                    stack.enter_context(changing(self.model, change))
            out = self.runner.run(batch, attention or self.spec, needs)
        return self._states(self.runner, batch, out, needs, attention)

    def _states(
        self,
        runner: runners.Native,
        batch: TokenBatch,
        out: Any,
        needs: frozenset[str],
        attention: AttentionSpec | None,
    ) -> States:
        attention_mask_BT = runners.attention_mask(batch, out.last_hidden_state.device)
        to_padded = lambda state: runner.to_padded(state, batch)  # noqa: E731
        encoder = getattr(out, "encoder_last_hidden_state", None)
        layers = getattr(out, "hidden_states" if encoder is None else "encoder_hidden_states", None)
        layers = self._side("all_layers", needs, layers)
        logits = getattr(out, "router_logits", None)
        routes = self._side("router", needs, logits)
        raw_routes = self._side("router_logits", needs, logits)
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
            router_logits=raw_routes and tuple(to_padded(logits).float() for logits in raw_routes),
            lm_head=self._side("lm_head", needs, self.lm_head) and self.logits,
            decoder_start=self._side("decoder_start", needs, start_BD),
            generate=self._side("generate", needs, self.lm_head)
            and (lambda steps: self._generate(batch, attention, steps)),
            word_ids=tuple(torch.from_numpy(ids).to(self.device) for ids in batch.word_ids),
        )

    def _generate(
        self, batch: TokenBatch, attention: AttentionSpec | None, steps: int
    ) -> tuple[Tensor, Tensor]:
        """States that choose the next tokens, [B, n, D], and which come before EOS, [B, n].

        Each step reads the whole text again: there are only a few, and a cache over padded rows
        would not give the states that a text has alone.
        """
        ends = token_ids(getattr(self.model.config.get_text_config(), "eos_token_id", None))
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
            open_B &= ~np.isin(ids, list(ends))
        return torch.stack(chosen, 1), torch.stack(real, 1).to(self.device)

    def _side(self, name: str, needs: frozenset[str], found: Any) -> Any:
        """A side output if it is needed; ModelError if this model has none."""
        if name not in SIDE_OUTPUTS or name not in needs:
            return None
        if found is None or (isinstance(found, tuple) and (not found or found[0] is None)):
            raise ModelError(
                f"{type(self.model).__name__} gives no {name}, which the pooling needs"
            )
        return found

    def logits(self, states: Tensor) -> Tensor:
        """Logits of the LM head with the family's scale and cap, [..., V].

        Of a masked model the whole head: transform, output matrix and bias.
        """
        if self.lm_head is None:
            raise ModelError(f"{type(self.model).__name__} was loaded without its LM head")
        from polyvec.embed.backbone.heads import has_own_head, own_logits

        if has_own_head(self.lm):
            return own_logits(self.lm, states)
        config = self.model.config.get_text_config()
        logits = self.lm_head(states)
        if getattr(config, "logit_scale", None):  # Cohere
            logits = logits * config.logit_scale
        if getattr(config, "logits_scaling", None):  # Granite
            logits = logits / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        return logits if not cap else cap * torch.tanh(logits / cap)


def _full(runner: runners.Native) -> PreTrainedModel | None:
    """The copy with full attention that BigBird's short texts are run on."""
    return getattr(runner, "full", None)


def token_ids(found: int | list[int] | None) -> set[int]:
    """The ids of a config's entry, which may hold one, several or none."""
    if found is None:
        return set()
    return set(found) if isinstance(found, list) else {found}
