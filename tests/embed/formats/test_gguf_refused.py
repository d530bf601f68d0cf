"""GGUF files that are not read: each is refused in one line that names what is wrong."""

import builtins
import struct
import sys
import time

import gguf_files
import pytest
import torch

from polyvec import Embedder
from polyvec.cli import main
from polyvec.embed.formats.gguf import file as gguf_file
from polyvec.embed.formats.gguf import loading
from polyvec.embed.formats.gguf.file import read_gguf
from polyvec.errors import MissingExtraError, ModelError, PolyvecError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    gguf_files.make(path, "llama", "Q8_0", pooling_type=1)
    return path.read_bytes()


def patched(raw: bytes, old: bytes, new: bytes, *, behind: int = 0) -> bytes:
    """The file with one place changed, `behind` bytes after the end of `old`."""
    at = raw.index(old) + len(old) + behind
    return raw[:at] + new + raw[at + len(new) :]


# The metadata of a tensor: name, two dimensions, type and offset.
NORM = b"blk.1.ffn_norm.weight" + struct.pack("<I", 1)
MATRIX = b"blk.1.ffn_down.weight" + struct.pack("<I", 2)
DAMAGE = {
    "empty": (lambda raw: b"", "model.gguf: empty; download it again"),
    "foreign": (lambda raw: b"PK\x03\x04" + raw, r"not a GGUF file \(it starts with b'PK"),
    "text": (lambda raw: b"{}", "not a GGUF file"),
    "git-lfs": (lambda raw: b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
    "magic only": (lambda raw: raw[:4], "truncated or damaged"),
    "cut in the metadata": (lambda raw: raw[:1000], "truncated or damaged.*1,000 bytes"),
    "cut in the table": (
        lambda raw: raw[: raw.index(MATRIX)], "truncated or damaged.*download it again"
    ),
    "cut in the weights": (
        lambda raw: raw[:-1000], "truncated or damaged.*tensor 'output.weight' ends at"
    ),
    "version": (lambda raw: raw[:4] + struct.pack("<I", 9) + raw[8:], "GGUF version 9 is not read"),
    "big-endian": (lambda raw: raw[:4] + struct.pack(">I", 3) + raw[8:], "big-endian"),
    "counts": (lambda raw: raw[:8] + struct.pack("<Q", 1 << 60) + raw[16:], "tensors and"),
    "tensor's type": (
        lambda raw: patched(raw, NORM, struct.pack("<I", 77), behind=8),
        "'blk.1.ffn_norm.weight' has type 77, which is not known",
    ),
    "tensor's offset": (
        lambda raw: patched(raw, NORM, struct.pack("<Q", 7), behind=12), "out of place"
    ),
    "tensor beyond the end": (
        lambda raw: patched(raw, NORM, struct.pack("<Q", 1 << 40), behind=12),
        "truncated or damaged.*'blk.1.ffn_norm.weight' ends at",
    ),
    "tensors overlap": (
        lambda raw: patched(raw, NORM, struct.pack("<Q", 64), behind=12), "out of place"
    ),
    "tensor's shape": (
        lambda raw: patched(raw, NORM, struct.pack("<Q", 128)),
        r"tensor blk.1.ffn_norm.weight has shape \(128,\), the metadata expect \(256,\)",
    ),
    "rank": (
        lambda raw: patched(raw, MATRIX[:-4], struct.pack("<I", 99)), "has 99 dimensions"
    ),
    "value's type": (
        lambda raw: patched(raw, b"llama.block_count", struct.pack("<I", 42)), "has type 42"
    ),
    "a value of another type": (
        lambda raw: patched(raw, b"llama.block_count", struct.pack("<I", 6)),
        "llama.block_count is .*, expected int",
    ),
    "length of a text": (
        lambda raw: patched(
            raw, b"general.architecture", struct.pack("<Q", 1 << 62), behind=4
        ),
        "truncated or damaged",
    ),
    "architecture": (
        lambda raw: patched(raw, b"general.architecture", b"llamb", behind=12),
        "GGUF architecture 'llamb' is not read. Did you mean 'llama'.*safetensors of the original",
    ),
    "not UTF-8": (
        lambda raw: patched(raw, b"general.architecture", b"\xff\xfe", behind=12), "not UTF-8"
    ),
    "key": (
        lambda raw: raw.replace(b"llama.block_count", b"llama.blick_count"),
        r"'llama.blick_count' \('2'\) is not known, and may change the vectors",
    ),
    "a name twice": (
        lambda raw: raw.replace(b"blk.1.ffn_norm.weight", b"blk.0.ffn_norm.weight"),
        "'blk.0.ffn_norm.weight' at offset.*out of place",
    ),
    "a name that is not known": (
        lambda raw: raw.replace(b"blk.1.ffn_norm.weight", b"blk.1.ffn_nerm.weight"),
        r"1 weights are missing, the first blk.1.ffn_norm.weight",
    ),
    "one layer less": (
        lambda raw: patched(raw, b"llama.block_count", struct.pack("<I", 1), behind=4),
        "9 tensors have no place in LlamaForCausalLM, the first 'blk.1",
    ),
    "not a number": (lambda raw: raw[:-600_000] + b"\xff" * 600_000, "holds NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file(name, whole, tmp_path):
    """In one line, that begins with the file."""
    damage, match = DAMAGE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(damage(whole))
    with pytest.raises(ModelError, match=match) as caught:
        Embedder.from_pretrained(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize("name", ["empty", "foreign", "cut in the weights", "tensor's type"])
def test_on_the_command_line(name, whole, tmp_path, capsys):
    """Exit 2, and one line."""
    path = tmp_path / "model.gguf"
    path.write_bytes(DAMAGE[name][0](whole))
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n")
    assert main(["embed", str(texts), "--model", str(path)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"polyvec: {path}")
    assert shown.err.count("\n") == 1


def test_a_good_file_on_the_command_line(whole, tmp_path, capsys):
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n")
    assert main(["embed", str(texts), "--model", str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_every_cut_is_noticed(whole, tmp_path):
    """Of the header, every 97th byte; nothing else than a PolyvecError is raised."""
    end = whole.index(b"blk.1.ffn_norm.weight") + 4000
    path = tmp_path / "model.gguf"
    for size in range(1, end, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(PolyvecError):
            read_gguf(path)


@pytest.mark.medium
def test_any_changed_byte_gives_an_error_of_ours_or_none(whole, tmp_path):
    """Bytes of the header that damage flips: no traceback of another library's."""
    end = whole.index(b"output_norm.weight") + 60
    path = tmp_path / "model.gguf"
    for at in [*range(0, 1200, 7), *range(end - 1500, end, 7)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            loading.read_declared(path)
            loading.load_gguf_config(path)
            loading.load_gguf_tokenizer(path)
        except PolyvecError as error:
            assert "\n" not in str(error)


# transformers reads these.
LEFT_OUT = ("deci", "gemma4")


@pytest.mark.parametrize(
    "arch", ["jina-bert-v2", "nomic-bert-moe", "neo-bert", "deepseek2", "clip", *LEFT_OUT]
)
def test_an_architecture_that_is_not_read(arch, tmp_path):
    gguf_files.write(tmp_path / "m.gguf", arch, {"block_count": 2}, {"a": gguf_files.np.ones(32)})
    with pytest.raises(ModelError, match=f"'{arch}' is not read.*Known: bert, .*qwen3"):
        Embedder.from_pretrained(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"expert_count": 8}, r"'llama.expert_count' \('8'\) is not known"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, "scaling 'longrope'"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "scaling 'yarn'"),
        ({"attention.value_length": 16}, "keys and values of different lengths"),
        ({"general.type": "adapter"}, "a GGUF file of type 'adapter', not a model"),
        ({"rope.dimension_count": 32}, "of each head 32 of 64 numbers are turned"),
        ({"attention.head_count_kv": [2, 1]}, "head_count_kv is .*, expected int"),
        ({"pooling_type": 9}, "pooling_type 9 is not known"),
        ({"embedding_length": 128}, r"token_embd.weight has shape \(.*, 256\), .* 128 columns"),
        ({"attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"attention.head_count_kv": 0}, "llama.attention.head_count_kv is 0"),
        ({"attention.head_count_kv": 3}, "4 heads of queries, 3 of keys"),
        ({"attention.head_count_kv": 4}, r"blk.0.attn_k.weight has shape \(128, 256\)"),
        ({"block_count": 10**9}, "1,000,000,000 layers are announced, of .* tensors"),
        ({"context_length": 0}, "llama.context_length is 0"),
        ({"rope.freq_base": 0.0}, "llama.rope.freq_base is 0"),
        ({"rope.freq_base": -10000.0}, "llama.rope.freq_base is -10000"),
        ({"rope.freq_base": float("nan")}, "llama.rope.freq_base is nan"),
        ({"attention.layer_norm_rms_epsilon": float("inf")}, "epsilon is inf"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 0.0}, "scaling.factor is 0"),
        ({"tokenizer.ggml.merges": "a b"}, r"m.gguf: tokenizer.ggml.merges is 'a b', expected"),
        ({"tokenizer.ggml.pre": "superbpe"}, "pre-tokenizer 'superbpe' is not known"),
        ({"attention.causal": False, "attention.sliding_window": 8}, "without a causal mask"),
    ],
)
def test_settings_that_are_not_read(metadata, match, tmp_path):
    gguf_files.make(tmp_path / "m.gguf", "llama", **metadata)
    with pytest.raises(ModelError, match=match):
        Embedder.from_pretrained(tmp_path / "m.gguf")


def test_a_classifiers_head(tmp_path):
    """bge-reranker under arch bert, of converters that wrote no pooling type."""
    fields = gguf_files.tokenizer_fields("bert")
    model = gguf_files.build("bert", len(fields["tokenizer.ggml.tokens"]))
    tensors = gguf_files.tensors_of(model, "bert") | {"cls.weight": gguf_files.np.ones((256, 256))}
    gguf_files.write(
        tmp_path / "m.gguf", "bert", {**gguf_files.fields_of(model, "bert"), **fields}, tensors
    )
    with pytest.raises(ModelError, match=r"'cls.weight' \(a reranker's or classifier's head\)"):
        Embedder.from_pretrained(tmp_path / "m.gguf")


def test_an_encoder_has_no_language_models_head(tmp_path):
    gguf_files.make(tmp_path / "m.gguf", "bert")
    with pytest.raises(ModelError, match="of bert only the encoder is read"):
        loading.load_gguf_model(tmp_path / "m.gguf", torch.float32, kind="lm")


def test_without_the_package(whole, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "m.gguf").write_bytes(whole)
    gguf_file.quantisations.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'polyvec\[gguf\]'"):
        Embedder.from_pretrained(tmp_path / "m.gguf")


def tokens_of_their_own(count: int) -> list[str]:
    return [f"word{place}" for place in range(count)]


def test_a_pad_token_beyond_the_table(tmp_path):
    """llama.cpp's converter may be given more tokens than the table has rows."""
    fields = gguf_files.bpe_fields()
    tokens = [*fields["tokenizer.ggml.tokens"], *tokens_of_their_own(50)]
    more = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.padding_token_id": len(tokens) - 1,
    }
    gguf_files.make(tmp_path / "m.gguf", "llama", **more)
    with pytest.raises(PolyvecError, match=r"refuses the settings.*[Pp]adding_idx"):
        Embedder.from_pretrained(tmp_path / "m.gguf")


@pytest.mark.medium
def test_a_token_twice_is_found_at_once_in_a_large_vocabulary(tmp_path):
    tokens = tokens_of_their_own(200_000)
    more = {
        "tokenizer.ggml.tokens": [*tokens, "word7"],
        "tokenizer.ggml.token_type": [1] * (len(tokens) + 1),
    }
    gguf_files.make(tmp_path / "m.gguf", "llama", **more)
    start = time.perf_counter()
    with pytest.raises(PolyvecError, match="token 'word7' has two ids"):
        loading.load_gguf_tokenizer(tmp_path / "m.gguf")
    assert time.perf_counter() - start < 30


def test_matrices_of_another_form(tmp_path):
    """Each named, where transformers or torch would stop in the middle."""
    path = tmp_path / "m.gguf"
    ones = gguf_files.np.ones
    fields = gguf_files.bpe_fields()
    plain = {
        "block_count": 1, "embedding_length": 32, "attention.head_count": 4,
        "feed_forward_length": 32, "context_length": 16, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    gguf_files.write(path, "llama", {**plain, **fields}, {"token_embd.weight": ones(32, "float32")})
    with pytest.raises(ModelError, match=r"token_embd.weight has shape \(32,\)"):
        Embedder.from_pretrained(path)
    gguf_files.write(
        path,
        "llama",
        {**plain, **fields},
        {
            "token_embd.weight": ones((len(fields["tokenizer.ggml.tokens"]), 32), "float32"),
            "rope_factors_long.weight": ones(4, "float32"),
        },
    )
    with pytest.raises(ModelError, match=r"no tensor rope_factors_short.weight"):
        Embedder.from_pretrained(path)
