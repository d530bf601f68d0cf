"""The kinds of adapters, each a function that makes a model ready and says what is trained.

Targets are found by where modules are, not by their names: every linear layer of the
transformer's blocks (GritLM's w1 to w3 match no layer of Mistral).
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from polyvec.embed.backbone.bottleneck import add_bottlenecks, bottleneck_state
from polyvec.embed.formats.adapters import NAME, is_adapted
from polyvec.errors import MissingExtraError, ModelError, SettingsError, known
from polyvec.registry import Fact, Registry
from polyvec.train.four_bits import quantise
from polyvec.train.soft_prompt import add_soft_prompt, soft_prompt_ids

# Of each kind; a table's other keys are arguments of its function.
ADAPTERS: Registry[Callable[..., None]] = Registry("adapter")

OfEmbedder = Annotated[Any, Fact("embedder")]
Model = Annotated[Any, Fact("model")]
# Rows of the embedding table that are trained beside the adapter; none where all or none are.
Rows = Annotated[Sequence[int], Fact("rows")]
# Whether the adapter is made now, or was made by an earlier stage and is trained on.
Fresh = Annotated[bool, Fact("fresh")]


@ADAPTERS.register("full")
def full(model: Model) -> None:
    """All weights of the backbone; its unused pooler apart."""
    for name, each in model.named_parameters():
        # No vector depends on it, so it has no gradient, which DDP refuses.
        each.requires_grad_(not name.startswith("pooler."))


@ADAPTERS.register("frozen")
def frozen(model: Model, rows: Rows = (), fresh: Fresh = True) -> None:
    """None of the backbone's weights: only pooling, projections and new tokens are trained."""
    _tokens_alone(model, rows, fresh)


@ADAPTERS.register("kept")
def kept(model: Model) -> None:
    """The adapter that the embedder was loaded with."""
    _enable(model)


@ADAPTERS.register("lora")
def lora(
    model: Model,
    rows: Rows = (),
    fresh: Fresh = True,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.05,
    targets: Sequence[str] = (),
    rslora: bool = False,
    dora: bool = False,
    experts: bool = True,
) -> None:
    """LoRA (Hu et al. 2021, arXiv:2106.09685) in every linear layer of the blocks.

    alpha: 2 * rank by default, as LLM2Vec has it. targets: names, or ends of names, of the
    layers instead; each must match one. experts: of mixtures, also the experts' weights, which
    are one tensor for all of them; peft has no dropout there.
    """
    if not fresh:
        _enable(model)
        return
    peft = _peft()
    names, tensors = linear_targets(model, targets), expert_weights(model)
    if targets or not experts:
        tensors = []
    if tensors and dropout:
        raise SettingsError(
            f"adapter 'lora': the experts of {type(model).__name__} ({tensors[0]}) take no "
            "dropout in peft. Set dropout = 0, or experts = false to leave them as they are"
        )
    _inject(
        model,
        peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank if alpha is None else alpha,
            lora_dropout=dropout,
            target_modules=names,
            target_parameters=tensors or None,
            use_rslora=rslora,
            use_dora=dora,
            trainable_token_indices={_embedding_name(model): list(rows)} if rows else None,
        ),
    )


@ADAPTERS.register("qlora")
def qlora(
    model: Model,
    rows: Rows = (),
    fresh: Fresh = True,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.05,
    targets: Sequence[str] = (),
    quantization: Literal["nf4", "fp4"] = "nf4",
    double: bool = True,
) -> None:
    """LoRA beside weights of four bits, by bitsandbytes.

    All linear layers of the blocks are in four bits, also those without an adapter. double: their
    scales are quantised too. The adapter is saved alone: it is loaded on the folder's own weights,
    so vectors then differ by the rounding to four bits.
    """
    if fresh:
        quantise(model, linear_targets(model), kind=quantization, double=double)
    lora(model, rows, fresh, rank, alpha, dropout, targets, experts=False)


@ADAPTERS.register("bitfit")
def bitfit(model: Model, rows: Rows = (), fresh: Fresh = True) -> None:
    """All bias terms, those of norms too (Ben Zaken et al. 2021, arXiv:2106.10199)."""
    _tokens_alone(model, rows, fresh)
    biases = [
        each
        for name, each in model.named_parameters()
        if name.rpartition(".")[2] == "bias" and not name.startswith("pooler.")
    ]
    if not biases:
        raise ModelError(
            f"adapter 'bitfit': {type(model).__name__} has no bias terms, so nothing would be "
            "trained; use adapter 'lora'"
        )
    for each in biases:
        each.requires_grad_(True)


