"""A model behind a URL, asked of a real server on this machine that misbehaves on demand."""

import asyncio
import itertools
import re
import socket
import sys
import time
import warnings

import pytest
from openai_server import KEY, OpenAIServer

from polyvec.errors import (
    AnswerWarning,
    GenerationError,
    InputError,
    MissingExtraError,
    SettingsError,
)
from polyvec.llm.loading import load_language_model
from polyvec.llm.server import ServerLanguageModel
from polyvec.llm.server.address import find_key, without_key

pytest.importorskip("openai", reason="needs the extra 'llm'")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "POLYVEC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fast(monkeypatch):
    """Waits between attempts are a hundredth."""
    monkeypatch.setattr("polyvec.llm.server.retries.FIRST_WAIT_S", 0.005)


def model_of(server, **options):
    return ServerLanguageModel(server.url, **{"timeout_s": 5, **options})


def quiet(model, prompts, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnswerWarning)
        return model.generate(prompts, **settings)


def chats(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def test_chats_and_plain_prompts_go_to_their_endpoints():
    with OpenAIServer() as server:
        model = load_language_model(f"{server.url}#tiny")
        found = model.generate([*chats("row 1"), "row 2"], max_new_tokens=7)
        assert [each.text for each in found] == ["answer to row 1", "answer to row 2"]
        paths = [each["path"] for each in server.posts()]
        assert sorted(paths) == ["/v1/chat/completions", "/v1/completions"]
        assert all(each["body"]["max_tokens"] == 7 for each in server.posts())
        assert all(each["body"]["temperature"] == 0 for each in server.posts())
        assert all(each["key"] == "none" for each in server.requests)
        assert model.usage.prompts == 2
        assert (model.usage.prompt_tokens, model.usage.new_tokens) == (4, 8)
        assert model.identity == f"server:{server.url}#tiny"


def test_without_completions_all_plain_prompts_are_chats():
    with OpenAIServer(has_completions=False) as server:
        model = model_of(server)
        found = model.generate([f"row {number}" for number in range(20)])
        assert [each.text for each in found] == [f"answer to row {n}" for n in range(20)]
        paths = [each["path"] for each in server.posts()]
        assert paths.count("/v1/completions") == 1  # by the first prompt, alone
        assert paths[0] == "/v1/completions"
        assert model.dialect.plain == "chat"
        model.generate(["row 21"])
        assert server.posts()[-1]["path"] == "/v1/chat/completions"


def test_the_endpoint_is_chosen():
    with OpenAIServer() as server:
        model_of(server, endpoint="chat").generate(["row 1"])
        assert server.posts()[-1]["path"] == "/v1/chat/completions"
        model = model_of(server, endpoint="completions")
        assert not model.takes_chats
        with pytest.raises(InputError, match="chat cannot go"):
            model.generate(chats("row 1"))
        assert model.identity != model_of(server).identity


def test_mixed_failures_lose_and_double_nothing(fast):
    """Hundreds of prompts: each ends with its own answer or a named error, counts exact."""
    plans = {
        "": (True, 1),
        "! 429": (True, 2),
        "! 500 503": (True, 3),
        "! 502 504 408": (True, 4),
        "! reset": (True, 2),
        "! cut": (True, 2),
        "! malformed html": (True, 3),
        "! html502 empty_body": (True, 3),
        "! error200": (True, 2),
        "! text_type": (True, 1),
        "! late": (True, 1),
        "! 500 ...": ("status 500: overloaded (after 4 attempts)", 4),
        "! cut ...": ("(after 4 attempts)", 4),
        "! malformed ...": ("not JSON", 4),
        "! 400": ("status 400: overloaded", 1),
        "! 422": ("status 422: overloaded", 1),
        "! 401": ("status 401: overloaded", 1),
        "! long": ("exceed the model's context", 1),
        "! too_large": ("exceed the model's context", 1),
        "! \ud83d": ("half a surrogate pair", 0),
        "! array": ("not a JSON object but list", 1),
        "! no_choices": ("no choices", 1),
        "! empty_choices": ("no choices", 1),
        "! wrong_type": ("no choices", 1),
        "! number": ("message.content is not a text but int", 1),
        "! abort": ("finish_reason 'abort'", 1),
        "! later_hour": ("asks to wait 3600 s", 1),
    }
    names = list(plans)
    texts = [f"row {number} {names[number % len(names)]}" for number in range(10 * len(names))]
    with OpenAIServer() as server:
        model = model_of(server, concurrency=16, max_retries=3, give_up_after=None)
        with pytest.warns(AnswerWarning, match=r"160 of 270 answers have problems: 160 error"):
            found = model.generate(chats(*texts))
        for number, (text, completion) in enumerate(zip(texts, found, strict=True)):
            expected, attempts = plans[names[number % len(names)]]
            assert server.attempts.get(text, 0) == attempts, text
            if expected is True:
                assert completion.text == f"answer to row {number}"
            else:
                assert expected in completion.error, text
                assert completion.error.startswith("tiny: ")
                assert "\n" not in completion.error
        assert model.dialect.max_tokens == "max_tokens"
        sent = sum(attempts for _, attempts in plans.values()) * 10
        assert len(server.posts()) == sent
        assert sum(model.retries.values()) == sent - len(texts) + 10
        assert model.usage.problems == {"error": 160}


def test_refused_empty_and_cut_answers_are_named():
    with OpenAIServer() as server:
        rows = [
            "1",
            "2 ! refusal",
            "3 ! filter",
            "4 ! null",
            "5 ! blank",
            "6 ! length",
            "7 ! parts",
        ]
        found = quiet(model_of(server), chats(*rows))
        assert [each.problem for each in found] == [
            *(None, "refused", "refused", "empty", "empty", "cut by max_new_tokens", None)
        ]
        assert found[1].text == "I cannot help with that."
        assert found[6].text == "in parts"


def test_replies_that_never_end_are_timeouts(fast):
    with OpenAIServer() as server:
        model = model_of(server, timeout_s=0.3, max_retries=1)
        began = time.monotonic()
        found = quiet(model, chats("1", "2 ! drip", "3 ! drip ...", "4 ! slow ..."))
        assert time.monotonic() - began < 2
        assert [each.error for each in found] == [
            *(None, None),
            *(["tiny: no reply within 0.3 s (after 2 attempts)"] * 2),
        ]
        assert model.retries == {"timeout": 3}


def test_a_server_that_never_answers_is_one_error_after_one_wait(fast):
    """Its first reply is not waited for again, nor is the list of its models."""
    with OpenAIServer() as server:
        began = time.monotonic()
        model = model_of(server, model="tiny", timeout_s=0.3)
        with pytest.raises(GenerationError, match=r"no reply within 0.3 s; .*timeout_s"):
            model.generate(chats(*(f"{number} ! slow ..." for number in range(50))))
        assert len(server.posts()) == 1
        server.models_after_s = 2.0
        with pytest.raises(GenerationError, match=r"no reply within 0.3 s; .*name one"):
            model_of(server, timeout_s=0.3)
        assert time.monotonic() - began < 2


def test_a_reply_without_end_is_given_up(fast, monkeypatch):
    monkeypatch.setattr("polyvec.llm.server.traffic.MAX_REPLY_BYTES", 100_000)
    with OpenAIServer() as server:
        found = quiet(model_of(server), chats("1", "2 ! flood ..."))
        assert found[1].error == "tiny: the reply is longer than 100,000 bytes"
        assert len(server.posts()) == 2


@pytest.mark.parametrize(
    ("plan", "least_s"), [("later_ms", 0.3), ("later_s", 0.3), ("later_date", 0.5)]
)
def test_the_wait_is_the_servers(fast, plan, least_s):
    """In milliseconds, seconds, or as a date."""
    with OpenAIServer() as server:
        assert model_of(server).generate(chats(f"1 ! {plan}"))[0].text == "answer to 1"
        first, second = (each["time"] for each in server.posts())
        assert least_s <= second - first < 2.5


def test_all_wait_when_one_is_told_to(fast):
    with OpenAIServer() as server:
        model = model_of(server, concurrency=2)
        model.generate(chats("0"))
        model.generate(chats("1 ! later_s", *(f"{number} ! late" for number in range(2, 12))))
        times = sorted(each["time"] for each in server.posts())[1:]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert max(gaps) > 0.2  # nobody asked meanwhile


def test_no_server():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        began = time.monotonic()
        model = ServerLanguageModel(url, "tiny")
        with pytest.raises(
            GenerationError, match=r"no server answers \(connection refused\); start it or check"
        ):
            model.generate(chats(*map(str, range(100))))
        with pytest.raises(
            GenerationError, match=r"no server answers \(connection refused\); start it or check"
        ):
            ServerLanguageModel(url)
    assert time.monotonic() - began < 5


def test_what_concerns_all_is_one_error():
    with OpenAIServer() as server:
        for plan in ("401", "403", "404", "quota"):
            with pytest.raises(GenerationError, match=r"status \d+"):
                model_of(server).generate(
                    chats(*(f"{number} {plan} ! {plan}" for number in range(9)))
                )
        assert len(server.posts()) == 4  # the first prompts, once each
        model = ServerLanguageModel(server.url, "other")
        with pytest.raises(
            GenerationError, match=r"`other` does not exist; check the model's name"
        ):
            model.generate(["1"])
        model = ServerLanguageModel(server.url.removesuffix("/v1") + "/api", "tiny")
        with pytest.raises(GenerationError, match="usually ends in /v1"):
            model.generate(["1"])


def test_a_server_that_dies_is_given_up(fast):
    """The prompts left are not waited for, and none is lost."""
    with OpenAIServer() as server:
        model = model_of(server, max_retries=2, concurrency=4, give_up_after=5)
        found = {}
        for number, completion in model.stream(chats(*map(str, range(300)))):
            assert number not in found
            found[number] = completion
            if len(found) == 10:
                server.die()
    errors = [each.error for each in found.values() if each.error]
    assert len(found) == 300
    sent = [error for error in errors if "not sent" not in error]
    assert all("no server answers (connection refused)" in error for error in sent)
    assert 5 <= len(sent) < 20  # those under way, and any before a late answer
    left = set(errors) - set(sent)
    assert all(re.search(r"not sent, as \d+ prompts in a row .* no server", each) for each in left)


def test_the_only_model_is_taken():
    with OpenAIServer() as server:
        assert model_of(server).model == "tiny"
        server.models = ["b", "a"]
        with pytest.raises(GenerationError, match=r"has 2 models.*Known: a, b"):
            model_of(server)
        server.models = []
        with pytest.raises(GenerationError, match=r"status 500: .*so name one"):
            model_of(server, max_retries=0)


def test_settings_as_sent():
    with OpenAIServer() as server:
        model = model_of(server, extra_body={"top_k": 20}, omit=["seed"])
        model.generate(chats("1"), temperature=0.5, top_p=0.9, seed=3, n=2)
        body = server.posts()[-1]["body"]
        assert {name: body[name] for name in ("temperature", "top_p", "n", "top_k")} == {
            "temperature": 0.5,
            "top_p": 0.9,
            "n": 2,
            "top_k": 20,
        }
        assert "seed" not in body
        model_of(server).generate(chats("1"), temperature=0.5, seed=3)
        assert server.posts()[-1]["body"]["seed"] == 3
        assert "seed" not in model.generate(chats("1")) and "n" not in server.posts()[-1]["body"]


def test_the_newer_name_of_max_tokens_is_learnt_once():
    with OpenAIServer(max_tokens_name="max_completion_tokens") as server:
        found = model_of(server).generate(chats(*map(str, range(10))), max_new_tokens=5)
        assert all(each.error is None for each in found)
        assert len(server.posts()) == 11
        assert server.posts()[-1]["body"]["max_completion_tokens"] == 5
        always = model_of(server, extra_body={"max_tokens": 9})
        with pytest.raises(GenerationError, match="refuses max_tokens=9"):
            always.generate(chats("1"))
        assert len(server.posts()) == 13  # it is not asked for ever
    with OpenAIServer(max_tokens_name="max_tokens") as server:
        refused = model_of(server, extra_body={"max_completion_tokens": 9})
        with pytest.raises(GenerationError, match="refuses max_tokens=256"):
            refused.generate(chats("1"))
        assert len(server.posts()) <= 3  # it is not asked for ever


def test_a_refused_setting_is_one_error():
    with OpenAIServer(refused=("temperature",)) as server:
        with pytest.raises(
            GenerationError, match=r"refuses temperature=0.0.*omit=\['temperature'\]"
        ):
            model_of(server).generate(chats(*map(str, range(10))))
        assert len(server.posts()) == 1
        server.refused = ()
        with pytest.raises(GenerationError, match=r"refuses temperature=0.0: status 422: Unexp"):
            model_of(server).generate(chats("1 ! fastapi", "2"))
        found = quiet(model_of(server), chats("1 ! too_large", "2"))  # of one prompt alone
        assert [each.error is None for each in found] == [False, True]
        server.refused = ("temperature",)
        model = model_of(server, omit=["temperature"])
        assert model.generate(chats("1"))[0].text == "answer to 1"


def test_more_stops_than_the_server_takes():
    with OpenAIServer() as server:
        stop = ["@", "#", "%", "&", " to"]
        (found,) = model_of(server).generate(chats("1 ! length"), stop=stop)
        assert (found.text, found.answer.finish) == ("answer", "stop")
        assert server.posts()[0]["body"]["stop"] == stop[:4]


@pytest.mark.parametrize("how", ["takes", "ignores", "refuses"])
def test_n_answers(how):
    options = {"takes": {}, "ignores": {"takes_n": False}, "refuses": {"refused": ("n",)}}[how]

    def answer(prompt, body):
        return f"{prompt} {body['seed']} {body['place']}"

    with OpenAIServer(answer=answer, **options) as server:
        rows = [str(number) for number in range(5)]
        found = model_of(server).generate(chats(*rows), n=3, temperature=1)
        for row, completion in zip(rows, found, strict=True):
            texts = {each.text for each in completion.answers}
            assert len(texts) == 3 and all(text.startswith(f"{row} ") for text in texts)
        expected = {"takes": 5, "ignores": 5 * 3, "refuses": 1 + 5 * 3}[how]
        assert len(server.posts()) == expected
        assert sum("n" in each["body"] for each in server.posts()) == {"takes": 5}.get(how, 1)


def test_more_answers_than_asked_for():
    with OpenAIServer() as server:
        (found,) = model_of(server, extra_body={"n": 3}).generate(chats("1"))
        assert len(found.answers) == 1


SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer"}},
    "required": ["score"],
    "additionalProperties": False,
}


