"""Late chunking: one chunk is the ordinary vector, and a chunk knows what is around it."""

import numpy as np
import pytest
import torch
from transformers import BertModel

from polyvec import Embedder, MultiVectorEmbedder
from polyvec.data.chunking import load_chunker
from polyvec.data.texts import Record
from polyvec.embed.compose import compose
from polyvec.embed.late_chunking import _windows, late_chunk_vectors
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import InputError, ModelError

TEXTS = [
    "Berlin is the capital of Germany. It has 3.8 million people. The city lies on the Spree.",
    "One line\r\nand another, with 👩‍👩‍👧 and 漢字.",
    "cat",
]


def whole(texts):
    return [[(0, len(text))] for text in texts]


@pytest.mark.parametrize("pooling", ["mean", "max", "mean_sqrt_len", "weighted_mean_text"])
def test_one_chunk_of_all_the_text_is_the_ordinary_vector(minilm_folder, pooling):
    embedder = Embedder.from_pretrained(minilm_folder, pooling=pooling)
    found = late_chunk_vectors(embedder, TEXTS, whole(TEXTS))
    np.testing.assert_allclose(np.concatenate(found), embedder.encode_document(TEXTS), atol=2e-5)


@pytest.mark.parametrize("pool_prompt", [True, False])
def test_with_a_prompt_too(minilm, pool_prompt):
    parts = minilm._parts().keywords()
    embedder = Embedder.from_parts(**{**parts, "pool_prompt": pool_prompt})
    embedder.prompts = {"document": "passage: "}
    embedder.truncate_dim = 64
    found = late_chunk_vectors(embedder, TEXTS, whole(TEXTS))
    np.testing.assert_allclose(np.concatenate(found), embedder.encode_document(TEXTS), atol=2e-5)


def test_a_causal_models_last_state(minilm):
    embedder = compose(EmbedderSettings("polyvec/nano-lm", pooling="last"))
    found = late_chunk_vectors(embedder, TEXTS[:1], whole(TEXTS[:1]))
    np.testing.assert_allclose(found[0], embedder.encode_document(TEXTS[:1]), atol=2e-5)
    # What comes behind a chunk is not read.
    text = TEXTS[0]
    first, _ = late_chunk_vectors(embedder, [text], [[(0, 33), (34, len(text))]])[0]
    alone = late_chunk_vectors(embedder, [text[:33]], [[(0, 33)]])[0][0]
    np.testing.assert_allclose(first, alone, atol=2e-5)


def test_a_chunks_vector_changes_with_what_is_around_it(minilm):
    chunk = "It has 3.8 million people."
    found = []
    for city in ("Berlin is the capital of Germany. ", "Lima is the capital of Peru. "):
        text = city + chunk
        found.append(late_chunk_vectors(minilm, [text], [[(len(city), len(text))]])[0][0])
    alone = minilm.encode_document(chunk)
    berlin, lima = minilm.encode_query(["population of Berlin", "population of Lima"])
    assert np.abs(found[0] - found[1]).max() > 1e-2
    assert np.abs(found[0] - alone).max() > 1e-2
    assert berlin @ found[0] > berlin @ found[1] and lima @ found[1] > lima @ found[0]


def test_a_long_document_is_read_in_windows(minilm_folder):
    """Each token's state is that of the window which owns it, as computed one by one."""
    text = " ".join(f"word{n} is here." for n in range(60))
    embedder = Embedder.from_pretrained(minilm_folder)
    embedder.max_seq_length = 50
    chunker = load_chunker({"kind": "sentence", "size": 20}, embedder.text_tokenizer.spans)
    ranges = [(each.start, each.end) for each in chunker.chunks(Record("d", text))]
    found = late_chunk_vectors(embedder, [text], [ranges], overlap=16)[0]
    ids, spans = embedder.text_tokenizer.ids_and_spans(text)
    windows, owned = _windows(len(ids), 48, 16)
    assert len(windows) > 5 and all(end - start == 48 for start, end in windows)
    assert owned[0][0] == 0 and owned[-1][1] == len(ids)
    bert = BertModel.from_pretrained(minilm_folder).eval()
    states = np.zeros((len(ids), 384), np.float32)
    for (start, end), (low, high) in zip(windows, owned, strict=True):
        assert start <= low < high <= end
        inputs = torch.tensor([[101, *ids[start:end].tolist(), 102]])
        with torch.no_grad():
            out = bert(input_ids=inputs).last_hidden_state[0, 1:-1]
        states[low:high] = out[low - start : high - start].numpy()
    for place, (start, end) in enumerate(ranges[1:-1], start=1):
        rows = [row for row, (_, stop) in enumerate(spans) if start < stop <= end]
        mean = states[rows].mean(axis=0)
        np.testing.assert_allclose(found[place], mean / np.linalg.norm(mean), atol=2e-4)


def test_neighbours_in_a_call_change_nothing(minilm):
    ranges = [[(0, 33), (34, 60)], [(0, 8)], [(0, 3)]]
    together = late_chunk_vectors(minilm, TEXTS, ranges)
    for text, own, found in zip(TEXTS, ranges, together, strict=True):
        alone = late_chunk_vectors(minilm, [text], [own], batch_tokens=16)[0]
        np.testing.assert_allclose(found, alone, atol=2e-5)
    assert late_chunk_vectors(minilm, ["cat"], [[]])[0].shape == (0, 384)


def test_what_makes_no_sense_is_refused(minilm, minilm_folder):
    with pytest.raises(InputError, match=r"documents\[0\]: the chunk \(3, 4\) has no token"):
        late_chunk_vectors(minilm, ["cat dog"], [[(3, 4)]])
    with pytest.raises(InputError, match="1 lists of chunks for 2 texts"):
        late_chunk_vectors(minilm, ["a", "b"], [[(0, 1)]])
    with pytest.raises(InputError, match="overlap is 999"):
        late_chunk_vectors(minilm, ["cat " * 400], [[(0, 3)]], overlap=999)
    with pytest.raises(InputError, match="MultiVectorEmbedder has no states"):
        late_chunk_vectors(MultiVectorEmbedder.__new__(MultiVectorEmbedder), [], [])
    first = Embedder.from_pretrained(minilm_folder, pooling="first")
    with pytest.raises(ModelError, match="pools by first, which a stretch"):
        late_chunk_vectors(first, ["cat"], [[(0, 3)]])
    last = Embedder.from_pretrained(minilm_folder, pooling="last")
    with pytest.raises(ModelError, match="state of a token behind the text"):
        late_chunk_vectors(last, ["cat"], [[(0, 3)]])
    with pytest.raises(ModelError, match="template"):
        late_chunk_vectors(
            compose(EmbedderSettings("polyvec/nano-lm", template="prompteol")), ["cat"], [[(0, 3)]]
        )
