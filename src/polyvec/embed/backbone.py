"""Step 3: token batches become hidden states, through any Hugging Face encoder or decoder.

B texts, T tokens of all texts one behind another, L tokens of the longest text, D state size.
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyvec.embed import attention
from polyvec.embed.quiet import quiet_transformers
from polyvec.embed.tokens import TokenBatch
from polyvec.errors import ModelError

PACKED_TOLERANCE = 1e-4
PROBE_LENGTHS = (9, 9, 4, 2)
# A packed batch with these is wrong or unsupported; short probes would not notice all of them.
NOT_PACKED = ("sliding_window", "attn_logit_softcapping", "local_attention")


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states of a batch, [B, L, D], and which of them are real and which pooled, [B, L].

    `all_layers` holds those of the word embeddings and every layer, if a pooling asked.
    """

    last_BLD: Tensor
    seen_BL: Tensor
    pooled_BL: Tensor
    all_layers: tuple[Tensor, ...] | None = None


class Backbone(nn.Module):
    """A transformers model that reads token batches without padding where it can.

    Whether it can is measured at construction: short random texts, packed, must give the
    states of the same texts alone. Otherwise batches are padded on the right, where no
    real token can see the padding, and `layout_reason` says why.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int = 0, *, layout: str = "auto") -> None:
        super().__init__()
        if layout not in ("auto", "packed", "padded"):
            raise ModelError(f"layout {layout!r} is not known. Known: auto, packed, padded.")
        self.model = model
        self.pad_id = pad_id
        self.layout = "padded"
        self.layout_reason = "asked for"
        self.position_offset = 0
        if layout != "padded":
            self._try_packed()
        if layout == "packed" and self.layout != "packed":
            raise ModelError(f"{type(model).__name__} cannot run packed: {self.layout_reason}")

    @property
    def hidden_size(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def max_positions(self) -> int | None:
        """Most tokens that the position table holds, its offset taken off; None: no such limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is None or limit < 1:
            return None
        return limit - _declared_offset(self.model)

    def forward(self, batch: TokenBatch, *, all_layers: bool = False) -> States:
        ids_T = torch.from_numpy(batch.ids_T).to(self.device, torch.long)
        run = self._packed if self.layout == "packed" else self._padded
        last, layers = run(ids_T, batch, all_layers)
        pooled_T = torch.from_numpy(batch.pooled_T).to(self.device)
        seen_BL = _seen(batch, self.device)
        pooled_BL = torch.zeros_like(seen_BL).masked_scatter(seen_BL, pooled_T)
        return States(last, seen_BL, pooled_BL, layers)

    def _packed(self, ids_T: Tensor, batch: TokenBatch, all_layers: bool):
        layout = attention.PackedLayout(tuple(batch.runs()))
        out = self.model(
            input_ids=ids_T[None],
            position_ids=layout.positions(self.device)[None] + self.position_offset,
            packed=layout,
            output_hidden_states=all_layers,
        )
        seen_BL = _seen(batch, self.device)
        if not all_layers:
            return _scatter(out.last_hidden_state[0], seen_BL), None
        layers = tuple(_scatter(state[0], seen_BL) for state in out.hidden_states)
        return _scatter(out.last_hidden_state[0], seen_BL), layers

    def _padded(self, ids_T: Tensor, batch: TokenBatch, all_layers: bool):
        seen_BL = _seen(batch, self.device)
        ids_BL = torch.full(seen_BL.shape, self.pad_id, device=self.device)
        ids_BL.masked_scatter_(seen_BL, ids_T)
        out = self.model(
            input_ids=ids_BL, attention_mask=seen_BL.long(), output_hidden_states=all_layers
        )
        return out.last_hidden_state, out.hidden_states if all_layers else None

    def _try_packed(self) -> None:
        """Switch to packed batches if the model then gives what it gives for texts alone."""
        config = self.model.config
        blockers = [name for name in NOT_PACKED if getattr(config, name, None)]
        # Models that list a kind for each layer are fine if all layers see the whole text.
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        blockers += [f"layers of {kind}" for kind in sorted(kinds)]
        if blockers:
            self.layout_reason = f"its config has {blockers[0]}"
            return
        was_training, native = self.model.training, config._attn_implementation
        self.model.eval()
        alone = self._probe_alone()
        self.layout_reason = "its attention cannot be replaced"
        if alone is not None and self._set_attention(attention.NAME):
            for offset in {0: None, _declared_offset(self.model): None}:
                if self._probe_packed(offset, alone):
                    self.layout, self.position_offset = "packed", offset
                    self.layout_reason = "probe: packed equals alone"
                    break
            else:
                self._set_attention(native)
                self.layout_reason = "probe: packed differs from alone"
        self.model.train(was_training)

    def _set_attention(self, name: str) -> bool:
        with quiet_transformers(), contextlib.suppress(ValueError):
            self.model.set_attn_implementation(name)
        return self.model.config._attn_implementation == name

    @torch.no_grad()
    def _probe_alone(self) -> Tensor | None:
        try:
            states = [self.model(input_ids=ids[None]).last_hidden_state[0] for ids in self._probe()]
        except (ValueError, TypeError):  # encoder-decoders want decoder inputs
            return None
        return torch.cat(states)

    @torch.no_grad()
    def _probe_packed(self, offset: int, alone_TD: Tensor) -> bool:
        texts = self._probe()
        layout = attention.PackedLayout(((2, 9), (1, 4), (1, 2)))
        positions = layout.positions(self.device)[None] + offset
        try:
            with quiet_transformers():
                out = self.model(
                    input_ids=torch.cat(texts)[None], position_ids=positions, packed=layout
                )
        except (ModelError, TypeError, ValueError, IndexError):
            return False
        error = (out.last_hidden_state[0] - alone_TD).abs().max()
        return bool(error <= PACKED_TOLERANCE * alone_TD.abs().max().clamp(min=1))

    def _probe(self) -> list[Tensor]:
        """Random ids that avoid the first few, where special tokens and padding lie."""
        vocab = self.model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(0)
        draw = lambda n: torch.randint(min(5, vocab - 1), vocab, (n,), generator=generator)  # noqa: E731
        return [draw(n).to(self.device) for n in PROBE_LENGTHS]


def _declared_offset(model: PreTrainedModel) -> int:
    """Where a position table starts: RoBERTa's kin count from the padding index + 1."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


def _seen(batch: TokenBatch, device: torch.device) -> Tensor:
    lengths_B = torch.tensor(batch.lengths, device=device)
    return torch.arange(max(batch.lengths), device=device)[None] < lengths_B[:, None]


def _scatter(states_TD: Tensor, seen_BL: Tensor) -> Tensor:
    """Packed states laid out as [B, L, D], zeros where a text has ended."""
    if bool(seen_BL.all()):
        return states_TD.view(*seen_BL.shape, -1)
    out = states_TD.new_zeros(*seen_BL.shape, states_TD.shape[-1])
    out[seen_BL] = states_TD
    return out
