"""The page's model in Node, from the file that a page contains, against PyTorch: logits, attention, text, sampling."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok, trained
from models import CHOICES, NEEDS, every_pair, ids, largest, shaken, small
from pages import FILE, node, page_data
from torch import Tensor

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.store import load
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer, GPT2Tokenizer, tokenizer_from_dict
from tinygpt.examine.report.weights import pack
from tinygpt.generate import Sampling, generate, probabilities
from tinygpt.model import ACTIVATIONS, GPT, GPTConfig
from tinygpt.options import POSITIONS, Learned, Position, Rotary, rotate

SYMBOLS = CharTokenizer(map(chr, range(ord("0"), ord("0") + 65)))  # for models of 65 tokens


class Biased(Position):
    """A bias that differs between heads and is not linear in the distance."""

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        slopes = torch.arange(1, self.n_head + 1)[:, None, None] / self.n_head
        return -slopes * (queries[:, None] - keys).clamp(min=0) ** 0.7


class BiasedRotary(Biased, Rotary):
    pass


class BiasedLearned(Biased, Learned):
    pass


TEST_POSITIONS = {"none": Position, "bias": Biased, "bias-rotary": BiasedRotary, "bias-learned": BiasedLearned}
EVERY_POSITION: dict[str, type[Position]] = TEST_POSITIONS | POSITIONS
every_position = pytest.mark.parametrize("position", EVERY_POSITION)
THREE_HEADS = {"n_head": 3, "n_embd": 24}
GROUPED = {"n_head": 4, "n_kv_head": 2, "qk_norm": True, "qk_norm_weights": True}


@pytest.fixture(autouse=True)
def more_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add positions for these tests, which use each method of `Position` alone and together."""
    for name, kind in TEST_POSITIONS.items():
        monkeypatch.setitem(POSITIONS, name, kind)


# ---- logits ------------------------------------------------------------------------------------------------------


@every_pair
@torch.inference_mode()
def test_logits_are_pytorchs(options: dict[str, Any]) -> None:
    idx = ids(2, 16)
    models = [shaken(small(**size | options), std=0.2) for size in ({}, THREE_HEADS, {"n_head": 4, "n_kv_head": 2})]
    packed = [(pack(model, SYMBOLS, half=False), pack(model, SYMBOLS)) for model in models]
    code = "return input.packed.map((two) => two.map((packed) => input.ids.map((row) => read(packed, row))))"
    for model, found in zip(models, node(code, packed=packed, ids=idx.tolist()), strict=True):
        full, half = torch.tensor(found)
        expected, rounded = model(idx)[0], copy.deepcopy(model).half().float()(idx)[0]
        assert largest(full - expected) < 1e-4
        assert largest(half - expected) < 2e-2
        assert largest(half - rounded) < 1e-4  # half precision changes only the weights
        model.transformer["h"][0].attn.c_proj.weight[0, 0] += 1  # negative control: one weight of thousands
        assert largest(half - model(idx)[0]) > 2e-2


@pytest.mark.parametrize("option", ["n_head", *(name for name in CHOICES if name not in ("tie_weights", "zero_init"))])
@torch.inference_mode()
def test_another_value_of_an_option_gives_other_logits(option: str) -> None:
    """With the same weights where both models have them. (Then tie_weights and zero_init change nothing.)"""
    idx, values = ids(16), {**CHOICES, "position": [*EVERY_POSITION], "n_head": [1, 2]}[option]
    for value in values:
        ordered, needs = sorted(values, key=lambda v: v != value), NEEDS.get(option, {})
        model, *others = [shaken(small(**needs, **{option: one}), std=0.2) for one in ordered]
        weights = model.state_dict()
        for other in others:
            for name, weight in other.state_dict().items():
                if name in weights and weights[name].shape == weight.shape:
                    weight.copy_(weights[name])
        packed = [pack(one, SYMBOLS, half=False) for one in (model, *others)]
        found = node("return input.packed.map((one) => read(one, input.ids))", packed=packed, ids=idx.tolist())
        same, *different = torch.tensor(found) - model(idx[None])[0][0]
        assert largest(same) < 1e-4
        # the two forms of GELU differ least
        assert all(largest(difference) > (1e-3 if option == "activation" else 0.1) for difference in different)


