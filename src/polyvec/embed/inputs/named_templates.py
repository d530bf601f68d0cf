"""The input formats of the literature, by name, byte for byte.

`source` says whose they are and where they were read; "ours" marks what is published nowhere.
Two things are not part of a template: the sentence clean-up of the EOL family's evaluations (a
full stop added, `"` turned into `'`), and the space that sentencepiece puts in front of each
piece in repositories that tokenise piece by piece.
"""

from dataclasses import replace

from polyvec.embed.inputs.demonstrations import Example
from polyvec.embed.inputs.encoder_templates import ENCODER_TEMPLATES
from polyvec.embed.inputs.templates import Template
from polyvec.errors import SettingsError
from polyvec.registry import Registry

EOL = 'This sentence : "{text}" means in one word:"'
COT = 'After thinking step by step , this sentence : "{text}" means in one word:"'
KNOWLEDGE = (
    "The essence of a sentence is often captured by its main subjects and actions, while "
    "descriptive terms provide additional but less central details. With this in mind , this "
    'sentence : "{text}" means in one word:"'
)
METAEOL = (
    "In this task, you're presented with a text excerpt. Your task is to categorize the excerpt "
    "into a broad category such as 'Education', 'Technology', 'Health', 'Business', "
    "'Environment', 'Politics', or 'Culture'. These categories help in organizing content for "
    'better accessibility and targeting. For this task, this sentence : "{text}" should be '
    'classified under one general category in one word:"',
    "In this task, you're given a statement and you need to determine whether it's presenting an "
    "'Opinion' or a 'Fact'. This distinction is vital for information verification, educational "
    'purposes, and content analysis. For this task, this sentence : "{text}" discriminates '
    'between opinion and fact in one word:"',
    "In this task, you're given a review from an online platform. Your task is to generate a "
    "rating for the product based on the review on a scale of 1-5, where 1 means 'extremely "
    "negative' and 5 means 'extremely positive'. For this task, this sentence : \"{text}\" "
    'reflects the sentiment in one word:"',
    "In this task, you're reading a personal diary entry. Your task is to identify the "
    "predominant emotion expressed, such as joy, sadness, anger, fear, or love. For this task, "
    'this sentence : "{text}" conveys the emotion in one word:"',
    "In this task, you're presented with two sentences. Your task is to assess whether the "
    "sentences convey the same meaning. Use 'identical', 'similar', 'different', or 'unrelated' "
    "to describe the relationship. To enhance the performance of this task, this sentence : "
    '"{text}" means in one word:"',
    "In this task, you're given a sentence and a phrase. Your task is to determine if the phrase "
    "can be a contextual synonym within the given sentence. Options include 'yes', 'no', or "
    "'partially'. To enhance the performance of this task, this sentence : \"{text}\" means in "
    'one word:"',
    "In this task, you're examining a news article. Your task is to extract the most critical "
    'fact from the article. For this task, this sentence : "{text}" encapsulates the key fact in '
    'one word:"',
    "In this task, you're reviewing a scientific abstract. Your task is to identify the main "
    "entities (e.g., proteins, diseases) and their relations (e.g., causes, treats). For this "
    'task, this sentence : "{text}" highlights the primary entity or relation in one word:"',
)
MOEE = {
    "none": '"{text}"',
    "style": 'In one word, describe the style of the following sentence - "{text}" :"',
    "sentiment": "In one word, describe the sentiment of the following sentence (positive, "
    'neutral, or negative) - "{text}" :',
    "tone": 'In one word, describe the tone of the following sentence - "{text}" (e.g., formal, '
    "informal, humorous, serious):",
    "intent": "In one word, describe the intent behind the following sentence (e.g., request, "
    'suggestion, command) - "{text}" :',
    "complexity": "In one word, rate the complexity of the following sentence (simple, moderate, "
    'complex) - "{text}" :',
    "subjectivity": "In one word, describe whether the following sentence is subjective or "
    'objective - "{text}" :',
    "language_style": "In one word, describe the language style of the following sentence (e.g., "
    'academic, conversational, literary) - "{text}" :',
    "grammar_structure": "In one word, describe the grammatical structure of the following "
    'sentence (simple, compound, complex) - "{text}" :',
}

