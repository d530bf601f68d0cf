"""BERT's layers of one short text in ONNX Runtime: `backend="onnx"` on the CPU.

A query has so few tokens that Python and torch around its products take as long as these.
ONNX Runtime runs all layers in one call. The graph is built of the model's own weights, not of
an exported file; longer texts and batches stay with the layers of fused.py, which are faster.

T tokens of the text, D state size, N numbers out of a product.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.fused import Bert, Fused, Norm
from polyvec.embed.backbone.linears import Activation, UnsuitedError, weight_of
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import MissingExtraError, SettingsError, known

TORCH, ONNX = BACKENDS = ("torch", "onnx")
# Of more, torch's layers compute as fast (docs/speed.md).
MOST_TOKENS = 64
OPSET, CONTRIB_OPSET, IR_VERSION = 17, 1, 8
CONTRIB = "com.microsoft"
# Read when onnxruntime is imported, which else keeps a device's id in the user's cache folder and
# looks for a host to report to. A process that forked with that thread hangs at its exit, too.
NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")
# Their operators add the bias of the product before them.
WITH_BIAS = {("gelu", "none"): "BiasGelu", ("gelu", "tanh"): "FastGelu"}
SEEING_ALL = ("native", "bidirectional")


def check_backend(name: str) -> None:
    """Raises SettingsError for another name than those of BACKENDS."""
    if name not in BACKENDS:
        raise SettingsError(f"backend {name!r} is not known.{known(name, BACKENDS)}")


def packages() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime; MissingExtraError, with the pip command, without them."""
    os.environ.setdefault(*NO_TELEMETRY)
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        missing = (error.name or "onnxruntime").partition(".")[0]
        raise MissingExtraError(missing, ONNX, f"backend={ONNX!r}") from None
    return onnx, onnxruntime


class ShortTexts:
    """The layers of a BERT, RoBERTa or XLM-R for one text of at most MOST_TOKENS tokens.

    In float32 alone: in 8-bit integers a text would have another vector than beside others, as
    sums in another order turn numbers to other levels. With as many threads as torch has when it
    is made. Raises UnsuitedError for other layers, and MissingExtraError without onnxruntime.
    """

    def __init__(self, fused: Fused) -> None:
        if not isinstance(fused, Bert) or fused.linear.least_cosine is not None:
            raise UnsuitedError(f"{type(fused).__name__} in {fused.linear.name}")
        graph = _Graph(fused)
        self._session = graph.session()
        # Memory that the session may read, but does not own.
        self._kept = graph.shared, graph.weights
        # numpy's views of the tables, whose rows it finds in a tenth of torch's time.
        tables = (fused.words, fused.places, fused.types)
        self._words, self._places, self._types = (table.detach().numpy() for table in tables)
        self._read = (*tables, *graph.read)
        self._process = os.getpid()
        _MADE.add(self)
        self._where = self._now()

    def holds(self) -> bool:
        """Whether what is read in place is where it was.

        Norms and tables are neither counted nor compared by fused.Stamp, and `share_memory()` or
        `weight.data = ...` frees the memory that the session reads.
        """
        return self._where == self._now()

    def _now(self) -> list[int]:
        return [weight.data_ptr() for weight in self._read]

    def takes(self, batch: TokenBatch, spec: AttentionSpec, needs: frozenset[str]) -> bool:
        """Whether the batch is one short text, all of whose tokens see each other."""
        return (
            len(batch.lengths) == 1
            and 1 <= batch.lengths[0] <= MOST_TOKENS
            and "all_layers" not in needs
            and spec.kind in SEEING_ALL
            and not spec.blocked
            and self._process == os.getpid()  # a forked one has no copy of the session's threads
        )

    def states(
        self, ids_T: np.ndarray, places_T: np.ndarray, types_T: np.ndarray | None = None
    ) -> Tensor:
        """The last states, [T, D], of tokens with these ids, positions and types."""
        if ids_T.min() < 0:  # numpy counts from the end
            raise IndexError(f"token id {ids_T.min()}")
        sum_TD = self._words[ids_T] + self._types[0 if types_T is None else types_T]
        sum_TD += self._places[places_T]
        (states_1TD,) = self._session.run(None, {_Graph.INPUT: sum_TD[None]})
        return torch.from_numpy(states_1TD[0])


_MADE: weakref.WeakSet[ShortTexts] = weakref.WeakSet()


def _leave_sessions() -> None:
    """Never end the sessions of a forked process: their threads, which it lacks, would be awaited.

    That would hang it at its exit.
    """
    for each in _MADE:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each._session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_sessions)


