"""modules.json and the folders it lists: what a model folder declares beside its transformer."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from polyvec.embed.formats import sparse
from polyvec.embed.formats.schema import OWN_WAY, POOLING_FLAGS, POOLING_FUNCTIONS, read_json
from polyvec.embed.part import Part
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.embed.pooling.lexical import Lexical
from polyvec.embed.pooling.modules import POOLING_MODULES, WeightedLayers
from polyvec.embed.projection.dense import Dense, LayerNorm, Normalize
from polyvec.embed.projection.modules import PROJECTIONS
from polyvec.errors import ModelError, SettingsError, known
from polyvec.registry import Registry, build


@dataclass(slots=True)
class Declared:
    """What a model folder declares, beside the transformer itself."""

    pooling: tuple[str, ...] | PoolingModule | None = None
    pool_prompt: bool = True
    layers: WeightedLayers | None = None
    projections: list[nn.Module] = field(default_factory=list)
    transformer: Path | None = None
    static: Path | None = None
    sparse_static: Path | None = None
    masked: bool = False

    @property
    def is_sparse(self) -> bool:
        """Whether the vectors are mostly zeros."""
        return any(part_kind(part) == "sparse" for part in (self.pooling, *self.projections))


def read_modules(folder: Path, *, trust_remote_code: bool = False) -> Declared:
    """What modules.json lists, with weights; nothing declared if there is no such file.

    A part of a user's package is imported only with `trust_remote_code`, unless the running
    program has registered it under that name. Raises ModelError for anything else.
    """
    declared = Declared()
    if not (folder / "modules.json").is_file():
        return declared
    listed = read_json(folder / "modules.json")
    types = {"idx": int, "path": str, "type": str}
    if not isinstance(listed, list) or not all(
        isinstance(m, dict) and all(type(m.get(key)) is kind for key, kind in types.items())
        for m in listed
    ):
        raise ModelError(
            f"{folder}/modules.json: expected a list of modules with idx (a number), path and type"
        )
    modules = sorted(listed, key=lambda module: module["idx"])
    for position, module in enumerate(modules):
        kind, inside = str(module["type"]), module_folder(folder, module["path"])
        if kind.startswith("polyvec.") or ":" in kind:
            _read_own(kind, inside, declared, trust_remote_code)
            continue
        name = _module_name(folder, kind)
        if (position == 0) != (name in FIRST):
            raise ModelError(
                f"{folder}/modules.json: the first module, and no other, must be one of "
                f"{', '.join(FIRST)}"
            )
        try:
            MODULES[name](inside, declared)
        except KeyError as error:
            raise ModelError(f"{inside}/config.json: key {error} is missing") from None
    _check_logits(folder, declared)
    _limit(folder, declared)
    return declared


def part_kind(part: object) -> str:
    """What a pooling or projection declares: "sparse" or "dense"."""
    return str(getattr(part, "output_kind", "dense"))


def _task(declared: Declared) -> str | None:
    """What the transformer gives: states, or logits for the task "fill-mask"."""
    if declared.masked or declared.transformer is None:
        return "fill-mask" if declared.masked else None
    task = read_json(declared.transformer / "sentence_bert_config.json", {}).get("transformer_task")
    return None if task is None else str(task)


def _check_logits(folder: Path, declared: Declared) -> None:
    """Raises ModelError where logits would go to a pooling of states."""
    if _task(declared) == "fill-mask" and not isinstance(declared.pooling, Lexical):
        raise ModelError(
            f"{folder}/modules.json: the transformer gives logits (fill-mask), which only "
            "SpladePooling pools"
        )


def _limit(folder: Path, declared: Declared) -> None:
    """Apply the folder's max_active_dims to the last part with sparse vectors."""
    path = folder / "config_sentence_transformers.json"
    most = read_json(path, {}).get("max_active_dims")
    if most is None:
        return
    places = [i for i, part in enumerate(declared.projections) if part_kind(part) == "sparse"]
    if places:
        declared.projections[places[-1]] = sparse.limited(
            declared.projections[places[-1]], most, path
        )
    elif declared.sparse_static is None:
        declared.pooling = sparse.limited(declared.pooling, most, path)


def _module_name(folder: Path, kind: str) -> str:
    """The class name of a module; only sentence-transformers' own are supported."""
    name = kind.rpartition(".")[2]
    if not kind.startswith("sentence_transformers."):
        raise ModelError(
            f"{folder}/modules.json: {kind} is the model's own code, which is not supported"
        )
    if name not in MODULES:
        raise ModelError(
            f"{folder}/modules.json: module {name!r} is not supported.{known(name, MODULES)}"
        )
    return name


def module_folder(folder: Path, path: str) -> Path:
    """A module's folder; modules.json may not point out of its own."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ModelError(f"{folder}/modules.json: path {path!r} points outside the model's folder")
    return folder / path


def _read_own(kind: str, folder: Path, declared: Declared, trusted: bool) -> None:
    """A part that sentence-transformers does not have, found by its name."""
    if kind == OWN_WAY:
        return
    config = read_json(folder / "config.json", {})
    if kind == POOLING_FUNCTIONS:
        names = config.get("pooling") if isinstance(config, dict) else None
        if not isinstance(names, list) or not names or any(type(n) is not str for n in names):
            raise ModelError(
                f"{folder}/config.json: pooling is {names!r}, expected a list of names"
            )
        for name in names:
            _find(name, POOLINGS, folder, trusted)
        declared.pooling, declared.pool_prompt = (
            tuple(names),
            bool(config.get("include_prompt", True)),
        )
        return
    # One table: modules.json does not say whether a part is a pooling or a projection.
    every: Registry[type[nn.Module]] = Registry(
        "part",
        {**POOLING_MODULES, **PROJECTIONS},
        accepts=lambda found: inspect.isclass(found) and issubclass(found, Part),
        expected="a PoolingModule, Projector or Fitted",
    )
    found = _find(kind.removeprefix("polyvec."), every, folder, trusted)
    part = build(found, config, where=f"{folder}/config.json")
    if part.state_dict():
        _with_weights(part, folder)
    if isinstance(part, PoolingModule):
        declared.pooling = part
    else:
        declared.projections.append(part)


def _find(name: str, table: Registry[Any], folder: Path, trusted: bool) -> Any:
    """A part in a table; one in a user's package is imported only if the folder is trusted."""
    if name not in table and ":" in name and not trusted:
        raise ModelError(
            f"{folder}: {table.kind} {name!r} is code outside polyvec; read it, then pass "
            "trust_remote_code=True, or register it under this name"
        )
    try:
        return table.find(name)
    except SettingsError as error:
        hint = "" if ":" in name else " Register it under this name before loading, if it is yours."
        raise ModelError(f"{folder}: {error}{hint}") from None


