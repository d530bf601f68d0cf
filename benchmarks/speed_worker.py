"""One embedder of speed_cpu.py in a process of its own: a question in, a line of figures out.

It imports no more than its library, so a peer may live in another environment.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

RATE_TOKENS, RATE_S = 1024, 0.5


def polyvec(options: argparse.Namespace, **more: str) -> Any:
    from polyvec import Embedder

    pooling = {"pooling": options.pooling} if options.pooling else {}
    how = {"dtype": "float32", **pooling, **more}
    return Embedder.from_pretrained(options.model, device="cpu", **how)


def polyvec_fast(options: argparse.Namespace) -> Any:
    return polyvec(options, dtype="fast")


def polyvec_onnx(options: argparse.Namespace) -> Any:
    return polyvec(options, backend="onnx")


def sentence_transformers(options: argparse.Namespace) -> Any:
    from sentence_transformers import SentenceTransformer

    if options.pooling:
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        body = Transformer(
            options.model,
            # Else the peer puts each text into the tokenizer's chat format.
            modality_config={
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            module_output_name="token_embeddings",
        )
        if body.tokenizer.pad_token is None:
            body.tokenizer.pad_token = body.tokenizer.eos_token
        parts = [body, Pooling(body.get_embedding_dimension(), options.pooling)]
        # The weights are stored in bfloat16, and it would compute in that.
        return SentenceTransformer(modules=parts, device="cpu").float()
    return SentenceTransformer(options.model, device="cpu")


def onnx(options: argparse.Namespace) -> Any:
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = options.threads
    settings = {"session_options": session, "provider": "CPUExecutionProvider"}
    return SentenceTransformer(options.model, device="cpu", backend="onnx", model_kwargs=settings)


def openvino(options: argparse.Namespace, precision: str = "f32") -> Any:
    from sentence_transformers import SentenceTransformer

    # Its default is bfloat16 where the processor has it.
    own = {"INFERENCE_NUM_THREADS": options.threads, "INFERENCE_PRECISION_HINT": precision}
    settings = {"ov_config": own}
    return SentenceTransformer(
        options.model, device="cpu", backend="openvino", model_kwargs=settings
    )


def openvino_bfloat16(options: argparse.Namespace) -> Any:
    return openvino(options, "bf16")


class FastEmbed:
    """fastembed's model under `encode`; `max_seq_length` is its tokenizer's own limit."""

    def __init__(self, options: argparse.Namespace) -> None:
        from fastembed import TextEmbedding

        name = "sentence-transformers/all-MiniLM-L6-v2"
        self._model = TextEmbedding(
            name, specific_model_path=options.model, threads=options.threads
        )
        self.max_seq_length = None

    def encode(self, texts: Any, batch_size: int = 256, **_: Any) -> np.ndarray:
        single = isinstance(texts, str)
        self._model.model.tokenizer.enable_truncation(self.max_seq_length)
        found = np.array(list(self._model.embed([texts] if single else texts, batch_size)))
        return found[0] if single else found


class Infinity:
    """infinity-emb's engine under `encode`; it reads as many tokens as the model's own settings."""

    def __init__(self, options: argparse.Namespace) -> None:
        from infinity_emb import EngineArgs, SyncEngineArray

        self._how = {
            "model_name_or_path": options.model, "engine": "torch", "device": "cpu",
            "dtype": "float32", "bettertransformer": False, "model_warmup": False,
        }  # fmt: skip
        self._args, self._array = EngineArgs, SyncEngineArray
        self._engines: dict[int, Any] = {}
        self.max_seq_length = None

    def encode(self, texts: Any, batch_size: int = 32, **_: Any) -> np.ndarray:
        if batch_size not in self._engines:
            args = self._args(**self._how, batch_size=batch_size)
            self._engines[batch_size] = self._array.from_args([args])
        single = isinstance(texts, str)
        name = self._how["model_name_or_path"]
        future = self._engines[batch_size].embed(
            model=name, sentences=[texts] if single else list(texts)
        )
        found = np.array(future.result()[0])
        return found[0] if single else found


LIBRARIES: dict[str, Callable[[argparse.Namespace], Any]] = {
    "polyvec": polyvec,
    "polyvec-fast": polyvec_fast,
    "polyvec-onnx": polyvec_onnx,
    "sentence-transformers": sentence_transformers,
    "onnx": onnx,
    "onnx-int8": onnx,
    "openvino": openvino,
    "openvino-int8": openvino,
    "openvino-bfloat16": openvino_bfloat16,
    "fastembed": FastEmbed,
    "infinity": Infinity,
}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds and CPU seconds, of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def matmul_rate(width: int, inner: int) -> float:
    """GFLOP a CPU-second of torch's product of these sizes, over half a CPU-second.

    The best of some single products is more than a processor gives for longer than a moment.
    """
    x, weight = torch.randn(RATE_TOKENS, width), torch.randn(inner, width)
    number, spent = 0, 0.0
    with torch.inference_mode():
        torch.nn.functional.linear(x, weight)
        while spent < RATE_S:
            spent += timed(lambda: torch.nn.functional.linear(x, weight))[1]
            number += 1
    return 2 * RATE_TOKENS * width * inner * number / spent / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("model")
    parser.add_argument("texts", help="JSON file with lists of texts, by name")
    parser.add_argument("--pooling")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    texts = json.loads(Path(options.texts).read_text(encoding="utf-8"))
    model = LIBRARIES[options.library](options)
    model.max_seq_length = texts["max_seq_length"]
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    for line in sys.stdin:
        asked = json.loads(line)
        size = {} if asked.get("batch_size") is None else {"batch_size": asked["batch_size"]}

        def encode(given: Any, size: dict[str, int] = size) -> np.ndarray:
            found: np.ndarray = model.encode(given, show_progress_bar=False, **size)
            return found

        if asked["do"] == "vectors":
            answer: Any = encode(texts["checked"]).tolist()
        elif asked["do"] == "batch":
            answer = timed(lambda: encode(texts["mixed"]))
        elif asked["do"] == "queries":
            answer = [timed(lambda each=each: encode(each)) for each in texts["queries"]]
        else:
            answer = matmul_rate(*asked["sizes"])
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