@every_pair
@torch.inference_mode()
def test_every_option_past_the_window(options: dict[str, Any]) -> None:
    relative = "rope" if small(**options).position.embeds else options["position"]
    compare_past_the_window(shaken(small(**THREE_HEADS | options | {"position": relative}), std=0.2), 80)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["rope", "bias-rotary"])
@torch.inference_mode()
def test_relative_positions_far_past_the_window(position: str) -> None:
    """So far that angles without Python's rounding to float32 would differ too much."""
    compare_past_the_window(
        shaken(small(position=position, **GROUPED, token_shift=True, bigram_table=True), std=0.2), 1000
    )


def test_frequencies_are_those_of_rope() -> None:
    """As RoFormer defines them; within 1e-10, so that angles at position 10,000 differ by less than float32 rounds."""
    exact = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    found = pack(small(position="rope", n_embd=128), SYMBOLS)["position"]["frequencies"]
    torch.testing.assert_close(torch.tensor(found), torch.cat((-exact, exact)), atol=1e-10, rtol=0)
    assert pack(small(), SYMBOLS)["position"]["frequencies"] is None


def compare_past_the_window(model: GPT, length: int) -> None:
    """Compare caches that drop the oldest position, in both languages, and the last window alone."""
    idx, cache = ids(1, length), model.new_cache(1)
    expected = torch.cat([model(token, cache=cache)[0][:, -1] for token in idx.split(1, dim=1)])
    packed, given = pack(model, SYMBOLS, half=False), idx[0].tolist()
    code = """const { packed, ids } = input;
              return [read(packed, ids), follow(packed, ids, 16), read(packed, ids.slice(-16))];"""
    found, followed, window = [torch.tensor(one) for one in node(code, packed=packed, ids=given)]
    assert largest(found - expected) < 2e-5
    assert largest(followed - expected[16:]) < 2e-5
    assert largest(window - model(idx[:, -16:])[0][0]) < 2e-5
    assert largest(window[-1] - found[-1]) > 1e-3  # negative control: a cache remembers more than a window of tokens


@pytest.mark.parametrize("files", ["out-finetune", "out-lora", "out out-lora/adapter.pt"])
@torch.inference_mode()
def test_checkpoints_of_finetuning(tuned: Path, files: str) -> None:
    checkpoint = load_model(*[str(tuned / name) for name in files.split()])
    tokenizer, model = tokenizer_from_dict(checkpoint.tokenizer, files), checkpoint.build_model().eval()
    assert isinstance(tokenizer, CharTokenizer) and set(tokenizer.special) == set(SPECIAL)
    example, prompt = tokenizer.encode_pair("123 red", "red").tolist(), tokenizer.encode_prompt("041 blue").tolist()
    code = """const { full, half, example, prompt } = input;
              return [read(full, example), read(half, example), greedy(full, prompt, 60)];"""
    packed = {"full": pack(model, tokenizer, half=False), "half": pack(model, tokenizer)}
    full, half, answer = node(code, **packed, example=example, prompt=prompt)
    expected = model(torch.tensor([example]))[0][0]
    assert largest(torch.tensor(full) - expected) < 1e-4
    assert largest(torch.tensor(half) - expected) < 2e-2
    assert answer == greedy(model, prompt, 60)
    base, red = load_model(str(tuned / "out")).build_model().eval(), torch.tensor([tokenizer.encode("red").tolist()])
    assert largest(model(red)[0][..., : base.config.vocab_size] - base(red)[0]) > 0.1  # it is not the base's logits


# ---- text --------------------------------------------------------------------------------------------------------


