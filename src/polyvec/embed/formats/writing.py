"""An embedder into a folder, or onto the hub."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from polyvec import __version__
from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.formats.schema import (
    CALIBRATION_FILE,
    OWN_WAY,
    POLYVEC_FILE,
    POOLING_FLAGS,
    module_type,
    read_json,
    write_json,
)
from polyvec.embed.formats.static import StaticTable, write_static
from polyvec.embed.parts import PROJECTIONS
from polyvec.embed.pooling.modules import POOLING_MODULES
from polyvec.embed.projection.dense import Dense, LayerNorm, Normalize
from polyvec.errors import ModelError
from polyvec.storage.files import atomic_folder

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder


def write_embedder(embedder: "Embedder", path: Path) -> None:
    """See Embedder.save_pretrained."""
    with atomic_folder(path, replaceable="config.json") as folder:
        modules = [_write_model(embedder, folder)]
        if embedder.layers is not None:
            modules.append(_write_weighted_layers(embedder, folder, len(modules)))
        if modules != [("", "StaticEmbedding")]:
            modules.append(_write_pooling(embedder, folder, len(modules)))
        for step in embedder.projections:
            modules.append(_write_projection(step, folder, len(modules)))
        if _reads_its_own_way(embedder):
            modules.append(("", OWN_WAY))
        types = [
            {"idx": i, "name": str(i), "path": place, "type": module_type(kind)}
            for i, (place, kind) in enumerate(modules)
        ]
        write_json(folder / "modules.json", types)
        _write_settings(embedder, folder)


def _reads_its_own_way(embedder: "Embedder") -> bool:
    """Whether something that sentence-transformers cannot do decides the vectors.

    The folder then names a module that it does not have: an error there, not another vector.
    """
    backbone = embedder.backbone
    plain = (
        backbone.spec.kind in ("native", "causal", "bidirectional") and not backbone.spec.blocked
    )
    return not plain or any((embedder.template, embedder.variants, backbone.prepending))


def _write_model(embedder: "Embedder", folder: Path) -> tuple[str, str]:
    """The backbone and its tokenizer."""
    model = embedder.backbone.model
    if not isinstance(model, StaticTable):
        _write_transformer(embedder, folder)
        return "", "Transformer"
    if embedder.pooling != ("mean",) or embedder.max_seq_length is not None:
        raise ModelError("a static table is saved as a mean over all words; this one is not")
    write_static(model, embedder.tokenizer, folder)
    return "", "StaticEmbedding"


def _write_transformer(embedder: "Embedder", folder: Path) -> None:
    backbone = embedder.backbone
    model = backbone.model if backbone.lm is None else backbone.lm
    if embedder.layers is not None:
        # sentence-transformers hands layers on only if the config asks for them.
        model.config.output_hidden_states = True
    with quiet_transformers(), _declared(embedder):
        model.save_pretrained(folder)
        embedder.tokenizer.save_pretrained(folder)
    length = embedder.max_seq_length
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": length, "do_lower_case": embedder.text_tokenizer.lower_case},
    )
    # Newer readers take the length from here.
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    if length is not None:
        write_json(
            folder / "tokenizer_config.json", {**tokenizer_config, "model_max_length": length}
        )


@contextlib.contextmanager
def _declared(embedder: "Embedder") -> Iterator[None]:
    """While inside, the config says `is_causal` as other readers understand it (vLLM, ours)."""
    config = embedder.backbone.model.config.get_text_config()
    causal = {"bidirectional": False, "causal": True}.get(embedder.backbone.spec.kind)
    before = getattr(config, "is_causal", None)
    if causal is not None:
        config.is_causal = causal
    try:
        yield
    finally:
        if causal is not None:
            config.is_causal = before
            if before is None:
                del config.is_causal


def _write_pooling(embedder: "Embedder", folder: Path, place: int) -> tuple[str, str]:
    module = embedder.pooling_module
    if module is not None:
        return _write_own(module, POOLING_MODULES, folder, place)
    modes = [POOLING_FLAGS[name][1] for name in embedder.pooling]
    config: dict[str, Any] = {"word_embedding_dimension": embedder.backbone.hidden_size}
    config |= {flag: name in embedder.pooling for name, (flag, _) in POOLING_FLAGS.items()}
    config |= {"include_prompt": embedder.pool_prompt}
    config |= {"pooling_mode": modes[0] if len(modes) == 1 else modes}
    inside = folder / f"{place}_Pooling"
    inside.mkdir()
    write_json(inside / "config.json", config)
    return inside.name, "Pooling"


def _write_weighted_layers(embedder: "Embedder", folder: Path, place: int) -> tuple[str, str]:
    layers = embedder.layers
    assert layers is not None
    config = {
        "word_embedding_dimension": embedder.backbone.hidden_size,
        "layer_start": layers.layer_start,
        "num_hidden_layers": layers.num_hidden_layers,
    }
    return _write_module(layers, "WeightedLayerPooling", config, folder, place)


def _write_projection(step: nn.Module, folder: Path, place: int) -> tuple[str, str]:
    if isinstance(step, Dense):
        config = {
            "in_features": step.in_features,
            "out_features": step.out_features,
            "bias": step.linear.bias is not None,
            "activation_function": f"{type(step.activation).__module__}.{step.activation_name}",
        }
        if step.use_residual:
            config["use_residual"] = True
        return _write_module(step, "Dense", config, folder, place)
    if isinstance(step, LayerNorm):
        return _write_module(step, "LayerNorm", {"dimension": step.dimension}, folder, place)
    if isinstance(step, Normalize):
        (folder / f"{place}_Normalize").mkdir()
        return f"{place}_Normalize", "Normalize"
    return _write_own(step, PROJECTIONS, folder, place)


def _write_own(part: Any, table: Mapping[str, type], folder: Path, place: int) -> tuple[str, str]:
    """A part of ours: its settings and weights, under its name in the table."""
    name = next((name for name, kind in table.items() if type(part) is kind), None)
    if name is None:
        raise ModelError(f"{type(part).__name__} is in no table of parts, so nothing could load it")
    return _write_module(part, f"polyvec.{name}", part.settings(), folder, place)


def _write_module(
    module: nn.Module, kind: str, config: dict, folder: Path, place: int
) -> tuple[str, str]:
    inside = folder / f"{place}_{kind.removeprefix('polyvec.')}"
    inside.mkdir()
    write_json(inside / "config.json", config)
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    if weights:
        save_file(weights, inside / "model.safetensors")
    return inside.name, kind


def _write_settings(embedder: "Embedder", folder: Path) -> None:
    settings: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "__version__": {"polyvec": __version__, "pytorch": torch.__version__},
        "prompts": embedder.prompts,
        "default_prompt_name": embedder.prompt_table.default_name,
        "similarity_fn_name": embedder.similarity_fn_name,
    }
    if embedder.truncate_dim is not None:
        settings["truncate_dim"] = embedder.truncate_dim
    write_json(folder / "config_sentence_transformers.json", settings)
    own: dict[str, Any] = {
        "format": 1,
        "tokenizer_contract": embedder.text_tokenizer.contract.as_dict(),
        "attention": str(embedder.backbone.spec),
        "blocked": [list(pair) for pair in embedder.backbone.spec.blocked],
    }
    if embedder.template is not None:
        own["template"] = embedder.template.as_dict()
    if embedder.backbone.prepending is not None:
        own["prepending"] = dataclasses.asdict(embedder.backbone.prepending)
    if embedder.variants is not None:
        own["variants"] = embedder.variants.settings()
    if embedder.calibration is not None:
        own["calibration_texts"] = embedder.calibration.num_texts
        ranges = torch.from_numpy(embedder.calibration.ranges_2E)
        save_file({"ranges": ranges.contiguous()}, folder / CALIBRATION_FILE)
    write_json(folder / POLYVEC_FILE, own)
    (folder / "README.md").write_text(_model_card(embedder), "utf-8")


def _model_card(embedder: "Embedder") -> str:
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, sentence-similarity, feature-extraction, polyvec]",
        "---",
        "",
        f"An embedding model of {embedder.get_embedding_dimension()} dimensions, by polyvec.",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {key} | `{json.dumps(value)}` |" for key, value in embedder.settings().items()),
        "",
    ]
    return "\n".join(lines)


def upload_embedder(
    embedder: "Embedder", repo_id: str, *, private: bool = False, **options: Any
) -> str:
    """See Embedder.push_to_hub."""
    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None))
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        write_embedder(embedder, Path(folder) / "model")
        return str(api.upload_folder(repo_id=repo, folder_path=Path(folder) / "model", **options))