@ADAPTERS.register("bottleneck")
def bottleneck(model: Model, rows: Rows = (), fresh: Fresh = True, size: int = 64) -> None:
    """A feed-forward network of `size` dimensions after every block (arXiv:1909.08478).

    Not one of peft, and saved in a file of its own beside the whole model, which only polyvec
    reads. It cannot be merged, and no other adapter comes on top of it.
    """
    if size < 1:
        raise SettingsError(f"adapter 'bottleneck': size {size} is not 1 or more")
    if not bottleneck_state(model):
        add_bottlenecks(model, size)
    if rows:
        raise SettingsError(
            "adapter 'bottleneck' does not train rows of new tokens: leave 'new_tokens' out of "
            "`train`, or use adapter 'lora'"
        )
    own = bottleneck_state(model)
    for name, each in model.named_parameters():
        each.requires_grad_(name in own)


@ADAPTERS.register("prompt")
def prompt(
    embedder: OfEmbedder,
    model: Model,
    rows: Rows = (),
    fresh: Fresh = True,
    num_tokens: int = 20,
) -> None:
    """Prompt tuning (Lester et al. 2021, arXiv:2104.08691): tokens before each text, by their rows.

    They come after BOS and are pooled as BOS is. The backbone stays as it is.
    """
    if not fresh:
        _enable(model)
        return
    ids = soft_prompt_ids(embedder) or add_soft_prompt(embedder, num_tokens)
    _tokens_alone(model, sorted({*ids, *rows}), fresh)


# ---- targets ------------------------------------------------------------------------------------


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of the transformer's blocks by name: not poolers, embeddings or heads."""
    lists = [name for name, each in model.named_modules() if isinstance(each, nn.ModuleList)]
    return {
        name: each
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear | Conv1D) and any(name.startswith(f"{x}.") for x in lists)
    }


def linear_targets(model: nn.Module, targets: Sequence[str] = ()) -> list[str]:
    """Full names of the linear layers that `targets` name, or of all; each must match one."""
    layers = linear_layers(model)
    if not layers:
        raise ModelError(f"{type(model).__name__} has no linear layers in its blocks")
    if not targets:
        return list(layers)
    found: dict[str, None] = {}
    for target in targets:
        matches = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not matches:
            ends = {name.rpartition(".")[2] for name in layers}
            raise SettingsError(
                f"adapter: target {target!r} matches no linear layer of {type(model).__name__}."
                f"{known(target, ends)}"
            )
        found |= dict.fromkeys(matches)
    return list(found)


def expert_weights(model: nn.Module) -> list[str]:
    """Names of the tensors that hold the weights of all experts of a layer, [E, out, in]."""
    return [
        name
        for name, each in model.named_parameters()
        if each.ndim == 3 and not name.endswith("bias") and re.search(r"\.\d+\.", name)
    ]


def _embedding_name(model: Any) -> str:
    table = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is table)


# ---- peft ---------------------------------------------------------------------------------------


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "peft", "an adapter") from None
    return peft


def _inject(model: Any, config: Any) -> None:
    """Put a new adapter into the model; its base is what the model was loaded from."""
    if bottleneck_state(model):
        raise ModelError(
            f"{type(model).__name__} has bottleneck adapters, which cannot be merged: no other "
            "adapter comes on top of them; train with adapter 'bottleneck' or 'full'"
        )
    try:
        model.add_adapter(config, adapter_name=NAME)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"{type(model).__name__}: peft cannot put the adapter in "
            f"({' '.join(str(error).split())[:200]})"
        ) from None


def _tokens_alone(model: Any, rows: Sequence[int], fresh: bool) -> None:
    """Rows of new tokens as an adapter of its own, where there is none that they could join."""
    if not fresh and is_adapted(model):
        _enable(model)
    elif rows:
        name = _embedding_name(model)
        _inject(
            model, _peft().TrainableTokensConfig(token_indices=list(rows), target_modules=[name])
        )


def _enable(model: Any) -> None:
    """Train the adapter that the model has."""
    if not is_adapted(model):
        raise ModelError(f"{type(model).__name__} has no adapter to train on")
    for name, each in model.named_parameters():
        if NAME in name.split("."):
            each.requires_grad_(True)
    model.peft_config[NAME].inference_mode = False
