"""Which weights a stage trains: the backbone's own, an adapter's beside them, the parts around it.

An adapter is one of the peft package, put into the backbone's model in place, and kept by
`Embedder.save_pretrained` as adapter_config.json and adapter_model.safetensors. Its targets are
found by where modules are, not by their names: every linear layer of the transformer's blocks.
What would train nothing is an error (GritLM's w1 to w3 match no layer of Mistral).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from polyvec.embed.backbone.bottleneck import add_bottlenecks, bottleneck_state
from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.adapters import NAME, is_adapted, merge_adapter
from polyvec.embed.formats.schema import read_json
from polyvec.embed.part import one_of
from polyvec.errors import MissingExtraError, ModelError, SettingsError, known
from polyvec.registry import Fact, Registry
from polyvec.train.four_bits import in_four_bits, quantise
from polyvec.train.soft_prompt import add_soft_prompt, soft_prompt_ids

UNMERGED = ("qlora", "bottleneck")  # what these add cannot be added to the weights
PARTS = ("pooling", "projections", "new_tokens")
# Of each kind; a table's other keys are arguments of its function.
ADAPTERS: Registry[Callable[..., None]] = Registry("adapter")

OfEmbedder = Annotated[Any, Fact("embedder")]
Model = Annotated[Any, Fact("model")]
# Rows of the embedding table that are trained beside the adapter; none where all or none are.
Rows = Annotated[Sequence[int], Fact("rows")]
# Whether the adapter is made now, or was made by an earlier stage and is trained on.
Fresh = Annotated[bool, Fact("fresh")]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a stage trains.

    names: of the trained parameters in the embedder. num_trained, num_parameters: numbers in
    them, and in the whole embedder. kind: of the adapter.
    """

    kind: str
    names: tuple[str, ...]
    num_trained: int
    num_parameters: int

    def __str__(self) -> str:
        share = 100 * self.num_trained / self.num_parameters
        return (
            f"adapter {self.kind}: {self.num_trained:,} of {self.num_parameters:,} parameters "
            f"({share:.3g} %)"
        )


def prepare(
    embedder: Embedder,
    adapter: Mapping[str, Any] | None = None,
    train: Sequence[str] = PARTS,
    *,
    before: Mapping[str, Any] | None = None,
    head: bool = False,
    where: str = "[[stage]]",
) -> Trained:
    """Make the embedder ready for a stage: `requires_grad` of each parameter, adapters in place.

    adapter: the stage's own table; an earlier adapter is then merged into the weights first
    (LLM2Vec merges MNTP's before SimCSE). None goes on with `before`, the table of the last
    stage that had one; without either, a loaded adapter is trained, else everything ("full").
    head: whether the stage's loss reads the language model's head, which "full" then trains.

    Raises SettingsError for a setting or target that is not known, ModelError where nothing
    would be trained.
    """
    table = dict(adapter if adapter is not None else before or {"kind": "full"})
    if adapter is None and before is None and is_adapted(carrier(embedder)):
        table = {"kind": "kept"}
    kind = table.pop("kind", None)
    if not isinstance(kind, str):
        raise SettingsError(f"{where} adapter has no kind.{known('', ADAPTERS)}")
    for part in train:
        one_of(f"{where} train", part, PARTS)
    merged = table.pop("merge", False)
    if type(merged) is not bool or (merged and kind in UNMERGED):
        raise SettingsError(
            f"{where} adapter: setting 'merge' is {merged!r}, expected true or false"
            f"{f', of {kind} false' if kind in UNMERGED else ''}"
        )
    if embedder.routes and kind != "full":
        raise ModelError(
            f"{where}: adapter {kind!r} on an embedder whose queries and documents take routes of "
            "their own is not supported; train with adapter 'full'"
        )
    model = carrier(embedder)
    if adapter is not None and is_adapted(model):
        merge(embedder)
    for each in embedder.parameters():
        each.requires_grad_(False)
    facts = {
        "embedder": embedder,
        "model": model,
        "rows": new_rows(embedder) if "new_tokens" in train else [],
        # What a stage between has merged begins anew.
        "fresh": adapter is not None or before is None or not is_adapted(model),
    }
    with quiet_transformers():
        ADAPTERS.build(kind, table, facts, where=f"{where} adapter")
    _train_parts(embedder, train)
    if embedder.backbone.lm_head is not None and (head or "lm_head" in embedder.needs):
        # Tied weights are the embedding table's, which is trained already, or frozen.
        embedder.backbone.lm_head.requires_grad_(kind == "full")
    _name_base(embedder)
    return _counted(embedder, kind, where)


