"""Which GGUF file is meant, and what belongs together: parts, links, files that were replaced."""

import os

import gguf_files
import numpy as np
import pytest
from gguf_files import TEXTS, make, make_split

from polyvec import Embedder
from polyvec.embed.formats import sources
from polyvec.errors import ModelError


def test_a_part_of_another_model_is_refused(tmp_path):
    make(make_split(tmp_path)[1], "llama")
    with pytest.raises(ModelError, match=r"part of another model: tensor 'token_embd.weight' is"):
        Embedder.from_pretrained(tmp_path)


@pytest.mark.parametrize("place", [0, 1])
def test_a_part_under_the_name_of_another_is_refused(place, tmp_path):
    parts = make_split(tmp_path)
    parts[place].write_bytes(parts[1 - place].read_bytes())
    match = f"split.no {1 - place} of 2 by its metadata, not {place} of 2"
    with pytest.raises(ModelError, match=match):
        Embedder.from_pretrained(tmp_path)


def test_tensors_that_no_part_has_are_counted(tmp_path):
    parts = make_split(tmp_path)
    tensors = list(gguf_files.tensors_of(gguf_files.build("llama", 420), "llama").items())
    values = {"split.no": 1, "split.count": 2}
    gguf_files.write(parts[1], "llama", values, dict(tensors[1::2][:-1]))
    match = f"{len(tensors) - 1} tensors in its 2 parts, {len(tensors)} are announced"
    with pytest.raises(ModelError, match=match):
        Embedder.from_pretrained(tmp_path)


def test_parts_under_links_as_in_the_hubs_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    for number, part in enumerate(make_split(tmp_path)):
        part.rename(tmp_path / "blobs" / str(number))
        part.symlink_to(tmp_path / "blobs" / str(number))
    assert Embedder.from_pretrained(tmp_path).encode(TEXTS).shape == (4, 256)
    with pytest.raises(ModelError, match=r"part 2 of 2, named otherwise than NAME-00002-of-00002"):
        Embedder.from_pretrained(tmp_path / "blobs" / "1")


def test_a_folder_with_two_split_models(tmp_path):
    make_split(tmp_path)
    make_split(tmp_path, "z")
    match = r"2 models in GGUF \(m-00001-of-00002.gguf, z-00001-of-00002.gguf\); give one"
    with pytest.raises(ModelError, match=match):
        sources.model_folder(tmp_path)


def test_capitals_in_the_names_of_a_folder(tmp_path):
    make(tmp_path / "MODEL-F32.GGUF", "bert", pooling_type=1)
    make(tmp_path / "MMPROJ-model.gguf", "bert")
    assert sources.model_folder(tmp_path) == tmp_path / "MODEL-F32.GGUF"


def test_a_file_in_another_ones_place_with_its_size_and_time(tmp_path):
    """What was read of the old one, such as settings, is not kept."""
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    make(old, "llama", pooling_type=1, **{"rope.freq_base": 10000.0})
    make(new, "llama", pooling_type=1, **{"rope.freq_base": 50.0})
    assert old.stat().st_size == new.stat().st_size
    expected = Embedder.from_pretrained(new).encode(TEXTS)
    before = Embedder.from_pretrained(old).encode(TEXTS)
    assert np.abs(before - expected).max() > 1e-3
    os.utime(new, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
    new.replace(old)
    np.testing.assert_array_equal(Embedder.from_pretrained(old).encode(TEXTS), expected)