def test_answers_by_a_schema():
    """The server is told, and its answers are checked all the same."""
    answers = {"1": '{"score": 3}', "2": "{score: 3}", "3": '{"score": "high"}', "4": ""}
    with OpenAIServer(answer=lambda prompt, body: answers[prompt]) as server:
        model = model_of(server)
        found = quiet(model, chats(*answers), schema=SCHEMA)
        assert [each.answer.parsed for each in found] == [{"score": 3}, None, None, None]
        assert [bool(each.answer.error) for each in found] == [False, True, True, True]
        assert model.usage.problems == {"not of the schema": 3}
        sent = server.posts()[0]["body"]["response_format"]
        assert sent["type"] == "json_schema"
        assert sent["json_schema"] == {"name": "answer", "schema": SCHEMA, "strict": True}
        model_of(server, omit=["response_format"]).generate(chats("1"), schema=SCHEMA)
        assert "response_format" not in server.posts()[-1]["body"]
        # OpenAI takes a schema as strict only if all objects are closed, and all keys required.
        for loose in ({"required": []}, {"additionalProperties": True}):
            model_of(server).generate(chats("1"), schema={**SCHEMA, **loose})
            sent = server.posts()[-1]["body"]["response_format"]["json_schema"]
            assert sent["strict"] is False
        server.refused = ("response_format",)
        with pytest.raises(GenerationError, match=r"refuses response_format=\{.*omit="):
            model_of(server).generate(chats("1"), schema=SCHEMA)


