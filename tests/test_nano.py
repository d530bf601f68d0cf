"""polyvec-nano: the shipped models are what their cards say; the script that makes them works."""

import hashlib
import math
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from polyvec.errors import ModelError
from polyvec.nano import nano_lm, nano_lm_path, nano_t5, nano_t5_path

# Every test but a few trains a model, or waits for the fixture that does.
pytestmark = pytest.mark.medium

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
pytest.importorskip("scipy", reason="needs the extra 'evaluate'")
import eval_nano  # noqa: E402
import nano_corpus  # noqa: E402
import nano_model  # noqa: E402
import pretrain_nano as nano  # noqa: E402

# Written for this test; the wording is ours, so no corpus has it.
PARAGRAPH = (
    "Early in the morning the two sisters walked down to the harbour, because their brother had "
    "written that his ship would arrive before the end of the week. The water was quiet and the "
    "wind was cold. They waited for an hour without a word, and then the older one laughed and "
    "said that she had never seen so many birds in one place. When the first sail came around the "
    "rocks, they forgot the cold and ran along the wall to the place where the boats are tied."
)
ASSETS = EXAMPLES.parent / "src" / "polyvec" / "nano"
trained = pytest.mark.skipif(
    not all((ASSETS / name / "model.safetensors").exists() for name in ("nano-lm", "nano-t5")),
    reason="nano-lm is not trained yet",
)
PATHS = {"nano-lm": nano_lm_path, "nano-t5": nano_t5_path}
LIMIT_BYTES = {"nano-lm": 12_000_000, "nano-t5": 8_000_000}


