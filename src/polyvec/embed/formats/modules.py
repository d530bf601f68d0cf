"""modules.json and the folders it lists: what a model folder declares beside its transformer."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from polyvec.embed.formats import sparse
from polyvec.embed.formats.declared import Declared, part_kind
from polyvec.embed.formats.gguf.finding import is_gguf
from polyvec.embed.formats.gguf.loading import read_declared
from polyvec.embed.formats.own_modules import is_own, load_chain
from polyvec.embed.formats.routing import Module, read_routing
from polyvec.embed.formats.schema import (
    OWN_WAY,
    POOLING_FLAGS,
    POOLING_FUNCTIONS,
    listed_modules,
    module_folder,
    read_json,
)
from polyvec.embed.formats.static import is_model2vec
from polyvec.embed.formats.weights import load_weights
from polyvec.embed.part import Part
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.embed.pooling.lexical import Lexical
from polyvec.embed.pooling.modules import POOLING_MODULES, WeightedLayers
from polyvec.embed.pooling.steps import CNN, LSTM, WordCounts, WordWeights
from polyvec.embed.projection.dense import Dense, LayerNorm, Normalize
from polyvec.embed.projection.modules import PROJECTIONS
from polyvec.errors import ModelError, SettingsError, known
from polyvec.registry import Registry, build


def read_modules(folder: Path, *, trust_remote_code: bool = False) -> Declared:
    """What modules.json lists, with weights; nothing declared if there is no such file.

    `folder` may be a GGUF file, whose metadata declare the pooling.

    A part of a user's package is imported only with `trust_remote_code`, unless the running
    program has registered it under that name. Raises ModelError for anything else.
    """
    if is_gguf(folder):
        return read_declared(folder)
    modules = _listed(folder) or _of_model2vec(folder)
    routing = read_routing(folder, modules)
    if routing is None:
        return _declared(folder, modules, Declared(), trust_remote_code)
    loaded: dict[Path, nn.Module] = {}  # routes may share modules
    found = {
        name: _declared(folder, chain, Declared(routed=True, loaded=loaded), trust_remote_code)
        for name, chain in routing.chains.items()
    }
    main = found[routing.main]
    main.routes = {task: found[name] for task, name in routing.tasks.items()}
    main.default_route = routing.default
    return main


def _of_model2vec(folder: Path) -> list[Module]:
    """The modules that model2vec lists since 0.3; older folders have no modules.json."""
    if not is_model2vec(folder):
        return []
    return [Module("sentence_transformers.models.StaticEmbedding", folder)]


def _listed(folder: Path) -> list[Module]:
    """The modules of modules.json in order; none if there is no such file."""
    if not (folder / "modules.json").is_file():
        return []
    listed = listed_modules(folder)
    # sentence-transformers goes by the order of the list, not by idx; of two modules of one name
    # it keeps the second, in the place of the first.
    modules = {str(m.get("name", place)): m for place, m in enumerate(listed)}.values()
    return [Module(str(m["type"]), module_folder(folder, m["path"])) for m in modules]


def _declared(
    folder: Path, modules: Sequence[Module], declared: Declared, trusted: bool
) -> Declared:
    """What a chain of modules declares."""
    for position, module in enumerate(modules):
        kind = module.kind
        if trusted and position == 0 and is_own(kind) and not declared.routed:
            declared.transformer, declared.own_transformer = module.folder, module
            continue
        if trusted and position == 1 and any(is_own(other.kind) for other in modules[1:]):
            _read_own_chain(folder, modules[1:], declared)
            break
        if kind.startswith("polyvec.") or ":" in kind:
            _read_own(kind, module.folder, declared, trusted)
            continue
        name = _module_name(folder, kind)
        if (position == 0) != (name in FIRST):
            raise ModelError(
                f"{folder}/modules.json: the first module, and no other, must be one of "
                f"{', '.join(FIRST)}"
            )
        try:
            MODULES[name](module.folder, declared)
        except KeyError as error:
            raise ModelError(
                f"{module.folder}: key {error} is missing from its configuration"
            ) from None
        except (TypeError, AttributeError) as error:  # a list for a table, a text for a number
            reason = " ".join(str(error).split())[:150]
            raise ModelError(f"{module.folder}: {name}: wrong configuration ({reason})") from None
    _check_logits(folder, declared)
    _limit(folder, declared)
    return declared


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
            f"{folder}/modules.json: {kind} is the model's own code; read it, then pass "
            "trust_remote_code=True (of an Embedder without a Router)"
        )
    if name not in MODULES:
        raise ModelError(
            f"{folder}/modules.json: module {name!r} is not supported.{known(name, MODULES)}"
        )
    return name


def _read_own_chain(folder: Path, modules: Sequence[Module], declared: Declared) -> None:
    """Modules behind a transformer of which one is the folder's own code."""
    if declared.transformer is None or declared.masked or declared.routed:
        raise ModelError(
            f"{folder}/modules.json: modules of the model's own code are run behind a Transformer "
            "only, and in no Router; use sentence-transformers"
        )
    for module in modules:
        if module.kind.startswith("polyvec.") or ":" in module.kind:
            raise ModelError(
                f"{folder}/modules.json: {module.kind} is not run beside the model's own code"
            )
        if not is_own(module.kind) and _module_name(folder, module.kind) == "Pooling":
            _read_pooling(module.folder, declared)  # to check it
    chain = load_chain(folder, modules)
    declared.pooling, declared.pool_prompt = chain, chain.pool_prompt


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
        _with_weights(part, folder, declared)
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
    if is_model2vec(folder) and read_json(folder / "config.json").get("normalize"):
        declared.projections.append(Normalize())