def test_a_schema_that_the_server_does_not_take_as_strict_is_sent_as_a_wish():
    with OpenAIServer(takes_strict=False, answer=lambda *_: "{}") as server:
        schema = {**SCHEMA, "properties": {"a": {"type": "string", "pattern": "a"}}}
        quiet(model_of(server), chats("1", "2"), schema={**schema, "required": ["a"]})
        sent = [each["body"]["response_format"]["json_schema"] for each in server.posts()]
        assert [each["strict"] for each in sent] == [True, False, False]


def test_answers_are_drawn_again_until_they_are_of_the_schema():
    def answer(prompt, body):
        return '{"score": 3}' if server.attempts[prompt] >= int(prompt) else "{}"

    with OpenAIServer(answer=answer) as server:
        model = model_of(server, schema_attempts=3)
        found = quiet(model, chats("1", "2", "3", "4"), schema=SCHEMA, temperature=0.5)
        assert [each.problem for each in found] == [None, None, None, "not of the schema"]
        assert server.attempts == {"1": 1, "2": 2, "3": 3, "4": 3}
        assert model.retries == {"schema": 5}
        seeds = [each["body"]["seed"] for each in server.posts() if "4" in str(each["body"])]
        assert len(set(seeds)) == len(seeds)
        # What the rejected ones cost is in the ledger, too: "{}" is one token here.
        assert [each.answer.new_tokens for each in found] == [2, 3, 4, 3]
        assert model.usage.prompt_tokens == 9