def _read_transformer(folder: Path, declared: Declared) -> None:
    declared.transformer = folder


def _read_masked(folder: Path, declared: Declared) -> None:
    declared.transformer, declared.masked = folder, True


def _read_splade(folder: Path, declared: Declared) -> None:
    if declared.transformer is None or _task(declared) != "fill-mask":
        raise ModelError(
            f"{folder}: SpladePooling pools logits: it needs an MLMTransformer before it, or a "
            "Transformer with transformer_task 'fill-mask'"
        )
    declared.pooling = sparse.read_splade(folder, declared.transformer)


def _read_autoencoder(folder: Path, declared: Declared) -> None:
    declared.projections.append(sparse.read_autoencoder(folder))


def _read_sparse_static(folder: Path, declared: Declared) -> None:
    declared.sparse_static = folder


def _read_static(folder: Path, declared: Declared) -> None:
    """Static models are always mean-pooled: no pooling module follows."""
    declared.static, declared.pooling = folder, ("mean",)


def _read_pooling(folder: Path, declared: Declared) -> None:
    """Poolings by legacy flags or `pooling_mode`; both are accepted if they agree."""
    path = folder / "config.json"
    config = read_json(path)
    flags = {flag: name for name, (flag, _) in POOLING_FLAGS.items()}
    modes = {mode: name for name, (_, mode) in POOLING_FLAGS.items()}
    other = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
    for key in config:
        if key not in flags and key not in other:
            raise ModelError(f"{path}: key {key!r} is not known.{known(key, [*flags, *other])}")
    # Several flags mean concatenation, in the order of POOLING_FLAGS.
    by_flag = tuple(name for flag, name in flags.items() if config.get(flag))
    mode = config.get("pooling_mode", ())
    mode = (mode,) if isinstance(mode, str) else tuple(mode)
    for name in mode:
        if name not in modes:
            raise ModelError(f"{path}: pooling_mode {name!r} is not known.{known(name, modes)}")
    by_mode = tuple(modes[name] for name in mode)
    if by_flag and by_mode and sorted(by_flag) != sorted(by_mode):
        raise ModelError(f"{path}: flags {by_flag} contradict pooling_mode {by_mode}")
    declared.pooling = by_mode or by_flag
    if not declared.pooling:
        raise ModelError(f"{path}: declares no pooling. Known: {', '.join(modes)}.")
    declared.pool_prompt = bool(config.get("include_prompt", True))


def _read_dense(folder: Path, declared: Declared) -> None:
    config = read_json(folder / "config.json")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ModelError(f"{folder}/config.json: {key} {config[key]!r} is not supported")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not name.startswith("torch.nn."):
        raise ModelError(
            f"{folder}/config.json: activation {name} is the model's own code, which is not run"
        )
    dense = Dense(
        config["in_features"],
        config["out_features"],
        bias=config.get("bias", True),
        activation=name.rpartition(".")[2],
        use_residual=config.get("use_residual", False),
    )
    declared.projections.append(_with_weights(dense, folder))


def _read_layer_norm(folder: Path, declared: Declared) -> None:
    norm = LayerNorm(read_json(folder / "config.json")["dimension"])
    declared.projections.append(_with_weights(norm, folder))


def _read_normalize(folder: Path, declared: Declared) -> None:
    config = read_json(folder / "config.json", {})
    if config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise ModelError(f"{folder}/config.json: token-wise Normalize is not supported")
    declared.projections.append(Normalize())


def _read_weighted_layers(folder: Path, declared: Declared) -> None:
    config = read_json(folder / "config.json")
    layers = WeightedLayers(config["num_hidden_layers"], config["layer_start"])
    declared.layers = _with_weights(layers, folder)


FIRST = ("Transformer", "StaticEmbedding", "MLMTransformer", "SparseStaticEmbedding")
MODULES: dict[str, Callable[[Path, Declared], None]] = {
    "Transformer": _read_transformer,
    "StaticEmbedding": _read_static,
    "MLMTransformer": _read_masked,
    "SparseStaticEmbedding": _read_sparse_static,
    "SpladePooling": _read_splade,
    "SparseAutoEncoder": _read_autoencoder,
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": _read_normalize,
    "WeightedLayerPooling": _read_weighted_layers,
}


def _with_weights(module: Any, folder: Path) -> Any:
    path = folder / "model.safetensors"
    if not path.is_file():
        # Unpickling runs code, so only safetensors files are read.
        pickled = "; pytorch_model.bin can run code and is not read, convert it"
        raise ModelError(f"{path} is missing{pickled if any(folder.glob('*.bin')) else ''}")
    try:
        module.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: does not fit its config.json: {reason}") from None
    return module