def _read_words(folder: Path, declared: Declared) -> None:
    declared.words = folder


def _read_bag_of_words(folder: Path, declared: Declared) -> None:
    """A bag of words is its own pooling."""
    config = read_json(folder / "config.json")
    size = len(dict.fromkeys(config["vocab"]))
    declared.bag_of_words = folder
    declared.pooling = WordCounts(size, config.get("cumulative_term_frequency", True))


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
    pooling = by_mode or by_flag
    if not pooling:
        raise ModelError(f"{path}: declares no pooling. Known: {', '.join(modes)}.")
    declared.pool_by(pooling)
    # A second pooling reads the tokens again, and replaces the vectors made so far.
    declared.projections.clear()
    declared.pool_prompt = bool(config.get("include_prompt", True))


def _read_dense(folder: Path, declared: Declared) -> None:
    config = read_json(folder / "config.json")
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
    _add(_with_weights(dense, folder, declared), _of_tokens(config, folder), folder, declared)


def _read_layer_norm(folder: Path, declared: Declared) -> None:
    norm = LayerNorm(read_json(folder / "config.json")["dimension"])
    _add(_with_weights(norm, folder, declared), False, folder, declared)


def _read_normalize(folder: Path, declared: Declared) -> None:
    of_tokens = _of_tokens(read_json(folder / "config.json", {}), folder)
    # Before there are vectors, sentence-transformers' Normalize of them does nothing.
    if of_tokens or declared.pooling is not None:
        _add(Normalize(), of_tokens, folder, declared)


def _read_dropout(folder: Path, declared: Declared) -> None:
    """Dropout does nothing to a trained model's vectors; there must be some."""
    _check_pooled("Dropout", folder, declared)


def _read_cnn(folder: Path, declared: Declared) -> None:
    config = renamed(read_json(folder / "cnn_config.json"), "in_embedding_dimension")
    _add_step(CNN, config, folder, declared)


def _read_lstm(folder: Path, declared: Declared) -> None:
    config = renamed(read_json(folder / "lstm_config.json"), "embedding_dimension")
    _add_step(LSTM, config, folder, declared)


def _read_word_weights(folder: Path, declared: Declared) -> None:
    _add_step(WordWeights, read_json(folder / "config.json"), folder, declared)


def _read_weighted_layers(folder: Path, declared: Declared) -> None:
    if declared.transformer is not None and not _gives_all_layers(declared.transformer):
        warnings.warn(
            f"{folder}: has no effect, since the transformer's config.json lacks "
            "output_hidden_states: true; sentence-transformers does not use it either",
            stacklevel=2,
        )
        return
    config = read_json(folder / "config.json")
    layers = WeightedLayers(config["num_hidden_layers"], config["layer_start"])
    declared.layers = _with_weights(layers, folder, declared)
    declared.steps = []  # what was computed from the last layer's states is dropped