# For `from_chat`: the messages that PromptReps puts through an instruction model's chat format.
_PROMPTREPS_SYSTEM = ("system", "You are an AI assistant that can understand human language.")
_PROMPTREPS_ASK = (
    " Use one word to represent the {} in a retrieval task. Make sure your word is in lowercase."
)
PROMPTREPS_CHAT = {
    role: (
        _PROMPTREPS_SYSTEM,
        ("user", f'{word}: "{{text}}".' + _PROMPTREPS_ASK.format(word.lower())),
        ("assistant", 'The word is "'),
    )
    for role, word in (("query", "Query"), ("document", "Passage"))
}


def _promptreps_llama3(name: str, line_break: str, source: str) -> Template:
    """PromptReps' question in Llama 3's chat format, cut before and after the text."""

    def form(word: str) -> str:
        turns = [
            ("system", _PROMPTREPS_SYSTEM[1]),
            ("user", f'{word}: "{{|}}{{text}}{{|}}".' + _PROMPTREPS_ASK.format(word.lower())),
        ]
        head = "<|start_header_id|>{}<|end_header_id|>" + 2 * line_break
        chat = "".join(head.format(role) + said + "<|eot_id|>" for role, said in turns)
        return "{bos}" + chat + head.format("assistant") + 'The word is: "'

    return Template(
        name,
        (form("Query"),),
        (form("Passage"),),
        pool_prompt=True,
        strip=True,
        added_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        source=f"PromptReps, arXiv:2404.18424; ielab/PromptReps {source}",
    )


def _promptreps_chatml() -> Template:
    """PromptReps' messages in the format of chats between <|im_start|> and <|im_end|>."""

    def form(role: str) -> str:
        turns = [f"<|im_start|>{who}\n{{|}}{said}" for who, said in PROMPTREPS_CHAT[role]]
        return "<|im_end|>\n".join(turns)

    return Template(
        "promptreps_chatml",
        (form("query"),),
        (form("document"),),
        pool_prompt=True,
        strip=True,
        added_tokens=("<|im_start|>", "<|im_end|>"),
        source="PromptReps' messages, arXiv:2404.18424, in the chat format of SmolLM2 and Qwen",
    )


_COD_TOKENS = tuple(f"<reserved_{i}>" for i in range(12, 20))  # DEBATER's chain of deliberation
_LLARA_TOKENS = tuple(f"<s{i}>" for i in range(1, 17))
_LLARA_SAME = (
    '{|}{#1}", summarize the above passage within eight words: {+'
    + "".join(_LLARA_TOKENS[:8])
    + "}"
)
_LLARA_NEXT = (
    '{|}{#2}", predict the following passage within eight words: {+'
    + "".join(_LLARA_TOKENS[8:])
    + "}"
)


def repeat(times: int) -> Template:
    """The text repeated `times` times, copy i being segment i, the last one pooled.

    Nothing stands between copies, as in ReBA's code (Duan et al. 2025, arXiv:2502.20726).
    Raises SettingsError below one.
    """
    if times < 1:
        raise SettingsError(f"repeat: times must be 1 or more, got {times}")
    copies = "".join(f"{{#{i}}}{{!text}}" for i in range(times - 1))
    return _both(
        f"repeat_{times}",
        f"{copies}{{#{times - 1}}}{{text}}",
        pool_prompt=False,
        source="ReBA, arXiv:2502.20726; cqdyf099/ReBA models.py: the text k times",
    )


def _both(name: str, *forms: str, pool_prompt: bool, source: str) -> Template:
    """A template that reads queries and documents alike."""
    return Template(name, forms, forms, pool_prompt, source=source)


def _prepended(template: Template, name: str) -> Template:
    """The template with the placeholder that token prepending overwrites, before the quote."""
    forms = tuple(form.replace(' : "{text}"', ' : <PST> "{text}"') for form in template.query)
    source = "Token Prepending, arXiv:2412.11556; fuyuchenIfyw/token_prepending evaluate.py"
    return replace(
        template, name=name, query=forms, document=forms, added_tokens=("<PST>",), source=source
    )


