"""Templates: what is written, what is pooled, what stays data, and every error."""

import json
import subprocess
import sys

import pytest

from polyvec.embed.inputs import demonstrations, named_templates
from polyvec.embed.inputs.demonstrations import Example, nearest_examples
from polyvec.embed.inputs.named_templates import METAEOL, PROMPTREPS_CHAT, TEMPLATES, repeat
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.templates import Template, from_chat
from polyvec.errors import InputError, MissingExtraError, SettingsError

TEXT, TASK = "A cat.", "Find it"
TOKENS = {"bos": "<s>", "eos": "</s>", "mask": "[MASK]"}
FIELDS = {"domain": "Wikipedia", "text_type": "question", "task_objective": "retrieval"}
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, while "
    "descriptive terms provide additional but less central details. With this in mind , this "
    "sentence : "
)
LLAMA3 = "<s><|start_header_id|>user<|end_header_id|>\n\n"
ENDS = "<|endoftext|><|endoftext|><|endoftext|>"
EIGHT = "<s1><s2><s3><s4><s5><s6><s7><s8>"
NEXT_EIGHT = "<s9><s10><s11><s12><s13><s14><s15><s16>"
COD = "".join(f"<reserved_{i}>" for i in range(12, 20))
ASPECTS = " Use eight words to represent the above text in multiple aspects: "
LLARA_A = '", summarize the above passage within eight words: ' + EIGHT
LLARA_B = '", predict the following passage within eight words: ' + NEXT_EIGHT
ASK = " Use one word to represent the {} in a retrieval task. Make sure your word is in lowercase."

# What a query and a document become, byte for byte, and what of it is pooled (None: all).
SAME = object()


def chat(word, end):
    """PromptReps' question in Llama 3's format, byte for byte."""
    return (
        f"<s><|start_header_id|>system<|end_header_id|>{end}You are an AI assistant that can "
        f"understand human language.<|eot_id|><|start_header_id|>user<|end_header_id|>{end}"
        f'{word}: "A cat.".{ASK.format(word.lower())}<|eot_id|><|start_header_id|>assistant'
        f'<|end_header_id|>{end}The word is: "'
    )


def chatml(word):
    """PromptReps' question in SmolLM2's chat format, byte for byte."""
    return (
        "<|im_start|>system\nYou are an AI assistant that can understand human language."
        "<|im_end|>\n"
        f'<|im_start|>user\n{word}: "A cat.".{ASK.format(word.lower())}<|im_end|>\n'
        '<|im_start|>assistant\nThe word is "'
    )