def _gives_all_layers(transformer: Path) -> bool:
    """Whether sentence-transformers asks the transformer for the states of all layers."""
    settings = read_json(transformer / "sentence_bert_config.json", {})
    over = {**(settings.get("config_args") or {}), **(settings.get("config_kwargs") or {})}
    own = read_json(transformer / "config.json").get("output_hidden_states", False)
    return bool(over.get("output_hidden_states", own))


def _of_tokens(config: dict[str, Any], folder: Path) -> bool:
    """Whether a module reads and writes token embeddings; else it is the sentence embedding."""
    names = config.get("module_input_name") or "sentence_embedding"
    output = config.get("module_output_name") or names
    if names != output or names not in ("sentence_embedding", "token_embeddings"):
        raise ModelError(
            f"{folder}/config.json: module_input_name {names!r} to module_output_name {output!r} "
            "is not supported, only sentence_embedding or token_embeddings to itself"
        )
    return bool(names == "token_embeddings")


def _add(step: nn.Module, of_tokens: bool, folder: Path, declared: Declared) -> None:
    """A step over tokens or vectors."""
    projections = declared.projections
    if of_tokens:
        # A static table and a bag of words have no tokens to go over.
        if declared.static is None and declared.bag_of_words is None:
            declared.steps = [*declared.steps, step]
        elif not isinstance(step, Normalize):
            raise ModelError(f"{folder}: {type(step).__name__} of tokens, but there are none here")
        return
    _check_pooled(type(step).__name__, folder, declared)
    if isinstance(step, Normalize) and any(isinstance(s, Normalize) for s in projections[-1:]):
        return  # model2vec says it in config.json and modules.json
    projections.append(step)


def _add_step(
    kind: type[nn.Module], config: dict[str, Any], folder: Path, declared: Declared
) -> None:
    """A module that is always one over tokens."""
    try:
        step = kind(**config)
    except TypeError as error:
        reason = str(error).partition("__init__() ")[2] or str(error)
        raise ModelError(f"{folder}: {kind.__name__}: {reason}") from None
    _add(_with_weights(step, folder, declared), True, folder, declared)


def _check_pooled(name: str, folder: Path, declared: Declared) -> None:
    if declared.pooling is None:
        raise ModelError(
            f"{folder}: {name} of the vectors comes before the Pooling that makes them"
        )


def renamed(config: dict[str, Any], new: str) -> dict[str, Any]:
    """A configuration with the dimension's name of before sentence-transformers 5.4 replaced."""
    old = new.replace("embedding_dimension", "word_embedding_dimension")
    return {new if key == old else key: value for key, value in config.items()}


FIRST = (
    "Transformer",
    "StaticEmbedding",
    "WordEmbeddings",
    "BoW",
    "MLMTransformer",
    "SparseStaticEmbedding",
)
MODULES: dict[str, Callable[[Path, Declared], None]] = {
    "Transformer": _read_transformer,
    "StaticEmbedding": _read_static,
    "WordEmbeddings": _read_words,
    "BoW": _read_bag_of_words,
    "MLMTransformer": _read_masked,
    "SparseStaticEmbedding": _read_sparse_static,
    "SpladePooling": _read_splade,
    "SparseAutoEncoder": _read_autoencoder,
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": _read_normalize,
    "Dropout": _read_dropout,
    "CNN": _read_cnn,
    "LSTM": _read_lstm,
    "WordWeights": _read_word_weights,
    "WeightedLayerPooling": _read_weighted_layers,
}


def _with_weights(module: Any, folder: Path, declared: Declared) -> Any:
    """The module with its folder's weights; the same object for routes that share it."""
    if folder not in declared.loaded:
        try:
            module.load_state_dict(read_weights(folder))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{folder}: weights do not fit its config.json: {reason}") from None
        declared.loaded[folder] = module
    return declared.loaded[folder]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a module; ModelError names a file that is missing or damaged."""
    return load_weights(folder)