@pytest.fixture(scope="module")
def lm():
    return nano_lm()


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A work folder in which `all --preset smoke` ran, from docstrings to model cards."""
    folder = tmp_path_factory.mktemp("nano")
    assert smoke(folder, "all") == folder
    return folder


def smoke(folder: Path, kind: str, *more: str) -> Path | None:
    """A run of the smoke preset, on one thread as every process of a run."""
    settings = ["--preset", "smoke", "--threads", "1"]
    settings += [] if "--minutes" in more else ["--steps", "20"]
    threads = torch.get_num_threads()
    try:
        return nano.main([kind, "--work", str(folder), *settings, *more])
    finally:
        torch.set_num_threads(threads)


def copy_corpus(source: Path, target: Path) -> Path:
    """A new work folder that starts from a corpus already read."""
    target.mkdir()
    for name in ("corpus.json", "corpus.md", "tokenizer.json", "ids.npz"):
        (target / name).write_bytes((source / name).read_bytes())
    return target


# ---- what is shipped ----------------------------------------------------------------------------


@trained
@pytest.mark.parametrize("name", PATHS)
def test_card_names_the_sha256_of_the_weights(name):
    folder = PATHS[name]()
    stated = re.search(
        r"sha256 of model.safetensors: `(\w{64})`", (folder / "README.md").read_text()
    )
    assert stated[1] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@trained
@pytest.mark.parametrize("name", PATHS)
def test_size_is_within_the_limit_and_weights_are_bfloat16(name):
    file = PATHS[name]() / "model.safetensors"
    assert file.stat().st_size <= LIMIT_BYTES[name]
    assert {weight.dtype for weight in load_file(str(file)).values()} == {torch.bfloat16}


@trained
def test_auto_classes_load_the_same_models_without_custom_code(lm):
    for path, auto, mine in (
        (nano_lm_path(), AutoModelForCausalLM, lm),
        (nano_t5_path(), AutoModelForSeq2SeqLM, nano_t5()),
    ):
        assert not list(path.glob("*.py")) and "auto_map" not in (path / "config.json").read_text()
        model = auto.from_pretrained(path, dtype=torch.float32)
        for ours, theirs in zip(mine[0].parameters(), model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        assert (
            AutoTokenizer.from_pretrained(path)(PARAGRAPH).input_ids == mine[1](PARAGRAPH).input_ids
        )


@trained
def test_tokenizers_share_a_vocabulary_and_lose_nothing(lm):
    decoder, encoder = lm[1], nano_t5()[1]
    assert decoder.get_vocab() == encoder.get_vocab()
    text = "naïve  Ω\t😀 <b> 1998\n"
    ids = decoder(text).input_ids
    assert ids[0] == decoder.bos_token_id and [*ids[1:], 2] == encoder(text).input_ids
    assert decoder.decode(ids[1:]) == text


@pytest.mark.equality
@trained
def test_greedy_generation_repeats_itself(lm):
    model, tokenizer = lm
    ids = tokenizer("The old house", return_tensors="pt").input_ids
    one, two = (
        model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0) for _ in "ab"
    )
    assert torch.equal(one, two) and len(set(one[0, 4:].tolist())) > 3


@trained
def test_codes_unseen_english_below_its_own_byte_frequencies(lm):
    counts = np.array(list(Counter(PARAGRAPH.encode()).values()))
    entropy = -(counts / counts.sum() * np.log2(counts / counts.sum())).sum()
    bits = eval_nano.bits_per_byte(eval_nano.LanguageModel(*lm), [PARAGRAPH])
    assert bits < entropy / 2 < 8 / 2  # a unigram that knows the very text needs twice as much


@trained
def test_grammar_probe_passes_its_bar(lm):
    pairs = [pair for kind in eval_nano.grammar_pairs().values() for pair in kind]
    assert len(set(pairs)) == 200
    assert eval_nano.accuracy(eval_nano.LanguageModel(*lm), pairs) >= 0.70


@trained
@torch.inference_mode()
def test_t5_fills_spans_better_than_it_fills_them_from_another_text():
    model, tokenizer = nano_t5()
    ids = torch.tensor([tokenizer(PARAGRAPH, add_special_tokens=False).input_ids[:96]])
    inputs, targets = nano_model.corrupt(ids, (0,))
    other, _ = nano_model.corrupt(ids.flip(1), (0,))
    fit, misfit = (float(model(input_ids=x, labels=targets).loss) for x in (inputs, other))
    assert fit < misfit < math.log(8192) + 1


def test_missing_weights_are_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("polyvec.nano.files", lambda package: tmp_path)
    with pytest.raises(ModelError, match=r"nano-lm: no weights .* examples/pretrain_nano.py"):
        nano_lm()


# ---- the run, end to end ------------------------------------------------------------------------


def test_smoke_run_writes_a_directory_that_loads(work):
    folder = work / "nano-lm"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    best = load_file(str(work / "lm-best.safetensors"))
    for name, weight in model.state_dict().items():
        if name in best:
            assert torch.equal(weight, best[name].bfloat16().float())
    card = (folder / "README.md").read_text()
    assert "python_docstrings" in card and "--steps 20 --seed 0" in card
    held_out = [
        float(loss) for loss in re.findall(r"^\| \d+ \| [\d.]+ \| ([\d.]+) \|$", card, re.M)
    ]
    assert held_out[-1] < held_out[0] < math.log(512)


def test_smoke_run_of_the_other_kinds_goes_on_from_the_lm(work):
    assert smoke(work, "moe") == work / "nano-moe"
    twin = AutoModelForCausalLM.from_pretrained(work / "nano-moe", dtype=torch.float32)
    assert twin.config.model_type == "mixtral" and twin.config.num_local_experts == 4
    t5 = AutoModelForSeq2SeqLM.from_pretrained(work / "nano-t5", dtype=torch.float32)
    assert t5.config.tie_word_embeddings and t5.config.num_decoder_layers == 1


def test_other_kinds_without_an_lm_say_so(work, tmp_path):
    with pytest.raises(SystemExit, match="run `lm` with --work"):
        smoke(copy_corpus(work, tmp_path / "new"), "t5")


@pytest.mark.equality
@pytest.mark.parametrize("kind", ["lm", "t5"])
def test_halted_and_resumed_run_has_the_weights_of_an_unbroken_one(work, tmp_path, kind):
    folder = copy_corpus(work, tmp_path / "broken")
    (folder / "lm-best.safetensors").write_bytes((work / "lm-best.safetensors").read_bytes())
    assert smoke(folder, kind, "--halt-at-step", "13") is None
    assert not (folder / f"nano-{kind}").exists()
    smoke(folder, kind)
    assert_same_weights(work / f"nano-{kind}", folder / f"nano-{kind}")


@pytest.mark.equality
def test_a_signal_ends_the_run_after_a_step_that_is_not_lost(work, tmp_path, monkeypatch):
    folder = copy_corpus(work, tmp_path / "signalled")
    with monkeypatch.context() as patch:
        patch.setattr(nano, "show", lambda run, *_: run.step == 6 and signal.raise_signal(15))
        before = signal.getsignal(signal.SIGTERM)
        assert smoke(folder, "lm") is None
    assert signal.getsignal(signal.SIGTERM) is before
    assert torch.load(folder / "lm.pt", weights_only=True)["step"] == 7
    smoke(folder, "lm")
    assert_same_weights(work / "nano-lm", folder / "nano-lm")


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = (load_file(str(folder / "model.safetensors")) for folder in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.equality
def test_a_run_on_a_clock_ends_decayed_and_is_repeated_by_its_steps(work, tmp_path):
    folder = copy_corpus(work, tmp_path / "timed")
    # Long enough for the warm-up on a busy machine, too.
    smoke(folder, "lm", "--minutes", "0.05")
    state = torch.load(folder / "lm.pt", weights_only=True)
    assert state["step"] == state["total"] > nano_model.PRESETS["smoke"].warmup
    again = copy_corpus(work, tmp_path / "again")
    steps = str(state["step"])
    assert f"--steps {steps} " in (folder / "nano-lm" / "README.md").read_text()
    nano.main(["lm", "--work", str(again), "--preset", "smoke", "--threads", "1", "--steps", steps])
    assert_same_weights(folder / "nano-lm", again / "nano-lm")


def test_two_processes_train_as_one_does(work, tmp_path):
    folder = copy_corpus(work, tmp_path / "pair")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command += [str(EXAMPLES / "pretrain_nano.py"), "lm", "--preset", "smoke", "--threads", "1"]
    subprocess.run(
        [*command, "--work", str(folder), "--steps", "20"], check=True, capture_output=True
    )
    one, two = (torch.load(f / "lm.pt", weights_only=True) for f in (work, folder))
    assert_close(one["curve"], two["curve"], rtol=1e-4, atol=1e-4)
    assert one["seen"] == two["seen"] == 20 * 1024


def test_gpu_preset_fits_the_wheel():
    preset = nano.PRESETS["gpu"]
    with torch.device("meta"):
        lm, t5 = (
            nano_model.llama(preset, preset.vocabulary),
            nano_model.t5(preset, preset.vocabulary),
        )
    assert 2 * sum(weight.numel() for weight in lm.parameters()) < LIMIT_BYTES["nano-lm"]
    assert 2 * sum(weight.numel() for weight in t5.parameters()) < LIMIT_BYTES["nano-t5"]


# ---- its parts ----------------------------------------------------------------------------------


def test_linear_cross_entropy_is_cross_entropy_with_its_gradients():
    torch.manual_seed(0)
    h, weight = torch.randn(50, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    target = torch.randint(0, 30, (50,))
    ours = nano_model.LinearCrossEntropy.apply(h, weight, target, 16)
    theirs = F.cross_entropy(h @ weight.T, target, reduction="sum")
    assert_close(ours, theirs)
    for a, b in zip(
        *(torch.autograd.grad(3 * x, (h, weight)) for x in (ours, theirs)), strict=True
    ):
        assert_close(a, b)


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(nano_model.orthogonalize(torch.randn(3, *shape)))
    assert values.min() > 0.3 and values.max() < 1.3


def test_rate_warms_up_holds_and_decays_to_nothing():
    preset = nano.PRESETS["cpu"]
    rates = [nano_model.rate_at(step, 1000, preset) for step in (0, 59, 60, 700, 850, 1000)]
    assert_close(rates, [1 / 60, 1.0, 1.0, 1.0, 0.5, 0.0])
    assert nano_model.rate_at(10**6, math.inf, preset) == 1.0


def test_stream_reads_every_document_as_often_as_it_says():
    documents = [np.full(3, i, dtype=np.uint16) for i in range(10)]
    repeats = np.array([1] * 5 + [2] * 5)
    stream = nano.Stream(documents, repeats, seed=0)
    ids = stream.take(11, 4)[:, :-1].flatten()
    assert len(ids) == 44  # of the 45 tokens: the last is only a target
    assert sorted(stream.tokens.tolist()) == sorted(
        np.concatenate(documents).tolist() + [i for i in range(5, 10) for _ in "abc"]
    )
    again = nano.Stream(documents, repeats, seed=0)
    again.seek(stream.epoch, stream.cursor)
    assert torch.equal(again.take(5, 4), stream.take(5, 4))


def test_corrupted_text_and_spans_put_together_are_the_text():
    ids = torch.arange(100, 1124).view(4, 256)
    inputs, targets = nano_model.corrupt(ids, (0,))
    assert inputs.shape == (4, 232) and targets.shape == (4, 52)
    for row, source, spans in zip(ids.tolist(), inputs.tolist(), targets.tolist(), strict=True):
        filled = []
        for token in source[:-1]:
            if token < 36:
                start = spans.index(token) + 1
                end = next(i for i in range(start, len(spans)) if spans[i] < 36)
                filled += spans[start:end]
            else:
                filled.append(token)
        assert filled == row


def test_twin_of_equal_experts_computes_what_the_model_does(monkeypatch):
    torch.manual_seed(0)
    model = nano_model.llama(nano.PRESETS["smoke"], 512).eval()
    for layer in model.model.layers:  # they begin at zero, where any twin would agree
        torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.5)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    twin, ids = nano_model.experts(model, 0).eval(), torch.arange(40)[None]
    assert_close(twin(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_overlap_finds_eight_words_and_short_sentences():
    overlap = nano_corpus.Overlap(
        ["One two three four five six seven eight nine.", "We met him there."]
    )
    gram, short = overlap.found_in(
        [
            "zero TWO, three four-five six seven: eight (nine) ten",
            "one two three four five six seven and eight",
            "It rained. We met him there! Then it stopped.",
            "We met him there once",
            "one two three four",  # eight words in a row only together with the next text
            "five six seven eight",
        ]
    )
    assert gram.tolist() == [True, False, False, False, False, False]
    assert short.tolist() == [False, False, True, False, False, False]


@pytest.mark.slow
def test_no_document_trained_on_has_eight_words_of_a_test_split(shared_data):
    """The same fact as the report's, found by plain sets of words."""
    corpus = nano_corpus.read_corpus(shared_data)
    tests = [
        r[k]
        for name in ("stsb", "sick")
        for r in eval_nano.rows(nano_corpus.find(shared_data / name, "test"))
        for k in ("sentence1", "sentence2")
    ]
    tests += [
        r["text"] for r in eval_nano.rows(nano_corpus.find(shared_data / "scifact", "corpus"))
    ]
    tests += (
        list(nano_corpus.lines_of(shared_data / "wikitext2" / "wiki.test.raw.txt.gz"))
        + corpus.novels
    )
    grams = {g for text in tests for g in eight_words(text)}
    assert len(grams) > 500_000
    assert not any(g in grams for text in corpus.train for g in eight_words(text))