BYTES: dict[str, tuple] = {
    "promptreps_chatml": (chatml("Query"), None, chatml("Passage"), None),
    "raw": ("A cat.", None, SAME, None),
    "query_passage": ("query: A cat.", None, "passage: A cat.", None),
    "repllama": ("<s>query: A cat.</s>", None, "<s>passage: A cat.</s>", None),
    "gecko": ("task: Find it | query: A cat.", None, "title: none | text: A cat.", None),
    "instruction": ("Find it A cat.", None, "A cat.", None),
    "e5_instruct": ("Instruct: Find it\nQuery: A cat.", None, "A cat.", None),
    "gte_qwen2": ("Instruct: Find it\nQuery: A cat.</s>", None, "A cat.</s>", None),
    "e5_mistral": ("<s>Instruct: Find it\nQuery: A cat.</s>", None, "<s>A cat.</s>", None),
    "nv_embed": ("Instruct: Find it\nQuery: A cat.</s>", "A cat.</s>", "A cat.</s>", None),
    "qwen3_instruct": ("Instruct: Find it\nQuery:A cat.", None, "A cat.", None),
    "llm2vec": (
        "<s>[INST] Find it: A cat. [/INST]",
        "A cat. [/INST]",
        "<s>[INST] A cat. [/INST]",
        "A cat. [/INST]",
    ),
    "llm2vec_llama3": (
        LLAMA3 + "Find it: A cat.<|eot_id|>",
        "A cat.<|eot_id|>",
        LLAMA3 + "A cat.<|eot_id|>",
        "A cat.<|eot_id|>",
    ),
    "llm2vec_training": ("Find it; A cat.", "A cat.", "A cat.", None),
    "l3prune": (
        LLAMA3 + "Find it A cat.<|eot_id|>",
        "A cat.<|eot_id|>",
        LLAMA3 + "A cat.<|eot_id|>",
        "A cat.<|eot_id|>",
    ),
    "mltp": ("<s>Find itA cat.</s>", None, "<s>A cat.</s>", None),
    "ullme": ("Find it\nA cat.", None, "Find it\nCandidate:\nA cat.", None),
    "nv_retriever": ("Find it:  A cat.", None, "passage:  A cat.", None),
    "instructor": (
        "Represent the Wikipedia question for retrieval:A cat.",
        "A cat.",
        SAME,
        "A cat.",
    ),
    "instructor_free": ("Find itA cat.", "A cat.", SAME, "A cat."),
    "gritlm": (
        "<s><|user|>\nFind it\n<|embed|>\nA cat.",
        "A cat.",
        "<s><|embed|>\nA cat.",
        "A cat.",
    ),
    "gritlm_plain": ("<s><|embed|>\nA cat.", "A cat.", SAME, "A cat."),
    "bmretriever": (
        "Find it\nQuery: A cat.</s>",
        None,
        "Represent this passage\npassage: A cat.</s>",
        None,
    ),
    "inbedder": (
        "### Input:\nA cat.\n\n### Instruction:\nFind it\n\n### Response:",
        None,
        SAME,
        None,
    ),
    "sgpt_specb": ("[A cat.]", None, "{A cat.}", None),
    "udever": ("[BOQ]A cat.[EOQ]", None, "[BOD]A cat.[EOD]", None),
    "cpt": ("[SOS_Q]A cat.[EOS_Q]", None, "[SOS_D]A cat.[EOS_D]", None),
    "llama2vec": ('<s>"A cat.' + LLARA_B, NEXT_EIGHT, '<s>"A cat.' + LLARA_A, EIGHT),
    "llama2vec_pretrain": (
        '<s>"A cat.' + LLARA_A + LLARA_B,
        EIGHT + NEXT_EIGHT,
        SAME,
        EIGHT + NEXT_EIGHT,
    ),
    "chatretriever": (
        "<|im_start|>user\nA cat.<|im_end|><|emb_0|><|emb_1|><|emb_2|>",
        "<|emb_0|><|emb_1|><|emb_2|>",
        "<|im_start|>assistant\nA cat.<|im_end|><|emb_0|><|emb_1|><|emb_2|>",
        "<|emb_0|><|emb_1|><|emb_2|>",
    ),
    "chatretriever_qwen": (
        "<|im_start|>user\nA cat.<|im_end|><|extra_0|><|extra_1|><|extra_2|>",
        "<|extra_0|><|extra_1|><|extra_2|>",
        "<|im_start|>assistant\nA cat.<|im_end|><|extra_0|><|extra_1|><|extra_2|>",
        "<|extra_0|><|extra_1|><|extra_2|>",
    ),
    "chatretriever_qwen15": (
        "<|im_start|>user\nA cat.<|im_end|>" + ENDS,
        ENDS,
        "<|im_start|>assistant\nA cat.<|im_end|>" + ENDS,
        ENDS,
    ),
    "debater": ("<s>Find it: A cat.</s>", "</s>", f"<s>A cat.{ASPECTS}{COD}", COD),
    "prompteol": ('This sentence : "A cat." means in one word:"', None, SAME, None),
    "prompteol_icl": (
        'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'
        'This sentence : "A cat." means in one word:"',
        None,
        SAME,
        None,
    ),
    "prompteol_cot": (
        'After thinking step by step , this sentence : "A cat." means in one word:"',
        None,
        SAME,
        None,
    ),
    "prompteol_ke": (KE + '"A cat." means in one word:"', None, SAME, None),
    "sth": ('This sentence : "A cat." means something', None, SAME, None),
    "sum": ('This sentence : "A cat." can be summarized as', None, SAME, None),
    "bellm": ('The representative word for sentence A cat. is:"', None, SAME, None),
    "token_prepending": ('This sentence : <PST> "A cat." means in one word:"', None, SAME, None),
    "token_prepending_cot": (
        'After thinking step by step , this sentence : <PST> "A cat." means in one word:"',
        None,
        SAME,
        None,
    ),
    "token_prepending_ke": (KE + '<PST> "A cat." means in one word:"', None, SAME, None),
    "moee_none": ('"A cat."', None, SAME, None),
    "moee_style": (
        'In one word, describe the style of the following sentence - "A cat." :"',
        None,
        SAME,
        None,
    ),
    "moee_sentiment": (
        "In one word, describe the sentiment of the following sentence "
        '(positive, neutral, or negative) - "A cat." :',
        None,
        SAME,
        None,
    ),
    "moee_tone": (
        'In one word, describe the tone of the following sentence - "A cat." '
        "(e.g., formal, informal, humorous, serious):",
        None,
        SAME,
        None,
    ),
    "moee_intent": (
        "In one word, describe the intent behind the following sentence "
        '(e.g., request, suggestion, command) - "A cat." :',
        None,
        SAME,
        None,
    ),
    "moee_complexity": (
        "In one word, rate the complexity of the following sentence "
        '(simple, moderate, complex) - "A cat." :',
        None,
        SAME,
        None,
    ),
    "moee_subjectivity": (
        "In one word, describe whether the following sentence is subjective or objective - "
        '"A cat." :',
        None,
        SAME,
        None,
    ),
    "moee_language_style": (
        "In one word, describe the language style of the following sentence "
        '(e.g., academic, conversational, literary) - "A cat." :',
        None,
        SAME,
        None,
    ),
    "moee_grammar_structure": (
        "In one word, describe the grammatical structure of the following sentence "
        '(simple, compound, complex) - "A cat." :',
        None,
        SAME,
        None,
    ),
    "promptreps": (
        'Query: "A cat.".' + ASK.format("query") + ' The word is: "',
        None,
        'Passage: "A cat.".' + ASK.format("passage") + ' The word is: "',
        None,
    ),
    **{
        f"promptreps_{name}": (chat("Query", end), None, chat("Passage", end), None)
        for name, end in (("llama3", r"\n\n"), ("chat", "\n\n"))
    },
    "mask_template": ('"A cat." means [MASK].', "[MASK]", SAME, "[MASK]"),
    "question_suffix": (
        "A cat. Question: what can we draw from the above sentence?",
        None,
        SAME,
        None,
    ),
    "e5v": ("A cat.\nSummary above sentence in one word: ", None, SAME, None),
    "echo": (
        "<s>Instruct:Find it,\nQuery:A cat.\nQuery again:A cat.</s>",
        "A cat.</s>",
        "<s>Document:A cat.\nDocument again:A cat.</s>",
        "A cat.</s>",
    ),
    "echo_rewrite": (
        "Rewrite the sentence: A cat., rewritten sentence: A cat.",
        "A cat.",
        SAME,
        "A cat.",
    ),
    "repeat_2": ("A cat.A cat.", "A cat.", SAME, "A cat."),
    "bge_icl": (
        "<s><instruct>Find it\n<query>A cat.\n<response></s>",
        None,
        "<s>A cat.</s>",
        None,
    ),
    "rare": ("<s>Instruct: Find it\nQuery: A cat.</s>", None, "<s>A cat.</s>", None),
}
VARIANTS = ("metaeol", "token_prepending_metaeol")


