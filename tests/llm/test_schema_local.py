"""A local model's answers by a schema: nano-lm in seconds, SmolLM2 a hundred times."""

import jsonschema
import pytest
from schemas import SCHEMAS, record

from polyvec.errors import AnswerWarning, GenerationError, SettingsError
from polyvec.llm.cache import CachedLanguageModel
from polyvec.llm.local import LocalLanguageModel

PROMPTS = ["A small JSON record:", "Once upon a time there was", "Paris. The answer is"]
DRAWN = {"temperature": 1.0, "n": 2, "seed": 3}


@pytest.fixture(scope="module")
def nano():
    return LocalLanguageModel.load("polyvec/nano-lm")


@pytest.mark.parametrize("settings", [{}, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize(
    "name",
    ["any of", "a string", "number range", pytest.param("record", marks=pytest.mark.medium)],
)
def test_answers_are_of_the_schema(nano, name, settings):
    schema = SCHEMAS[name]
    for completion in nano.generate(PROMPTS, max_new_tokens=128, schema=schema, **settings):
        assert len(completion.answers) == settings.get("n", 1)
        for answer in completion.answers:
            assert answer.finish == "stop" and answer.error is None
            jsonschema.validate(answer.parsed, schema)


@pytest.mark.medium
def test_an_answer_is_the_same_in_any_batch(nano):
    schema = SCHEMAS["optional keys"]
    together = nano.generate(PROMPTS, max_new_tokens=128, schema=schema, **DRAWN)
    alone = [nano.generate([p], max_new_tokens=128, schema=schema, **DRAWN)[0] for p in PROMPTS]
    assert alone == together


def test_a_cut_answer_has_no_value(nano):
    with pytest.warns(AnswerWarning, match="1 cut by max_new_tokens"):
        (found,) = nano.generate(PROMPTS[:1], max_new_tokens=5, schema=SCHEMAS["record"])
    assert found.answer.finish == "length" and found.answer.parsed is None
    assert found.answer.error == "cut by max_new_tokens after 5 tokens: not complete"
    assert found.text  # what was written


def test_a_bad_schema_is_refused_before_anything_is_written(nano):
    for schema, error in (({"type": "foo"}, SettingsError), ({"not": {}}, GenerationError)):
        with pytest.raises(error, match=r"^schema: "):
            nano.generate(PROMPTS, schema=schema)


def test_a_value_survives_the_cache(nano, tmp_path):
    asked = {"max_new_tokens": 128, "schema": SCHEMAS["optional keys"]}
    first = CachedLanguageModel(nano, tmp_path).generate(PROMPTS, **asked)
    again = CachedLanguageModel(nano, tmp_path).generate(PROMPTS, **asked)
    assert [each.cached for each in again] == [True] * 3
    assert [each.answer for each in again] == [each.answer for each in first]


TEMPLATE = (
    "Write a JSON record with a search query about {topic} ('query'), a sentence that answers it "
    "('positive'), a sentence that is close but does not ('negative'), 'difficulty' (easy, medium "
    "or hard) and 'grade', a whole number from 1 to 5."
)
SIDES = ("the history", "the price", "the health", "the laws", "the sound")
THINGS = (
    *(
        "bees",
        "bridges",
        "coffee",
        "comets",
        "dams",
        "drums",
        "eels",
        "ferries",
        "glaciers",
        "gold",
    ),
    *("honey", "ink", "jazz", "kites", "lamps", "maps", "owls", "rice", "salt", "tea"),
)
TOPICS = [f"{side} of {thing}" for side in SIDES for thing in THINGS]
RECORD = record(
    query={"type": "string", "minLength": 3, "maxLength": 40},
    positive={"type": "string", "minLength": 3, "maxLength": 60},
    negative={"type": "string", "minLength": 3, "maxLength": 60},
    difficulty={"enum": ["easy", "medium", "hard"]},
    grade={"type": "integer", "minimum": 1, "maximum": 5},
)


def chats(count):
    return [[{"role": "user", "content": TEMPLATE.format(topic=each)}] for each in TOPICS[:count]]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}], ids=["greedy", "drawn"])
def test_a_hundred_of_a_hundred_answers_of_smollm2_are_of_the_schema(smollm2, settings):
    model = LocalLanguageModel.load(smollm2)
    found = model.generate(chats(100), max_new_tokens=300, schema=RECORD, **settings)
    assert len(found) == 100
    for completion in found:
        assert completion.answer.finish == "stop", completion.answer
        jsonschema.validate(completion.answer.parsed, RECORD)
