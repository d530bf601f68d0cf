"""Options and inputs that an adapter refuses, whichever framework asks."""

import pytest

from polyvec.errors import InputError
from polyvec.integrations.texts import document_vectors, query_vector


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batchsize": 3}, "no option 'batchsize'. Did you mean 'batch_size'"),
        ({"output_value": "token_embeddings"}, "'output_value' of encode: vectors come out"),
        ({"convert_to_numpy": False}, "'convert_to_numpy' of encode"),
    ],
)
def test_options_that_give_no_vectors_are_refused(options, match):
    with pytest.raises(InputError, match=match):
        query_vector(None, "a cat", options)
    with pytest.raises(InputError, match=match):
        document_vectors(None, ["a cat"], options)


@pytest.mark.parametrize("texts", [None, 5])
def test_documents_are_a_list(texts):
    with pytest.raises(InputError, match="expected a list of texts"):
        document_vectors(None, texts, {})