def greedy(model: GPT, prompt: list[int], count: int, exact_window: bool = False) -> list[int]:
    tokens = generate(model, torch.tensor([prompt]), count, Sampling(temperature=0), exact_window=exact_window)
    return [int(token[0]) for token in tokens]


@pytest.mark.parametrize(
    "options",
    [
        {"token_shift": True, "bigram_table": True},
        {"block_size": 1},
        *({"position": position, "token_shift": True} for position in POSITIONS),
        *(pytest.param({"position": name, "token_shift": True}, marks=pytest.mark.slow) for name in TEST_POSITIONS),
    ],
    ids=str,
)
def test_greedy_text_is_pythons(options: dict[str, Any]) -> None:
    model, prompts = shaken(small(**options)), [ids(length).tolist() for length in (1, 25)]
    expected = [greedy(model, prompt, 120) for prompt in prompts]
    code = "return input.prompts.map((prompt) => greedy(input.packed, prompt, 120))"
    assert node(code, packed=pack(model, SYMBOLS, half=False), prompts=prompts) == expected
    if "block_size" not in options:  # negative control: at the end of a window, the two methods differ
        assert len(set(expected[1])) > 5 and greedy(model, prompts[1], 120, exact_window=True) != expected[1]


def test_greedy_text_of_a_trained_model(tiny_run: Path) -> None:
    """Python's weights are rounded to half precision as well, which matters where two characters nearly tie."""
    checkpoint = load_model(str(tiny_run / "out"))
    tokenizer = tokenizer_from_dict(checkpoint.tokenizer, "out")
    model = checkpoint.build_model().half().float().eval()
    code = """const model = TinyGPT.load(input.packed);
              return model.decode(greedy(input.packed, model.encode("The king").ids, 200));"""
    text = node(code, packed=pack(model, tokenizer))
    assert text == tokenizer.decode(greedy(model, tokenizer.encode("The king").tolist(), 200))


def test_characters_and_special_tokens() -> None:
    characters = "\n ab\u00e9\U0001f600"  # the last one takes two units of JavaScript's strings
    tokenizer = CharTokenizer([*characters, *SPECIAL])
    model = small(vocab_size=tokenizer.vocab_size)
    text = "a\U0001f600?b<|end|>\u00e9\U0001d11e\n"
    code = """const model = TinyGPT.load(input.packed);
              return [model.encode(input.text), model.decode(model.vocabulary.keys()), model.special];"""
    found, decoded, special = node(code, packed=pack(model, tokenizer), text=text)
    assert found["ids"] == tokenizer.encode(text, skip_unknown=True).tolist()
    assert found["unknown"] == [place for place, character in enumerate(text) if character not in characters]
    assert decoded == tokenizer.decode(range(tokenizer.vocab_size)) and special == tokenizer.special


# ---- attention ---------------------------------------------------------------------------------------------------