_PRETCOT = "arXiv:2404.03921; ZBWpro/PretCoTandKE settings.py"
_PROMPTEOL = _both(
    "prompteol",
    EOL,
    pool_prompt=True,
    source="PromptEOL, arXiv:2307.16645; kongds/scaling_sentemb",
)
_COT = _both("prompteol_cot", COT, pool_prompt=True, source=f"Pretended CoT, {_PRETCOT}")
_KE = _both(
    "prompteol_ke", KNOWLEDGE, pool_prompt=True, source=f"Knowledge Enhancement, {_PRETCOT}"
)
_METAEOL = _both(
    "metaeol",
    *METAEOL,
    pool_prompt=True,
    source="MetaEOL, arXiv:2402.18458; Yibin-Lei/MetaEOL evaluation.py",
)

_ALL = (
    # Plain texts and prefixes.
    _both("raw", "{text}", pool_prompt=True, source="the text alone"),
    Template(
        "query_passage",
        ("query: {text}",),
        ("passage: {text}",),
        pool_prompt=True,
        source="E5, arXiv:2212.03533",
    ),
    Template(
        "repllama",
        ("{bos}query: {text}{eos}",),
        ("{bos}passage: {text}{eos}",),
        pool_prompt=True,
        source="RepLLaMA, arXiv:2310.08319; the format in kyriemao/ChatRetriever and Tevatron",
    ),
    Template(
        "gecko",
        ("task: {instruction} | query: {text}",),
        ("title: {title} | text: {text}",),
        pool_prompt=True,
        defaults={"title": "none"},
        source="Gecko, arXiv:2403.20327; bytes as in EmbeddingGemma's prompts",
    ),
    # Instructions.
    Template(
        "instruction",
        ("{instruction} {text}",),
        ("{text}",),
        pool_prompt=True,
        source="a free instruction before the query; the space is ours",
    ),
    Template(
        "e5_instruct",
        ("Instruct: {instruction}\nQuery: {text}",),
        ("{text}",),
        pool_prompt=True,
        source="E5-instruct, arXiv:2402.05672",
    ),
    Template(
        "gte_qwen2",
        ("Instruct: {instruction}\nQuery: {text}{eos}",),
        ("{text}{eos}",),
        pool_prompt=True,
        source="GTE-Qwen2, arXiv:2308.03281; its tokenizer_config.json adds EOS",
    ),
    Template(
        "e5_mistral",
        ("{bos}Instruct: {instruction}\nQuery: {text}{eos}",),
        ("{bos}{text}{eos}",),
        pool_prompt=True,
        source="E5-Mistral, arXiv:2401.00368: as e5_instruct, the EOS state is the vector",
    ),
    Template(
        "nv_embed",
        ("Instruct: {!instruction}\nQuery: {text}{+eos}",),
        ("{text}{+eos}",),
        pool_prompt=False,
        source="NV-Embed, arXiv:2405.17428: the mean leaves the instruction out; ULLME's copy",
    ),
    Template(
        "qwen3_instruct",
        ("Instruct: {instruction}\nQuery:{text}",),
        ("{text}",),
        pool_prompt=True,
        source="Qwen3-Embedding, arXiv:2506.05176: no space after 'Query:'",
    ),
    Template(
        "instructor",
        ("Represent the {!domain} {!text_type} for {!task_objective}:{text}",),
        ("Represent the {!domain} {!text_type} for {!task_objective}:{text}",),
        pool_prompt=False,
        fields=("domain", "text_type", "task_objective"),
        source="INSTRUCTOR, arXiv:2212.09741: instruction and text joined without a space",
    ),
    Template(
        "instructor_free",
        ("{!instruction}{text}",),
        ("{!instruction}{text}",),
        pool_prompt=False,
        source="INSTRUCTOR, arXiv:2212.09741: whole instructions, as in its training data, MEDI",
    ),
    Template(
        "gritlm",
        ("{bos}<|user|>\n{!instruction}\n<|embed|>\n{text}",),
        ("{bos}<|embed|>\n{text}",),
        pool_prompt=False,
        source="GritLM, arXiv:2402.09906; ContextualAI/gritlm",
    ),
    _both(
        "gritlm_plain",
        "{bos}<|embed|>\n{text}",
        pool_prompt=False,
        source="GritLM without an instruction, arXiv:2402.09906",
    ),
    Template(
        "bmretriever",
        ("{instruction}\nQuery: {text}{eos}",),
        ("Represent this passage\npassage: {text}{eos}",),
        pool_prompt=True,
        source="BMRetriever, arXiv:2404.18443; ritaranx/BMRetriever eval.py",
    ),
    _both(
        "inbedder",
        "### Input:\n{text}\n\n### Instruction:\n{instruction}\n\n### Response:",
        pool_prompt=True,
        source="InBedder, arXiv:2402.09642; zhang-yu-wei/InBedder README",
    ),
    # Delimiter tokens.
    Template(
        "sgpt_specb",
        ("[{|}{text}{|}]",),
        ("{{{|}{text}{|}}}",),
        pool_prompt=True,
        source="SGPT, arXiv:2202.08904; Muennighoff/sgpt beir_dense_retriever.py (--specb)",
    ),
    Template(
        "udever",
        ("[BOQ]{text}[EOQ]",),
        ("[BOD]{text}[EOD]",),
        pool_prompt=True,
        added_tokens=("[BOQ]", "[EOQ]", "[BOD]", "[EOD]"),
        source="UDEVER, arXiv:2310.08232; model card of izhx/udever-bloom-3b",
    ),
    Template(
        "cpt",
        ("[SOS_Q]{text}[EOS_Q]",),
        ("[SOS_D]{text}[EOS_D]",),
        pool_prompt=True,
        added_tokens=("[SOS_Q]", "[EOS_Q]", "[SOS_D]", "[EOS_D]"),
        source="cpt-text, arXiv:2201.10005: one pair of delimiters per side; their names are ours",
    ),
    Template(
        "llama2vec",
        ('{bos}"{|}{!text}' + _LLARA_NEXT,),
        ('{bos}"{|}{!text}' + _LLARA_SAME,),
        pool_prompt=False,
        added_tokens=_LLARA_TOKENS,
        source="Llama2Vec, arXiv:2312.15503; FlagEmbedding LLARA: the eight slots are pooled",
    ),
    replace(
        _both(
            "llama2vec_pretrain",
            '{bos}"{|}{!text}' + _LLARA_SAME + _LLARA_NEXT,
            pool_prompt=False,
            source="Llama2Vec's EBAE and EBAR on one input: parts 1 and 2 must not see each other",
        ),
        added_tokens=_LLARA_TOKENS,
    ),
    Template(
        "debater",
        ("{bos}{!instruction}: {!text}{+eos}",),
        (
            "{bos}{!text} Use eight words to represent the above text in multiple aspects: {+"
            + "".join(_COD_TOKENS)
            + "}",
        ),
        pool_prompt=False,
        added_tokens=_COD_TOKENS,
        source="DEBATER, arXiv:2502.12974; OpenBMB/DEBATER llm2vec_models.py: spare tokens",
    ),
    # One-word prompts.
    _PROMPTEOL,
    Template(
        "prompteol_icl",
        ("{examples}" + EOL,),
        ("{examples}" + EOL,),
        pool_prompt=True,
        example='This sentence : "{query}" means in one word:"{document}".',
        examples=(Example("A jockey riding a horse.", "Equestrian"),),
        source="PromptEOL, arXiv:2307.16645; kongds/scaling_sentemb run_icl.sh (opt-2.7b's)",
    ),
    _COT,
    _KE,
    _both(
        "sth",
        'This sentence : "{text}" means something',
        pool_prompt=True,
        source=f"PromptSTH, {_PRETCOT}",
    ),
    _both(
        "sum",
        'This sentence : "{text}" can be summarized as',
        pool_prompt=True,
        source=f"PromptSUM, {_PRETCOT}",
    ),
    _METAEOL,
    _both(
        "bellm",
        'The representative word for sentence {text} is:"',
        pool_prompt=True,
        source="BeLLM, arXiv:2311.05296; 4AI/BeLLM README",
    ),
    _prepended(_PROMPTEOL, "token_prepending"),
    _prepended(_COT, "token_prepending_cot"),
    _prepended(_KE, "token_prepending_ke"),
    _prepended(_METAEOL, "token_prepending_metaeol"),
    *(
        _both(
            f"moee_{name}",
            form,
            pool_prompt=True,
            source="MoEE, arXiv:2410.10814; tianyi-lab/MoE-Embedding moee.py",
        )
        for name, form in MOEE.items()
    ),
    Template(
        "promptreps",
        ('Query: "{text}".' + _PROMPTREPS_ASK.format("query") + ' The word is: "',),
        ('Passage: "{text}".' + _PROMPTREPS_ASK.format("passage") + ' The word is: "',),
        pool_prompt=True,
        source="PromptReps, arXiv:2404.18424; wording of its README, joined for base models by us",
    ),
    # The released files write a line break as two characters, and the code reads them so.
    _promptreps_llama3("promptreps_llama3", r"\n", "prompts/meta-llama/Meta-Llama-3-8B-Instruct"),
    _promptreps_llama3("promptreps_chat", "\n", "the README's chat format, with its line breaks"),
    _promptreps_chatml(),
    _both(
        "mask_template",
        '"{!text}" means {+mask}.',
        pool_prompt=False,
        source="SKICSE and DenoSent as the survey writes it",
    ),
    _both(
        "question_suffix",
        "{text} Question: what can we draw from the above sentence?",
        pool_prompt=True,
        source="GenSE, arXiv:2210.16798; its model card (mattymchen/gense-base-plus)",
    ),
    _both(
        "e5v",
        "{text}\nSummary above sentence in one word: ",
        pool_prompt=True,
        source="E5-V, arXiv:2407.12580: the text side",
    ),
    # Repetition.
    Template(
        "echo",
        ("{bos}Instruct:{|}{!instruction},{|}\nQuery:{|}{!text}{|}\nQuery again:{|}{text}{+eos}",),
        ("{bos}Document:{|}{!text}{|}\nDocument again:{|}{text}{+eos}",),
        pool_prompt=False,
        source="Echo, arXiv:2402.15449; jakespringer/echo-embeddings README, in its pieces",
    ),
    _both(
        "echo_rewrite",
        "Rewrite the sentence: {!text}, rewritten sentence: {text}",
        pool_prompt=False,
        source="Echo as the survey writes it, arXiv:2402.15449",
    ),
    repeat(2),
    # Demonstrations.
    Template(
        "bge_icl",
        ("{bos}{examples}<instruct>{instruction}\n<query>{text}\n<response>{eos}",),
        ("{bos}{text}{eos}",),
        pool_prompt=True,
        example="<instruct>{instruction}\n<query>{query}\n<response>{document}",
        example_separator="\n\n",
        added_tokens=("<instruct>", "<query>", "<response>"),
        source="BGE-ICL, arXiv:2409.15700; FlagEmbedding and the model card of bge-en-icl",
    ),
    Template(
        "rare",
        ("{bos}Instruct: {instruction}\n{examples}Query: {text}{eos}",),
        ("{bos}{text}{eos}",),
        pool_prompt=True,
        example="Query: {query}\nPositive Document: {document}",
        example_separator="\n",
        source="RARe, arXiv:2410.20088; atutej/RARe AbsTaskRetrieval.process_ic_data",
    ),
)

# Add yours here or in encoder_templates.py; tests walk the table. A program adds its own with
# `register`.
TEMPLATES: Registry[Template] = Registry(
    "template",
    {template.name: template for template in (*_ALL, *ENCODER_TEMPLATES)},
    accepts=lambda found: isinstance(found, Template),
    expected="a Template",
)