class _Graph:
    """A graph of ONNX from the sum of the embeddings to the last states, [1, T, D] each.

    Nodes and results are named after the weights that they use.
    """

    INPUT = "embeddings"

    def __init__(self, fused: Bert) -> None:
        self._onnx, self._runtime = packages()
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        # Norms stay the model's own memory, as in fused.py: an edit in place needs no new graph.
        self.shared: dict[str, Any] = {}
        self.read: list[Tensor] = []
        # Weights of products: outside of the graph's message, which would be copied twice.
        self.weights: dict[str, Any] = {}
        x = self._norm("norm", [self.INPUT], fused.norm)
        for number, parts in enumerate(zip(fused.model.encoder.layer, fused.layers, strict=True)):
            x = self._layer(f"{number}.", *parts, x)
        self._width, self._output = len(fused.norm[1]), x

    def session(self) -> Any:
        helper, float32 = self._onnx.helper, self._onnx.TensorProto.FLOAT
        shape = [1, "T", self._width]
        graph = helper.make_graph(
            self._nodes,
            "short texts",
            [helper.make_tensor_value_info(self.INPUT, float32, shape)],
            [helper.make_tensor_value_info(self._output, float32, shape)],
            list(self._constants.values()),
        )
        versions = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, CONTRIB_OPSET)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=IR_VERSION)
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait for the next text by spinning take a whole processor each.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors
        for name, value in self.shared.items():
            options.add_initializer(name, value)
        options.add_external_initializers(list(self.weights), list(self.weights.values()))
        providers = ["CPUExecutionProvider"]
        try:
            return self._runtime.InferenceSession(model.SerializeToString(), options, providers)
        except Exception as error:  # its errors have no class in common
            raise UnsuitedError(str(error)) from error

    def _layer(self, at: str, layer: Any, fused: Any, x: str) -> str:
        attention, dense = layer.attention.self, layer.attention.output.dense
        if getattr(attention, "is_causal", False):
            raise UnsuitedError("a decoder")
        parts = {name: getattr(attention, name) for name in ("query", "key", "value")}
        seen = [self._product(f"{at}{name}", x, part) for name, part in parts.items()]
        biases = torch.cat([_bias(part) for part in parts.values()])
        found = self._node(
            "MultiHeadAttention",
            [*seen, self._constant(f"{at}attention.bias", biases)],
            f"{at}attention",
            CONTRIB,
            num_heads=attention.query.out_features // fused.size,
        )
        found = self._product(f"{at}dense", found, dense)
        x = self._norm(f"{at}norm", [found, x], fused.norms[0], _bias(dense))
        up, down = layer.intermediate.dense, layer.output.dense
        found = self._product(f"{at}up", x, up)
        found = self._activated(f"{at}up", found, _bias(up), fused.activation)
        found = self._product(f"{at}down", found, down)
        return self._norm(f"{at}last norm", [found, x], fused.norms[1], _bias(down))

    def _product(self, name: str, x: str, layer: Any) -> str:
        """The layer's output without its bias."""
        weight = self._weight(f"{name}.weight", weight_of(layer))
        return self._node("FusedMatMul", [x, weight], name, CONTRIB, transB=1)

    def _activated(self, name: str, x: str, bias_N: Tensor, activation: Activation) -> str:
        inputs = [x, self._constant(f"{name}.bias", bias_N)]
        if activation in WITH_BIAS:
            return self._node(WITH_BIAS[activation], inputs, f"{name}.active", CONTRIB)
        x = self._node("Add", inputs, f"{name}.with bias")
        if activation == ("relu", ""):
            return self._node("Relu", [x], f"{name}.active")
        if activation == ("swish", ""):
            return self._node("QuickGelu", [x], f"{name}.active", CONTRIB, alpha=1.0)
        raise UnsuitedError(f"activation {activation}")

    def _norm(self, name: str, inputs: list[str], norm: Norm, bias_D: Tensor | None = None) -> str:
        """The norm of a state, or of a product, its bias and a state."""
        _, weight, bias, eps = norm
        shared = [self._share(f"{name}.weight", weight), self._share(f"{name}.bias", bias)]
        if bias_D is None:
            return self._node("LayerNormalization", inputs + shared, name, epsilon=eps)
        before = self._constant(f"{name}.bias before", bias_D)
        inputs = [*inputs, *shared, before]
        return self._node("SkipLayerNormalization", inputs, name, CONTRIB, epsilon=eps)

    def _node(self, kind: str, inputs: list[str], out: str, domain: str = "", **how: Any) -> str:
        made = self._onnx.helper.make_node(kind, inputs, [out], domain=domain, **how)
        self._nodes.append(made)
        return out

    def _constant(self, name: str, values: Tensor) -> str:
        array = np.ascontiguousarray(values.numpy())
        self._constants[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def _weight(self, name: str, weight_ND: Tensor) -> str:
        """A matrix outside of the message: the model's own memory."""
        array = np.ascontiguousarray(weight_ND.numpy())
        kind = self._onnx.TensorProto
        found = kind(name=name, data_type=kind.FLOAT, dims=array.shape)
        found.data_location = kind.EXTERNAL
        facts = {"location": "model", "offset": "0", "length": str(array.nbytes)}
        for key, value in facts.items():
            found.external_data.add(key=key, value=value)
        self._constants[name] = found
        self.weights[name] = self._runtime.OrtValue.ortvalue_from_numpy(array)
        return name

    def _share(self, name: str, weight: Tensor | None) -> str:
        if weight is None or not weight.is_contiguous() or weight.dtype != torch.float32:
            raise UnsuitedError(name)
        array = weight.detach().numpy()
        self.read.append(weight)
        self.shared[name] = self._runtime.OrtValue.ortvalue_from_numpy(array)
        return self._constant(name, torch.zeros_like(weight))  # its shape; the values are not read


def _bias(layer: Any) -> Tensor:
    bias = layer.bias
    return torch.zeros(layer.out_features) if bias is None else bias.detach()