def written(spans: tuple[Span, ...]) -> str:
    return "".join(span.text for span in spans)


def pooled(spans: tuple[Span, ...]) -> str:
    return "".join(span.text for span in spans if span.pooled)


def fill(template: Template, role: str, **more) -> dict:
    """A value for each slot of that side that has no default, and all of the tokens."""
    values = {"instruction": TASK, **FIELDS}
    needed = set(template.slots(role)) - set(template.defaults)
    return {**TOKENS, **{k: v for k, v in values.items() if k in needed}, **more}


def of(*query: str, pool_prompt: bool = False, **settings) -> Template:
    return Template("mine", query, ("{text}",), pool_prompt=pool_prompt, **settings)


def test_every_template_has_its_bytes_in_this_file():
    assert {*BYTES, *VARIANTS} == set(TEMPLATES)
    assert all(name == template.name for name, template in TEMPLATES.items())
    assert all(template.source for template in TEMPLATES.values())


@pytest.mark.parametrize("name", BYTES)
def test_bytes_and_pooled_spans(name):
    template = TEMPLATES[name]
    query, query_pooled, document, document_pooled = BYTES[name]
    document = query if document is SAME else document
    sides = (("query", query, query_pooled), ("document", document, document_pooled))
    for role, expected, expected_pooled in sides:
        (spans,) = template.render(TEXT, role, **fill(template, role))
        assert written(spans) == expected
        assert pooled(spans) == (expected if expected_pooled is None else expected_pooled)