def _train_parts(embedder: Embedder, train: Sequence[str]) -> None:
    if "pooling" in train:
        for part in (embedder.pooling_module, embedder.layers):
            if part is not None:
                part.requires_grad_(True)
    if "projections" in train:
        embedder.projections.requires_grad_(True)


def _counted(embedder: Embedder, kind: str, where: str) -> Trained:
    named = {name: each for name, each in embedder.named_parameters() if each.requires_grad}
    if not named:
        raise ModelError(
            f"{where} trains nothing: adapter {kind!r}, and the embedder has no pooling or "
            "projection with weights that `train` names"
        )
    return Trained(
        kind, tuple(named), sum(each.numel() for each in named.values()), embedder.num_parameters
    )


def merge(embedder: Embedder) -> None:
    """Add the adapter to the backbone's weights, if it has one; the one on disk differs then."""
    model = carrier(embedder)
    if is_adapted(model):
        if in_four_bits(model):
            raise ModelError(
                "an adapter of kind 'qlora' cannot be merged into weights of four bits: save the "
                "embedder, and load it with merge_adapters=True"
            )
        merge_adapter(model)
        model.name_or_path = ""


def carrier(embedder: Embedder) -> Any:
    """The model that an adapter is part of: the body, or the language model it was loaded on."""
    lm = embedder.backbone.lm
    return lm if lm is not None and is_adapted(lm) else embedder.backbone.model


def finish(embedder: Embedder, adapter: Mapping[str, Any] | None) -> None:
    """After a stage: add its adapter to the weights where its table says `merge = true`."""
    if adapter is not None and adapter.get("merge", False):
        merge(embedder)


def _name_base(embedder: Embedder) -> None:
    """Name the base that a saved adapter is loaded on; "" saves the base beside the adapter.

    The latter where weights of its own are trained, or where it has other rows than on disk.
    """
    model = carrier(embedder)
    if not is_adapted(model) or not model.name_or_path:
        return
    folder = Path(model.name_or_path)
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    changed = any(NAME not in name.split(".") for name in names)
    # A hub's cache is on this machine only.
    cached = re.search(r"models--([^/]+)--([^/]+)/snapshots/[^/]+/?$", folder.as_posix())
    name = f"{cached[1]}/{cached[2]}" if cached else model.name_or_path
    if folder.is_dir():
        stored = read_json(folder / "config.json", {})
        trained = any("trainable_tokens" in each for each in names)
        changed |= bool(new_rows(embedder) and not trained)
        if stored.get("vocab_size") != embedder.backbone.num_rows:
            changed, name = True, ""
    model.name_or_path = "" if changed else name
    model.peft_config[NAME].base_model_name_or_path = name


def new_rows(embedder: Embedder) -> list[int]:
    """Ids of the tokens that the embedder's template adds."""
    added = embedder.template.added_tokens if embedder.template is not None else ()
    return sorted(set(embedder.tokenizer.convert_tokens_to_ids(list(added))))


# ---- kinds --------------------------------------------------------------------------------------


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


def adapter_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trained weights of adapters, by name."""
    for name, each in module.named_parameters():
        if each.requires_grad and NAME in name.split("."):
            yield name, each


def check_gradients(module: nn.Module) -> None:
    """Raises ModelError after a first backward pass that leaves an adapter where it is.

    Every weight of an adapter must have a gradient, and no tensor that starts at zero (LoRA's B)
    may have one of zeros: it would stay zero (SILENT row 22).
    """
    trained = [each for each in module.parameters() if each.requires_grad]
    if not any(each.grad is not None and bool((each.grad != 0).any()) for each in trained):
        raise ModelError("no trained weight has a gradient after the first batch")
    for name, each in adapter_parameters(module):
        if each.grad is None:
            raise ModelError(f"adapter weight {name} has no gradient after the first batch")
    stuck = [
        name
        for name, each in adapter_parameters(module)
        if not bool(torch.any(each != 0)) and not bool((each.grad != 0).any())  # type: ignore[union-attr]
    ]
    if stuck:
        raise ModelError(
            f"adapter weight {stuck[0]} ({len(stuck)} such weights) is zero and its gradient, too, "
            "after the first batch: it would stay so"
        )
