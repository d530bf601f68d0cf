"""Input formats of decoders made encoders, as their released code writes them at inference.

Each is byte for byte what `source` builds. Two things are not part of a template: the code that
strips a text's outer white space, and the one that joins a document's title and text.
"""

from polyvec.embed.inputs.templates import Template

_LLAMA3 = "{bos}<|start_header_id|>user<|end_header_id|>\n\n"
_LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_QWEN_TOKENS = tuple(f"<|extra_{i}|>" for i in range(3))
_EMB_TOKENS = tuple(f"<|emb_{i}|>" for i in range(3))


def _chat_retriever(name: str, tokens: tuple[str, ...], source: str) -> Template:
    """A session in ChatML, earlier turns as examples (query: user, document: assistant)."""
    end = "{#1}{+" + "".join(tokens) + "}"
    return Template(
        name,
        ("{!examples}<|im_start|>user\n{!text}<|im_end|>" + end,),
        ("<|im_start|>assistant\n{!text}<|im_end|>" + end,),
        pool_prompt=False,
        example="<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n{document}<|im_end|>",
        example_separator="\n",
        added_tokens=tuple(dict.fromkeys(tokens)),
        source=source,
    )


ENCODER_TEMPLATES = (
    Template(
        "llm2vec",
        ("{bos}[INST] {!instruction}: {text}{+ [/INST]}",),
        ("{bos}[INST] {text}{+ [/INST]}",),
        pool_prompt=False,
        source="LLM2Vec, arXiv:2404.05961; McGill-NLP/llm2vec llm2vec.py: Mistral-7B-Instruct-v0.2 "
        "and Llama-2-chat; the colon is that of its README and of mteb's wrapper",
    ),
    Template(
        "llm2vec_llama3",
        (_LLAMA3 + "{!instruction}: {text}{+<|eot_id|>}",),
        (_LLAMA3 + "{text}{+<|eot_id|>}",),
        pool_prompt=False,
        added_tokens=_LLAMA3_TOKENS,
        source="LLM2Vec, arXiv:2404.05961; McGill-NLP/llm2vec llm2vec.py: Llama-3-8B-Instruct",
    ),
    Template(
        "llm2vec_training",
        ("{!instruction}; {text}",),
        ("{text}",),
        pool_prompt=False,
        source="LLM2Vec, arXiv:2404.05961: its training data; McGill-NLP/llm2vec E5Data.py",
    ),
    Template(
        "l3prune",
        (_LLAMA3 + "{!instruction} {text}{+<|eot_id|>}",),
        (_LLAMA3 + "{text}{+<|eot_id|>}",),
        pool_prompt=False,
        added_tokens=_LLAMA3_TOKENS,
        source="L3Prune, arXiv:2410.14578; thennal10/l3prune llmencoder.py: Llama-3-8B-Instruct",
    ),
    Template(
        "mltp",
        ("{bos}{instruction}{text}{eos}",),
        ("{bos}{text}{eos}",),
        pool_prompt=True,
        source="MLTP, arXiv:2409.02727; yixuantt/PoolingAndAttn run_mteb_retrieval.py: instruction "
        "and query without a space",
    ),
    Template(
        "ullme",
        ("{instruction}\n{text}",),
        ("{instruction}\nCandidate:\n{text}",),
        pool_prompt=True,
        source="ULLME, arXiv:2408.03402; nlp-uoregon/ullme ullme.py: the instruction on both sides",
    ),
    Template(
        "nv_retriever",
        ("{instruction}:  {text}",),
        ("passage:  {text}",),
        pool_prompt=True,
        source="NV-Retriever, arXiv:2407.15831; model card of nvidia/NV-Retriever-v1: two spaces",
    ),
    _chat_retriever(
        "chatretriever",
        _EMB_TOKENS,
        "ChatRetriever, arXiv:2404.13556; its new tokens in its ChatML framing",
    ),
    _chat_retriever(
        "chatretriever_qwen",
        _QWEN_TOKENS,
        "ChatRetriever, arXiv:2404.13556; kyriemao/ChatRetriever qwen_chat_cot: spare tokens",
    ),
    _chat_retriever(
        "chatretriever_qwen15",
        ("<|endoftext|>",) * 3,
        "ChatRetriever, arXiv:2404.13556; kyriemao/ChatRetriever qwen15_chat_cot",
    ),
)