@pytest.mark.parametrize("name", VARIANTS)
def test_metaeol_reads_a_text_in_eight_ways(name):
    template = TEMPLATES[name]
    pst = "<PST> " if name != "metaeol" else ""
    variants = template.render(TEXT, "document")
    assert template.num_forms() == template.num_forms("document") == len(variants) == 8
    texts = [written(spans) for spans in variants]
    assert len(set(texts)) == 8
    assert texts[0] == (
        "In this task, you're presented with a text excerpt. Your task is to categorize the "
        "excerpt into a broad category such as 'Education', 'Technology', 'Health', 'Business', "
        "'Environment', 'Politics', or 'Culture'. These categories help in organizing content "
        "for better accessibility and targeting. For this task, this sentence : "
        f'{pst}"A cat." should be classified under one general category in one word:"'
    )
    for text, form in zip(texts, METAEOL, strict=True):
        assert text == form.replace('"{text}"', f'{pst}"A cat."')
        assert f'his sentence : {pst}"A cat." ' in text
        assert text.endswith('in one word:"')


def test_metaeol_tasks_are_two_of_each_kind():
    endings = [form.split('"{text}" ')[1].removesuffix('in one word:"') for form in METAEOL]
    assert endings == [
        "should be classified under one general category ",
        "discriminates between opinion and fact ",
        "reflects the sentiment ",
        "conveys the emotion ",
        "means ",
        "means ",
        "encapsulates the key fact ",
        "highlights the primary entity or relation ",
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_user_gives_stays_data(name):
    """SILENT row 32, in each slot of each template."""
    template = TEMPLATES[name]
    nasty = "{text} {{ }} </s> [EOQ] <s1> {#2} {+x} <PST>"
    for role in ("query", "document"):
        given = {k: nasty for k in fill(template, role) if k not in TOKENS}
        if "examples" in template.slots(role):
            given["examples"] = [Example(nasty, nasty)]
        for spans in template.render(nasty, role, **TOKENS, **given):
            data = [span for span in spans if not span.markup]
            assert {span.text for span in data} <= {nasty, *template.defaults.values()}
            assert nasty in [span.text for span in data]
            assert not any(nasty in span.text for span in spans if span.markup)


@pytest.mark.parametrize("name", TEMPLATES)
def test_truncation_may_cut_the_text_and_nothing_else(name):
    template = TEMPLATES[name]
    shown = {"examples": [Example("q", "d")]} if "examples" in template.slots("query") else {}
    for spans in template.render(TEXT, "query", **fill(template, "query"), **shown):
        assert {span.text for span in spans if not span.fixed} == {TEXT}
        assert all(span.fixed for span in spans if span.text != TEXT)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_tokenizer_that_adds_its_own_bos_and_eos_gets_none(name):
    template = TEMPLATES[name]
    bare = {"bos": None, "eos": None}
    with_both = template.render(TEXT, "query", **fill(template, "query"))
    without = template.render(TEXT, "query", **fill(template, "query", **bare))
    assert [written(s) for s in without] == [
        written(s).removeprefix("<s>").removesuffix("</s>") for s in with_both
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_added_tokens_are_markup(name):
    template = TEMPLATES[name]
    markup = ""
    for role in ("query", "document"):
        shown = {"examples": [Example("q", "d")]} if "examples" in template.slots(role) else {}
        for spans in template.render(TEXT, role, **fill(template, role), **shown):
            markup += "".join(span.text for span in spans if span.markup)
    assert all(token in markup for token in template.added_tokens)


def test_text_without_a_role_is_read_as_a_query():
    template = TEMPLATES["query_passage"]
    assert template.render(TEXT) == template.render(TEXT, "query")


def test_braces_signs_and_parts():
    template = of("a {{x}}{bos}{+ b }{!text}{#3}c{text}{+eos}{#0}d", pool_prompt=False)
    (spans,) = template.render("T", bos="<s>", eos="</s>")
    assert spans == (
        Span("a {x}", False, True, True, 0),
        Span("<s>", False, True, True, 0),
        Span(" b ", True, True, True, 0),
        Span("T", False, False, False, 0),
        Span("c", False, True, True, 3),
        Span("T", True, False, False, 3),
        Span("</s>", True, True, True, 3),
        Span("d", False, True, True, 0),
    )


def test_pool_prompt_decides_over_the_makers_words_only():
    form = "{bos}a {!instruction} {text} b{!eos}"
    for flag in (True, False):
        (spans,) = of(form, pool_prompt=flag).render("T", instruction="I", **TOKENS)
        assert [span.pooled for span in spans] == [flag, flag, False, flag, True, flag, False]


def test_llama2vec_suffixes_are_parts_that_masks_can_tell_apart():
    (spans,) = TEMPLATES["llama2vec_pretrain"].render(TEXT, bos="<s>")
    parts = ["".join(s.text for s in spans if s.segment == part) for part in (0, 1, 2)]
    assert parts == ['<s>"A cat.', LLARA_A, LLARA_B]


def test_a_session_is_earlier_turns_and_its_vector_tokens_are_another_part():
    turns = [Example("hi", "hello"), Example("more", "sure")]
    (spans,) = TEMPLATES["chatretriever_qwen"].render(TEXT, "query", examples=turns)
    assert written(spans) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\nsure<|im_end|>\n"
        "<|im_start|>user\nA cat.<|im_end|><|extra_0|><|extra_1|><|extra_2|>"
    )
    assert [span.text for span in spans if span.segment == 1] == [
        "<|extra_0|><|extra_1|><|extra_2|>"
    ]
    assert pooled(spans) == "<|extra_0|><|extra_1|><|extra_2|>"


def test_repeat_pools_the_last_copy_and_numbers_them():
    (spans,) = repeat(3).render("x")
    assert written(spans) == "xxx"
    assert [(s.pooled, s.segment) for s in spans if s.text == "x"] == [
        (False, 0),
        (False, 1),
        (True, 2),
    ]
    assert written(repeat(1).render("x")[0]) == "x"
    with pytest.raises(SettingsError, match="times must be 1 or more, got 0"):
        repeat(0)


def test_bge_icl_examples_repeat_the_instruction_and_end_with_a_blank_line():
    examples = [Example("q1", "d1"), Example("q2", "d2", instruction="Other")]
    (spans,) = TEMPLATES["bge_icl"].render(TEXT, instruction=TASK, examples=examples)
    assert written(spans) == (
        "<instruct>Find it\n<query>q1\n<response>d1\n\n"
        "<instruct>Other\n<query>q2\n<response>d2\n\n"
        "<instruct>Find it\n<query>A cat.\n<response>"
    )


def test_rare_without_examples_is_e5_and_with_them_keeps_their_order():
    examples = [Example("q1", "d1"), Example("q2", "d2")]
    template = TEMPLATES["rare"]
    (spans,) = template.render(TEXT, "query", instruction=TASK, examples=examples)
    assert written(spans) == (
        "Instruct: Find it\nQuery: q1\nPositive Document: d1\n"
        "Query: q2\nPositive Document: d2\nQuery: A cat."
    )
    plain = TEMPLATES["e5_instruct"].render(TEXT, "query", instruction=TASK)
    assert written(template.render(TEXT, instruction=TASK)[0]) == written(plain[0])


def test_a_templates_own_examples_give_way_to_the_calls():
    template = TEMPLATES["prompteol_icl"]
    (none,) = template.render(TEXT, examples=())
    assert written(none) == BYTES["prompteol"][0]
    (own,) = template.render(TEXT, examples=[Example("A man is smoking.", "Smoking")])
    assert written(own).startswith(
        'This sentence : "A man is smoking." means in one word:"Smoking".This'
    )


def test_a_default_fills_its_slot_until_the_call_does():
    (spans,) = TEMPLATES["gecko"].render(TEXT, "document", title="Pets")
    assert written(spans) == "title: Pets | text: A cat."


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("hello", r"'mine' \(query form\): no \{text\} or \{!text\} in 'hello'"),
        ("{txet}", r"'mine' \(query form\): slot 'txet' is not known\. Did you mean 'text'\?"),
        ("{text} {}", r"slot '' is not known\. Known: bos, eos, examples, "),
        ("{text} {", r"'\{' at character 7 is unmatched; write '\{\{'"),
        ("{text}}", r"'\}' at character 6 is unmatched; write '\}\}'"),
        ("a {!text}", r"nothing is pooled in 'a \{!text\}'"),
        ("{text}{eos}{+eos}", r"\{eos\} occurs 2 times"),
    ],
)
def test_a_string_that_cannot_be_read_is_an_error(form, message):
    with pytest.raises(SettingsError, match=message):
        of(form)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"defaults": {"titel": "x"}}, r"'titel' fills no slot\. Did you mean 'title'\?"),
        ({"fields": ("domain",)}, r"'domain' fills no slot"),
        ({"example": "{query}"}, r"an \{examples\} slot needs `example`"),
        ({"examples": (Example("q", "d"),)}, r"examples are set, but no form has"),
        ({"example_separator": "\n"}, r"examples are set, but no form has"),
        ({"added_tokens": ("[X]",)}, r"added token '\[X\]' occurs in none of its forms"),
        ({"pool_prompt": None}, r"pool_prompt must be true or false, not None"),
    ],
)
def test_a_setting_that_can_do_nothing_is_an_error(settings, message):
    with pytest.raises(SettingsError, match=message):
        of("{title}{text}", **settings)