def test_the_key_is_nowhere(fast, monkeypatch, capfd):
    monkeypatch.setenv("POLYVEC_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_LOG", "debug")
    with OpenAIServer(key=KEY) as server:
        model = model_of(server, max_retries=1)
        rows = ["1", "2 ! echo_key ...", "3 ! echo_part ...", "4 ! 500", "5 ! echo_choices"]
        with pytest.warns(AnswerWarning) as warned:
            found = model.generate(chats(*rows))
        assert [each.error is None for each in found] == [True, False, False, True, False]
        assert all(each["key"] == KEY for each in server.requests)
        shown = [repr(model), model.identity, repr(found), *(str(each.message) for each in warned)]
        shown += [repr(vars(model.requester).keys())]
        with pytest.raises(GenerationError) as error:
            ServerLanguageModel(server.url, "tiny", api_key=KEY[:-1] + "x").generate(["1"])
        shown += [repr(error.value), repr(error.value.__cause__), repr(error.value.__context__)]
        with pytest.raises(SettingsError) as spaces:
            ServerLanguageModel(server.url, "tiny", api_key=f"{KEY} {KEY}")
        shown += [repr(spaces.value), *capfd.readouterr()]
        for text in shown:
            assert not any(KEY[at : at + 8] in text for at in range(len(KEY) - 8)), text
            assert KEY[-4:] not in text
        assert "[key]" in found[1].error and "[key]" in repr(error.value)


