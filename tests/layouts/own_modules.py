"""Folders whose modules.json names their makers' own modules."""

import textwrap
from pathlib import Path

from folders import ST, bert, modules, write
from layouts import Equal, Refused, layout, sentence_transformers

TRANSFORMER = """
    from torch import nn
    from transformers import AutoModel, AutoTokenizer

    class Transformer(nn.Module):  # the arguments of jina-v3's
        def __init__(self, model_name_or_path, max_seq_length=None, model_args=None,
                     tokenizer_args=None, config_args=None, cache_dir=None,
                     do_lower_case=False, tokenizer_name_or_path=None, **kwargs):
            super().__init__()
            self.auto_model = AutoModel.from_pretrained(model_name_or_path, **(model_args or {}))
            self.tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)
            self.max_seq_length, self.do_lower_case = max_seq_length, do_lower_case

        def tokenize(self, texts, padding=True):
            return self.tokenizer(texts, padding=padding, truncation="longest_first",
                                  return_tensors="pt", max_length=self.max_seq_length)

        def forward(self, features, task=None):
            inputs = {key: features[key] for key in ("input_ids", "attention_mask")}
            states = self.auto_model(**inputs, return_dict=False)[0]
            features["token_embeddings"] = states + states.roll(1, dims=-1)
            return features

        @staticmethod
        def load(input_path):
            raise NotImplementedError
"""
POOLING = """
    from torch import nn

    class Middle(nn.Module):
        def forward(self, features):
            mask = features["attention_mask"][..., None]
            states = features["token_embeddings"]
            top = states.masked_fill(mask == 0, float("-inf")).amax(1)
            low = states.masked_fill(mask == 0, float("inf")).amin(1)
            features["sentence_embedding"] = (top + low) / 2
            return features

        @staticmethod
        def load(input_path):
            return Middle()
"""


def own(folder: Path, code: str, *kinds: str) -> None:
    """A BERT whose modules are of these kinds, the first two in "" and 1_Pooling."""
    bert(folder)
    modules(folder, "mean")
    (folder / "custom_st.py").write_text(textwrap.dedent(code))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (kind, path) in enumerate(zip(kinds, ("", "1_Pooling", ""), strict=False))
    ]
    write(folder / "modules.json", listed)


@layout("a Transformer of the maker's own, trusted", like=["jinaai/jina-embeddings-v3"], answer=ST)
def _(folder):
    own(folder, TRANSFORMER, "custom_st.Transformer", "sentence_transformers.models.Pooling")
    trust = {"trust_remote_code": True}
    return Equal(sentence_transformers(folder, **trust), load=trust)


@layout("a pooling of the maker's own, trusted", like=["a maker's custom_st.py"], answer=ST)
def _(folder):
    own(folder, POOLING, "sentence_transformers.models.Transformer", "custom_st.Middle")
    trust = {"trust_remote_code": True}
    return Equal(sentence_transformers(folder, **trust), load=trust)


@layout("modules of the maker's own, not trusted", like=["jinaai/jina-embeddings-v3"])
def _(folder):
    own(folder, TRANSFORMER, "custom_st.Transformer", "sentence_transformers.models.Pooling")
    return Refused(r"custom_st\.Transformer is the model's own code.*trust_remote_code=True")