def test_more_errors_of_settings():
    with pytest.raises(SettingsError, match=r"\(query form\): expected at least one string"):
        of()
    with pytest.raises(SettingsError, match=r"\(example\): slot 'text' is not known"):
        of("{examples}{text}", example="{text}")
    with pytest.raises(SettingsError, match=r"an \{examples\} slot needs `example`"):
        of("{examples}{text}")


@pytest.mark.parametrize(
    ("name", "role", "given", "message"),
    [
        ("e5_instruct", "query", {}, r"'e5_instruct' \(query form\) needs 'instruction'"),
        ("e5_instruct", "document", {"instruction": "x"}, r"\(document form\) has no slot for"),
        ("instructor", None, {"domain": "x"}, r"needs 'text_type': give text_type='...'"),
        ("gecko", "document", {"titel": "x"}, r"'titel'\. Did you mean 'title'\? Known: text"),
        ("raw", None, {"examples": [Example("q", "d")]}, r"no slot for 'examples'\. Known: text"),
        ("raw", "passage", {}, r"role 'passage' is not known\. Known: document, query"),
        ("mask_template", None, {}, r"needs a mask token, the tokenizer has none"),
        (
            "rare",
            None,
            {"instruction": "x", "examples": [Example("q", "d", "I")]},
            r"an example has an instruction, for which its format",
        ),
    ],
)
def test_a_value_too_few_or_too_many_is_an_error(name, role, given, message):
    with pytest.raises(InputError, match=message):
        TEMPLATES[name].render(TEXT, role, **given)