@pytest.mark.parametrize("shown", [KEY, KEY[:-1], KEY[3:15], "sk-se***cdef", "****cdef", "sk-secr"])
def test_parts_of_a_key_are_found(shown):
    text = without_key(f"wrong key: {shown}. Try again", KEY)
    assert text in ("wrong key: [key] Try again", "wrong key: [key]. Try again")
    assert without_key("wrong key: none", "none") == "wrong key: none"


OPENAIS = {
    "OPENAI_API_KEY": KEY,
    "OPENAI_ORG_ID": "our-organisation",
    "OPENAI_PROJECT_ID": "our-project",
    "OPENAI_CUSTOM_HEADERS": "X-Ours: our-header\nauthorization: Bearer ours",
}


def test_what_is_openais_goes_to_no_other_server(monkeypatch):
    """Neither the key nor the client's other variables."""
    for name, value in OPENAIS.items():
        monkeypatch.setenv(name, value)
    with OpenAIServer() as server:
        model_of(server).generate(["1"])
        assert {each["key"] for each in server.requests} == {"none"}
        sent = str([each["headers"] for each in server.requests])
        assert "our" not in sent and KEY not in sent
        server.key = KEY
        with pytest.raises(GenerationError, match=r"401.*check POLYVEC_API_KEY, or pass"):
            model_of(server, model="tiny").generate(["1"])
        monkeypatch.setenv("POLYVEC_API_KEY", KEY)
        assert model_of(server).generate(["1"])[0].error is None
        monkeypatch.delenv("POLYVEC_API_KEY")
        # Who names this server to OpenAI's client sends it all of that.
        monkeypatch.delenv("OPENAI_CUSTOM_HEADERS")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert model_of(server).generate(["1"])[0].error is None
        assert server.requests[-1]["headers"]["openai-project"] == "our-project"
    with pytest.raises(SettingsError, match=r"POLYVEC_API_KEY .*; OPENAI_API_KEY goes only to api"):
        ServerLanguageModel("https://api.example.com/v1", "m")


@pytest.mark.parametrize(
    ("url", "is_sent"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com.example.com/v1", False),
        ("https://notapi.openai.com.example/v1", False),
        ("https://myapi.openai.com/v1", False),
        ("http://localhost:8000/v1", False),
        ("https://proxy.example.com/openai/v1", True),
        ("https://proxy.example.com:8443/openai/v1", False),
        ("http://proxy.example.com/openai/v1", False),
    ],
)
def test_where_openais_key_goes(monkeypatch, url, is_sent):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://proxy.example.com/v1")
    monkeypatch.setenv("POLYVEC_API_KEY", "another")
    assert find_key(url, None) == (KEY if is_sent else "another")
    assert find_key(url, "given") == "given"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://[::1")  # not a URL, so nobody's
    assert find_key("http://localhost:8000/v1", None) == "another"