def attention_by_hand(model: GPT, idx: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) for idx (1, T), with a whole matrix of scores: (n_layer, n_head, T, T)."""
    config, T = model.config, idx.size(1)
    head_dim = config.n_embd // config.n_head
    x = model.transformer["wte"](idx)
    if config.bigram_table:  # token 0 precedes the first
        x = x + model.transformer["wbe"](torch.nn.functional.pad(idx[:, :-1], (1, 0)) * config.vocab_size + idx)
    context = model.context(torch.arange(T))
    if model.position.embeds:
        x = x + model.transformer["wpe"].weight[:T]
    layers = []
    for block in model.transformer["h"]:
        qkv = block.attn.c_attn(block.shifted(block.ln_1(x), context, 0))
        q, k, _ = qkv.view(T, -1, head_dim).transpose(0, 1).split(block.attn.heads)  # (heads, T, head_dim)
        if config.qk_norm:
            q, k = (torch.nn.functional.rms_norm(part, (head_dim,), eps=1e-6) for part in (q, k))
        if config.qk_norm_weights:
            q, k = q * block.attn.q_norm.weight, k * block.attn.k_norm.weight
        if context.rotation is not None:
            q, k = rotate(q, context.rotation), rotate(k, context.rotation)
        k = k[[head * config.kv_heads // config.n_head for head in range(config.n_head)]]  # heads 0, 0, 1, 1, ...
        scores, bias = q @ k.transpose(1, 2) / head_dim**0.5, model.position.bias(torch.arange(T), torch.arange(T))
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        layers.append((scores + (0 if bias is None else bias)).masked_fill(future, -torch.inf).softmax(-1))
        x = block(x, context)
    return torch.stack(layers)


ATTENTION = """
const state = TinyGPT.load(input.packed).start();
return input.ids.map((id) => (state.read(id, true), state.attention.map((heads) => heads.map((row) => [...row]))));
"""


@every_position
@torch.inference_mode()
def test_attention_is_the_one_by_hand(position: str) -> None:
    """And past the window in the order of positions: with one layer a rolled window is the same as one from position
    0 (test_decoder.py says why)."""
    idx, found = ids(1, 40), []
    models = [
        shaken(small(position=position, **more)) for more in ({}, {"qk_norm": True, "token_shift": True}, GROUPED)
    ]
    models += [shaken(small(n_layer=1, position=position))]
    for model in models:
        length = 40 if model is models[-1] and model.position.relative else 16
        found = node(ATTENTION, packed=pack(model, SYMBOLS, half=False), ids=idx[0, :length].tolist())
        expected = attention_by_hand(model, idx[:, :16])
        for row, layers in enumerate(found[:16]):
            rows = torch.tensor(layers, dtype=torch.float32)  # (n_layer, n_head, row + 1)
            torch.testing.assert_close(rows.sum(-1), torch.ones(model.config.n_layer, model.config.n_head))
            torch.testing.assert_close(rows, expected[:, :, row, : row + 1], atol=1e-5, rtol=0)
        assert largest(expected[0, 0, 15] - expected[0, 1, 15]) > 0.01  # negative control: heads differ
    for end in (17, 24, 40) if len(found) == 40 else ():
        rows = torch.tensor(found[end - 1])
        expected = attention_by_hand(model, idx[:, end - 16 : end])[:, :, -1]
        torch.testing.assert_close(rows, expected, atol=1e-4, rtol=0)
        assert largest(rows.roll(1, -1) - expected) > 0.01


# ---- block_size 1 ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_reads_one_token_has_a_report_and_a_page(work: Path) -> None:
    """With block_size 1, Python and JavaScript predict each character from the preceding one only: a bigram model."""
    trained(work, "--block_size=1", "--quiet")
    for command in (["report", "out"], ["export"]):
        assert ok(work, *command).err == ""
    data, exported = (page_data(work / f"out/{name}.html") for name in ("report", "model"))
    (packed,), (again,) = ([one["packed"] for one in page["models"]] for page in (data, exported))
    assert packed == again
    checkpoint = load(work / "out")
    model, tokenizer = checkpoint.build_model().eval(), tokenizer_from_dict(checkpoint.tokenizer, "")
    text = Dataset(str(work / "data"), "tiny").splits["val"]
    first = max(1, min(len(text) // 2, len(text) - 600))
    first += tokenizer.decode(text[first : first + 200].tolist()).index("\n") + 1
    tokens = torch.from_numpy(text[first - 1 : first + 600].astype(np.int64))
    with torch.no_grad():
        logits = model(tokens[:-1, None])[0][:, 0]  # a row for each character, from the one before
    chances = logits.softmax(-1).gather(1, tokens[1:, None])[:, 0]
    assert [cell[1] for cell in data["cells"]["val"]] == pytest.approx(chances.tolist(), abs=1e-5)
    code = """const { packed, ids } = input;
              return [ids.map((id) => [...TinyGPT.load(packed).reader([id]).logits]), follow(packed, ids, 1)];"""
    read, followed = map(torch.tensor, node(code, packed=packed, ids=tokens[:20].tolist()))
    assert largest(read - logits[:20]) < 2e-2  # in half precision
    assert largest(followed - logits[1:20]) < 2e-2


# ---- a walk through one prediction ---------------------------------------------------------------------------------

ODD = {"bigram_table": True, "token_shift": True, "position": "none", "activation": "swiglu", "norm": "rmsnorm"}


@pytest.mark.parametrize("options", [{}, ODD | GROUPED | {"n_layer": 3}], ids=["plain", "odd"])
@torch.inference_mode()
def test_the_walk_shows_the_values_of_pytorch(options: dict[str, Any]) -> None:
    """Embedding, attention, MLP activations and the sum after each block, of the last token, by forward hooks."""
    model, idx = shaken(small(**options), std=0.2), ids(1, 16)
    expected: dict[str, list[Tensor]] = {"embedding": [], "hidden": [], "residual": []}
    blocks = model.transformer["h"]
    blocks[0].register_forward_pre_hook(lambda _, inputs: expected["embedding"].append(inputs[0][0, -1]))
    for block in blocks:
        block.mlp.c_proj.register_forward_pre_hook(lambda _, inputs: expected["hidden"].append(inputs[0][0, -1]))
        block.register_forward_hook(lambda _, inputs, output: expected["residual"].append(output[0, -1]))
    chances = model(idx)[0][0, -1].softmax(-1)
    code = """const { logits, state: { trace, attention } } = TinyGPT.load(input.packed).reader(input.ids, true);
              const lists = (values) => values.map((one) => [...one]);
              return { embedding: lists([trace.embedding]), hidden: lists(trace.hidden),
                       residual: lists(trace.residual),
                       attention: attention.map(lists), raw: [...TinyGPT.probabilities(logits).raw],
                       none: TinyGPT.load(input.packed).reader(input.ids).state.trace };"""
    found = node(code, packed=pack(model, SYMBOLS, half=False), ids=idx[0].tolist())
    assert found["none"] is None
    for name, tensors in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.stack(tensors), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(found["raw"]), chances, atol=1e-5, rtol=0)
    weights = attention_by_hand(model, idx)[:, :, -1]
    torch.testing.assert_close(torch.tensor(found["attention"]), weights, atol=1e-5, rtol=0)
    hidden, residual = expected["hidden"], expected["residual"]  # negative controls: the layers differ
    assert largest(hidden[0] - hidden[1]) > 0.1 and largest(residual[0] - residual[1]) > 0.1


# ---- the next token ----------------------------------------------------------------------------------------------


def test_the_stages_are_those_of_generate() -> None:
    generator = torch.Generator().manual_seed(4)
    some = (torch.randperm(1200, generator=generator)[:195].view(3, 65) - 600) / 64  # float32 keeps them apart
    apart = [*some, torch.tensor([1.0]), torch.tensor([20.0, 19.99998])]  # the last matter at a tiny temperature
    neighbours = (torch.tensor([3.9]).view(torch.int32) + torch.arange(8, dtype=torch.int32)).view(torch.float32)
    assert len((neighbours / 3.0).unique()) < 8  # at temperature 3 some of them tie, in float32
    tied = [torch.tensor([2.0, 1.0, 1.0, 1.0, 0.5, -3.0, 2.0]).repeat(9), torch.zeros(10), torch.zeros(3), neighbours]
    rows = [*apart, *tied]
    reach = (1.0, 0.9, 2 / 3, 0.4, 0.01)
    settings = [(t, k, p) for t in (0.0, 1e-5, 0.5, 1.0, 3.0) for k in (0, 1, 3, 70) for p in reach]
    code = """return input.rows.map((row) => input.settings.map(([temperature, topK, topP]) => {
                const found = TinyGPT.probabilities(Float32Array.from(row), { temperature, topK, topP });
                return ["raw", "temperature", "topK", "topP"].map((stage) => [...found[stage]]);
              }));"""
    found = node(code, rows=[row.tolist() for row in rows], settings=settings)
    for row, (logits, answers) in enumerate(zip(rows, found, strict=True)):
        for (t, k, p), stages in zip(settings, answers, strict=True):
            stages = torch.tensor(stages, dtype=torch.float64)
            expected = [probabilities(logits, *choice) for choice in ((1.0,), (t,), (t, k), (t, k, p))]
            torch.testing.assert_close(stages.sum(-1), torch.ones(4, dtype=torch.float64), atol=1e-12, rtol=0)
            if row >= len(apart):  # which of equal tokens top_p keeps is unspecified
                stages[3], expected[3] = stages[3].sort().values, expected[3].sort().values
            torch.testing.assert_close(stages.float(), torch.stack(expected), atol=1e-6, rtol=0)
    first = dict(zip(settings, found[0], strict=True))  # negative control
    assert largest(torch.tensor(first[1.0, 3, 1.0][3]) - probabilities(rows[0], 1.0, 2)) > 1e-3


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    chances, count = [0.5, 0.0, 0.3, 0.2, 0.0], 20_000
    code = """const some = (seed) => Array.from({ length: input.count }, TinyGPT.random(seed));
              const numbers = some(1);
              return { numbers, again: some(1), other: some(2), ids: numbers.map((u) => TinyGPT.draw(input.chances, u)),
                       ends: [0, 0.5, 1 - 2 ** -53].map((u) => TinyGPT.draw(input.chances, u)),
                       beyond: TinyGPT.draw([...Array(10).fill(0.1), 0], 1 - 2 ** -53) };"""
    found = node(code, chances=chances, count=count)
    assert min(found["numbers"]) >= 0 and max(found["numbers"]) < 1
    assert found["again"] == found["numbers"] and not set(found["other"]) & set(found["numbers"][:100])
    drawn = torch.bincount(torch.tensor(found["ids"]), minlength=5) / count
    expected = torch.tensor(chances)
    assert ((drawn - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt()).all()  # four standard errors
    assert found["ends"] == [0, 2, 3]
    assert found["beyond"] == 9  # ten times 0.1 is 1 - 2^-53, and 0 is never drawn


# ---- the packed model and its limits -----------------------------------------------------------------------------


def test_the_head_is_kept_once_and_half_precision_halves() -> None:
    model = small()
    full, half = pack(model, SYMBOLS, half=False), pack(model, SYMBOLS)
    assert (full["dtype"], half["dtype"]) == ("float32", "float16")
    assert full["config"] == dataclasses.asdict(model.config) and full["vocabulary"] == SYMBOLS.symbols
    assert "lm_head.weight" not in full["tensors"] and "lm_head.weight" in model.state_dict()
    assert "lm_head.weight" in pack(small(tie_weights=False), SYMBOLS)["tensors"]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert len(full["data"]) == pytest.approx(count * 4 * 4 / 3, abs=4)
    assert len(half["data"]) == pytest.approx(count * 2 * 4 / 3, abs=4)


@torch.inference_mode()
def test_every_number_of_half_precision_is_read_exactly() -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).float()
    finite = numbers[numbers.isfinite()].view(-1, 32)
    model = small(vocab_size=len(finite), n_layer=1)
    model.transformer["wte"].weight.copy_(finite)
    packed = pack(model, CharTokenizer(map(chr, range(100, 100 + len(finite)))))
    assert packed["dtype"] == "float16"
    found = torch.tensor(node("return [...TinyGPT.load(input.packed).wte]", packed=packed))
    assert torch.equal(found.view(-1, 32), finite)


@torch.inference_mode()
def test_weights_too_large_for_half_precision_stay_single() -> None:
    model, idx = small(), ids(1, 16)
    model.transformer["h"][0].mlp.c_fc.weight[0, 0] = 70_000.0
    packed = pack(model, SYMBOLS)
    assert packed["dtype"] == "float32"
    found = torch.tensor(node("return read(input.packed, input.ids)", packed=packed, ids=idx[0].tolist()))
    assert largest(found - model(idx)[0]) < 1e-4


@pytest.mark.parametrize("options", [{}, {"tie_weights": False, "bigram_table": True}], ids=str)
@torch.inference_mode()
def test_rows_without_a_token_are_left_out(options: dict[str, Any]) -> None:
    model, idx = shaken(small(**options)), ids(1, 16, vocab_size=50)
    packed = pack(model, CharTokenizer(SYMBOLS.symbols[:50]), half=False)
    assert packed["config"]["vocab_size"] == 50
    found = torch.tensor(node("return read(input.packed, input.ids)", packed=packed, ids=idx[0].tolist()))
    assert found.shape == (16, 50) and largest(found - model(idx)[0][..., :50]) < 1e-4


def test_models_that_a_page_cannot_hold_are_refused() -> None:
    with pytest.raises(TinyGPTError, match="subword tokenizer") as caught:
        pack(small(), GPT2Tokenizer())
    assert "--format=gguf" in caught.value.hint and "--tokenizer=char" in caught.value.hint
    diverged = small()
    diverged.transformer["ln_f"].weight.data[3] = torch.nan
    with pytest.raises(TinyGPTError, match="weights are NaN: training diverged"):
        pack(diverged, SYMBOLS)


def test_an_option_without_javascript_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, "relu", torch.relu)
    with pytest.raises(TinyGPTError, match="the page's JavaScript does not implement activation=relu"):
        pack(small(activation="relu"), SYMBOLS)
    model, with_softcap = small(), dataclasses.make_dataclass("Config", [("softcap", float, 0.0)], bases=(GPTConfig,))
    model.config = with_softcap(**dataclasses.asdict(model.config))
    assert pack(model, SYMBOLS)["config"]["softcap"] == 0.0  # the default: as if there were no such option
    model.config.softcap = 30  # type: ignore[attr-defined]
    with pytest.raises(TinyGPTError, match="does not implement softcap=30"):
        pack(model, SYMBOLS)


def test_mistakes_of_a_caller_are_errors() -> None:
    code = """const caught = (act) => { try { act(); return "nothing"; } catch (error) { return error.message; } };
              const model = TinyGPT.load(input.packed), state = model.start();
              for (let i = 0; i < 16; i++) state.read(0);
              const loadWith = (config) => TinyGPT.load({ ...input.packed, config: { ...model.config, ...config } });
              return [() => loadWith({ norm: "softmax" }), () => loadWith({ activation: "toString" }),
                      () => model.reader([]), () => state.read(65), () => state.read("1"), () => state.read(0)]
                .map(caught);"""
    expected = ["norm=softmax", "activation=toString", "nothing to read", "id 65", "id 1", "window is full"]
    for message, part in zip(node(code, packed=pack(small(), SYMBOLS)), expected, strict=True):
        assert part in message


def test_a_page_can_inline_the_file() -> None:
    """As a script it needs the language and `atob` (BPE also TextEncoder and TextDecoder), and works where code out of
    text is forbidden."""
    source = FILE.read_text(encoding="utf-8")
    assert "</script" not in source and "<!--" not in source
    code = """const vm = require("vm"), page = vm.createContext({ atob }, { codeGeneration: { strings: false } });
              vm.runInContext(input.source, page);
              const run = (text) => { try { return vm.runInContext(text, page); } catch (e) { return e.name; } };
              const names = run("Object.keys(TinyGPT)"), logits = run(`TinyGPT.load(${input.packed}).start().read(3)`);
              return [[...names], [...logits], run("eval('1')"), run("document")];"""
    packed = pack(small(), SYMBOLS)
    names, logits, *refused = node(code, source=source, packed=json.dumps(packed))
    assert names == ["load", "weights", "probabilities", "random", "draw"]
    assert refused == ["EvalError", "ReferenceError"]
    assert [logits] == node("return read(input.packed, [3])", packed=packed)