def test_an_example_format_with_an_instruction_needs_one():
    template = of("{examples}{text}", example="{instruction}: {query} ")
    with pytest.raises(InputError, match="an example needs an instruction"):
        template.render(TEXT, examples=[Example("q", "d")])


def chatml(messages: list[dict[str, str]]) -> str:
    """As a tokenizer's chat template writes messages whose last one is to be continued."""
    *turns, last = messages
    body = "".join(f"<|{m['role']}|>{{{m['content'].strip()}}}<|end|>" for m in turns)
    return "<s>" + body + f"<|{last['role']}|>{last['content'].strip()}"


def test_promptreps_in_a_chat_format_with_one_bos():
    chat = PROMPTREPS_CHAT
    template = from_chat(
        "mine", chat["query"], chat["document"], chatml, pool_prompt=True, bos="<s>"
    )
    (spans,) = template.render(TEXT, "document", bos="<s>")
    expected = (
        "<s><|system|>{You are an AI assistant that can understand human language.}<|end|>"
        '<|user|>{Passage: "A cat.". Use one word to represent the passage in a retrieval task. '
        'Make sure your word is in lowercase.}<|end|><|assistant|>The word is "'
    )
    assert written(spans) == expected
    assert written(template.render(TEXT, "document")[0]) == expected.removeprefix("<s>")
    assert written(template.render(TEXT, "query")[0]).count('Query: "A cat.".') == 1