def test_a_key_that_is_missing():
    with pytest.raises(SettingsError, match="set the environment variable POLYVEC_API_KEY"):
        ServerLanguageModel("https://api.example.com/v1", "m")
    for local in ("localhost", "127.0.0.1", "192.168.1.7", "[::1]", "vllm", "box.local"):
        ServerLanguageModel(f"http://{local}:8000/v1", "m")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "http://[::1/v1",
        "http://user:pass@host/v1",
        "http://host/v1?key=1",
        "http://host:99999",
    ],
)
def test_urls_that_cannot_be(url):
    with pytest.raises(SettingsError, match="URL") as error:
        ServerLanguageModel(url, "m")
    assert "pass@" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"timeout_s": 0},
        {"max_retries": -1},
        {"endpoint": "talk"},
    ],
)
def test_options_that_cannot_be(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        ServerLanguageModel("http://localhost/v1", "m", **options)


def test_no_more_at_once_than_told():
    with OpenAIServer() as server:
        model = model_of(server, concurrency=3)
        model.generate(chats(*(f"{number} ! late" for number in range(12))))
        assert server.most_at_once == 3


def test_requests_a_minute():
    with OpenAIServer() as server:
        model = model_of(server, requests_per_minute=600)
        model.generate(chats(*map(str, range(8))))
        times = [each["time"] for each in server.posts()]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert min(gaps) > 0.03  # as they arrive, which is not quite as they were sent
        assert 0.65 < times[-1] - times[0] < 1.5


def test_tokens_a_minute():
    """A request reckons with max_new_tokens until its answer has said what it used."""
    with OpenAIServer() as server:
        model = model_of(server, tokens_per_minute=6000, concurrency=2)
        model.generate(chats(*map(str, range(8))), max_new_tokens=30)
        times = [each["time"] for each in server.posts()]
        assert 0.2 < times[-1] - times[0] < 1.6  # 8 * 4 tokens take 0.3 s, 7 * 30 take 2.1 s


def test_closing_the_stream_cancels():
    with OpenAIServer() as server:
        model = model_of(server, concurrency=4)
        stream = model.stream(chats("0", *(f"{number} ! late" for number in range(1, 500))))
        next(stream)
        began = time.monotonic()
        stream.close()
        assert time.monotonic() - began < 1
        time.sleep(0.2)
        sent = len(server.posts())
        time.sleep(0.2)
        assert len(server.posts()) == sent < 50


def test_who_stops_reading_stops_asking():
    with OpenAIServer() as server:
        stream = model_of(server, concurrency=4).stream(chats(*map(str, range(100))))
        next(stream)
        time.sleep(0.5)
        assert len(server.posts()) <= 1 + 2 * 4 + 1
        assert len(list(stream)) == 99


def test_inside_a_running_loop():
    """As in a notebook."""
    with OpenAIServer() as server:

        async def cell():
            return model_of(server).generate(["row 1"])

        assert asyncio.run(cell())[0].text == "answer to row 1"


def test_missing_usage_is_said_once():
    with OpenAIServer() as server:
        handler = server.RequestHandlerClass
        plain = handler.reply

        def reply(self, *given, **changes):
            return {
                name: v for name, v in plain(self, *given, **changes).items() if name != "usage"
            }

        server.RequestHandlerClass = type("NoUsage", (handler,), {"reply": reply})
        model = model_of(server)
        with pytest.warns(AnswerWarning, match="does not say how many tokens") as warned:
            model.generate(chats("1", "2", "3"))
        assert len(warned) == 1
        assert model.usage.new_tokens == 0


def test_a_prompt_that_the_server_cut():
    """As Ollama does: it counts only what is left."""
    with OpenAIServer() as server:
        model = model_of(server)
        model.generate(chats("a prompt of words " * 1000))
        with pytest.warns(AnswerWarning, match="counts only 4 tokens in a prompt of 20006 charac"):
            model.generate(chats("a prompt of " + "x" * 19_994))


def test_prices():
    with OpenAIServer() as server:
        model = model_of(server, prompt_price=1e6, new_price=2e6)
        model.generate(["row 1"])
        assert model.usage.cost == 2 * 1 + 4 * 2


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyvec\[llm\]'"):
        ServerLanguageModel("http://localhost/v1", "m")