def eight_words(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return list(zip(*(words[i:] for i in range(8)), strict=False))


# ---- the measures -------------------------------------------------------------------------------


def test_windows_cover_each_token_once():
    for length in (1, 511, 512, 513, 1300):
        new = [
            ids[-count:] for ids, count in eval_nano.windows(list(range(10, 10 + length)), bos=1)
        ]
        assert [token for part in new for token in part] == list(range(10, 10 + length))


def test_nats_do_not_depend_on_the_batch_and_are_the_model_loss(work):
    model, tokenizer = eval_nano.load(work / "nano-lm", AutoModelForCausalLM)
    scorer = eval_nano.LanguageModel(model, tokenizer)
    texts = [PARAGRAPH, "A cat sat.", PARAGRAPH[:100]]
    assert_close(scorer(texts), [scorer([text])[0] for text in texts], rtol=1e-5, atol=1e-3)
    ids = torch.tensor([tokenizer(PARAGRAPH).input_ids])
    with torch.inference_mode():
        nats = float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
    assert_close(scorer(texts)[0], nats, rtol=1e-5, atol=1e-3)


def test_states_do_not_depend_on_padding(work):
    model, tokenizer = eval_nano.load(work / "nano-lm", AutoModelForCausalLM)
    together = eval_nano.states(model, tokenizer, ["A cat sat.", PARAGRAPH])
    alone = eval_nano.states(model, tokenizer, ["A cat sat."])
    for both, one in zip(together, alone, strict=True):
        assert_close(both[:, :1], one, rtol=1e-4, atol=1e-4)


def test_removing_the_top_component_leaves_what_is_orthogonal_to_it():
    torch.manual_seed(0)
    common = F.normalize(torch.randn(16), dim=0)
    rest = torch.randn(100, 16)
    vectors = eval_nano.without_top(rest - rest @ common[:, None] * common + 50 * common)
    assert (vectors @ common).abs().max() < 0.5
    assert torch.linalg.matrix_rank(vectors, atol=1e-3) == 15


def test_probe_sentences_differ_in_what_they_test():
    same, other, order = eval_nano.grammar_pairs().values()
    verbs = {("is", "are"), ("are", "is"), ("was", "were"), ("were", "was")}
    for right, wrong in same + other:
        changed = [(a, b) for a, b in zip(right.split(), wrong.split(), strict=True) if a != b]
        assert len(changed) == 1 and changed[0] in verbs
    for right, wrong in order:
        assert right != wrong
        assert Counter(right[:-1].lower().split()) == Counter(wrong[:-1].lower().split())


def test_distractor_agrees_or_not_as_its_kind_says():
    plurals = {eval_nano.plural(noun) for noun in eval_nano.NOUNS}
    same, other, _ = eval_nano.grammar_pairs().values()
    for pairs, agree in ((same, True), (other, False)):
        for right, _ in pairs:
            _, subject, _, _, distractor, verb, *_ = right.split()
            assert (subject in plurals) == (verb in ("are", "were"))
            assert ((subject in plurals) == (distractor in plurals)) == agree


def test_prompt_eol_cleans_text_as_the_paper_does():
    assert (
        eval_nano.prompt_eol('Is it "so"?') == 'This sentence : "Is it \'so\'." means in one word:"'
    )
    assert eval_nano.prompt_eol("A dog runs") == 'This sentence : "A dog runs." means in one word:"'