def test_a_chat_format_that_loses_the_text_is_an_error():
    with pytest.raises(SettingsError, match=r"\{text\} occurs 0 times in the chat format"):
        from_chat("mine", [("user", "{text}")], [], lambda m: "hello", pool_prompt=True)


POOL = [
    Example("how do cats sleep", "d0"),
    Example("capital of France", "d1"),
    Example("where do cats sleep at night", "d2"),
    Example("当たり", "d3"),
]


def test_nearest_examples_end_with_the_most_similar_one():
    pytest.importorskip("bm25s")
    nearest = nearest_examples("do cats sleep at night", POOL, 3)
    assert [example.document for example in nearest] == ["d1", "d0", "d2"]
    assert nearest_examples("cats", POOL, 0) == ()
    assert len(nearest_examples("cats", POOL, 9)) == len(POOL)


def test_the_query_itself_is_no_demonstration():
    pytest.importorskip("bm25s")
    assert "d1" not in [e.document for e in nearest_examples("capital of France ", POOL, 4)]


def test_texts_that_share_no_word_keep_the_pools_order():
    pytest.importorskip("bm25s")
    for query in ("zebra", "?!", ""):
        assert [e.document for e in nearest_examples(query, POOL, 2)] == ["d1", "d0"]
    assert nearest_examples("cats", [Example("?", "d")], 1) == (Example("?", "d"),)
    assert nearest_examples("cats", [], 1) == ()


def test_nearest_examples_errors(monkeypatch):
    with pytest.raises(InputError, match="k must be 0 or more, got -1"):
        nearest_examples("x", POOL, -1)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    demonstrations._pool.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'polyvec\[index\]'"):
        nearest_examples("x", POOL, 1)


def test_reading_the_table_loads_no_torch():
    code = (
        f"import sys, json; import {named_templates.__name__}; "
        "print(json.dumps([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def test_white_space_around_a_stripped_form_is_dropped():
    form = "{bos}query:  {text} {instruction}{eos}"
    settings = {"pool_prompt": True, "defaults": {"instruction": ""}}
    stripped = Template("t", (form,), (form,), strip=True, **settings)
    kept = Template("t", (form,), (form,), **settings)
    for instruction, expected in (("", "<s>query:  a cat</s>"), (" b ", "<s>query:  a cat b</s>")):
        (spans,) = stripped.render(" a cat\n", instruction=instruction, **TOKENS)
        assert written(spans) == expected
    assert written(kept.render("a", **TOKENS)[0]) == "<s>query:  a </s>"
