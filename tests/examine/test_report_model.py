"""The page's model in Node, from the file that a page contains, against PyTorch: logits, attention, text, sampling."""

import copy
from typing import Any

import pytest
import torch
from models import EVERYDAY, every_pair, ids, largest, shaken, small
from pages import node
from torch import Tensor

from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer
from tinygpt.examine.report.weights import pack
from tinygpt.generate import Sampling, generate, probabilities
from tinygpt.model import ACTIVATIONS, GPT

SYMBOLS = CharTokenizer(map(chr, range(ord("0"), ord("0") + 65)))  # for models of 65 tokens
THREE_HEADS = {"n_head": 3, "n_embd": 24}
GROUPED = {"n_head": 4, "n_kv_head": 2, "qk_norm": True, "qk_norm_weights": True}


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


@pytest.mark.parametrize("options", EVERYDAY, ids=str)
@torch.inference_mode()
def test_every_option_past_the_window(options: dict[str, Any]) -> None:
    """Compare caches that drop the oldest position, in both languages."""
    relative = {"position": "rope"} if small(**options).position.embeds else {}
    model = shaken(small(**THREE_HEADS | options | relative), std=0.2)
    idx, cache = ids(1, 60), model.new_cache(1)
    expected = torch.cat([model(token, cache=cache)[0][:, -1] for token in idx.split(1, dim=1)])
    code = "return [read(input.packed, input.ids), follow(input.packed, input.ids, 16)]"
    read, followed = map(torch.tensor, node(code, packed=pack(model, SYMBOLS, half=False), ids=idx[0].tolist()))
    assert largest(read - expected) < 2e-5 and largest(followed - expected[16:]) < 2e-5
    window = model(idx[:, -16:])[0][0, -1]
    assert largest(window - read[-1]) > 1e-3  # negative control: a cache remembers more than a window of tokens


def greedy(model: GPT, prompt: list[int], count: int, exact_window: bool = False) -> list[int]:
    tokens = generate(model, torch.tensor([prompt]), count, Sampling(temperature=0), exact_window=exact_window)
    return [int(token[0]) for token in tokens]


@pytest.mark.parametrize(
    "options",
    [{"token_shift": True, "bigram_table": True}, {"block_size": 1}, {"position": "rope"}, {"position": "alibi"}],
    ids=str,
)
def test_greedy_text_is_pythons(options: dict[str, Any]) -> None:
    model, prompts = shaken(small(**options)), [ids(length).tolist() for length in (1, 25)]
    expected = [greedy(model, prompt, 120) for prompt in prompts]
    code = "return input.prompts.map((prompt) => greedy(input.packed, prompt, 120))"
    assert node(code, packed=pack(model, SYMBOLS, half=False), prompts=prompts) == expected
    if "block_size" not in options:  # negative control: at the end of a window, the two methods differ
        assert len(set(expected[1])) > 5 and greedy(model, prompts[1], 120, exact_window=True) != expected[1]


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


ODD = {"bigram_table": True, "token_shift": True, "position": "alibi", "activation": "swiglu", "norm": "rmsnorm"}


@pytest.mark.parametrize("options", [{}, ODD | GROUPED | {"n_layer": 3}], ids=["plain", "odd"])
@torch.inference_mode()
def test_the_walk_shows_the_values_of_pytorch(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding, attention, MLP activations and the sum after each block, of the last token, by forward hooks."""
    model, idx, attend = shaken(small(**options), std=0.2), ids(1, 16), torch.nn.functional.scaled_dot_product_attention
    expected: dict[str, list[Tensor]] = {"embedding": [], "attention": [], "hidden": [], "residual": []}

    def recorded(q: Tensor, k: Tensor, v: Tensor, *more: Any, **options: Any) -> Tensor:
        weights = attend(q, k, torch.eye(16).expand(1, k.size(1), 16, 16), *more, **options)
        expected["attention"].append(weights[0, :, -1])
        return attend(q, k, v, *more, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    blocks = model.transformer["h"]
    blocks[0].register_forward_pre_hook(lambda _, inputs: expected["embedding"].append(inputs[0][0, -1]))
    for block in blocks:
        block.mlp.c_proj.register_forward_pre_hook(lambda _, inputs: expected["hidden"].append(inputs[0][0, -1]))
        block.register_forward_hook(lambda _, inputs, output: expected["residual"].append(output[0, -1]))
    model(idx)
    code = """const { trace, attention } = TinyGPT.load(input.packed).reader(input.ids, true).state;
              const lists = (values) => values.map((one) => [...one]);
              return { embedding: lists([trace.embedding]), attention: attention.map(lists),
                       hidden: lists(trace.hidden), residual: lists(trace.residual) };"""
    found = node(code, packed=pack(model, SYMBOLS, half=False), ids=idx[0].tolist())
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.stack(values), atol=1e-4, rtol=0)
        assert name == "embedding" or largest(values[0] - values[1]) > 0.1  # negative control: layers differ


def test_the_stages_are_those_of_generate() -> None:
    generator = torch.Generator().manual_seed(4)
    some = (torch.randperm(1200, generator=generator)[:195].view(3, 65) - 600) / 64  # float32 keeps them apart
    apart = [*some, torch.tensor([1.0]), torch.tensor([20.0, 19.99998])]  # the last matter at a tiny temperature
    neighbours = (torch.tensor([3.9]).view(torch.int32) + torch.arange(8, dtype=torch.int32)).view(torch.float32)
    tied = [torch.tensor([2.0, 1.0, 1.0, 1.0, 0.5, -3.0, 2.0]).repeat(9), torch.zeros(3), neighbours]
    rows = [*apart, *tied]
    reach = (1.0, 0.9, 2 / 3, 0.01)
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


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    chances, count = [0.5, 0.0, 0.3, 0.2, 0.0], 20_000
    code = """const some = (seed) => Array.from({ length: input.count }, TinyGPT.random(seed));
              const numbers = some(1);
              return { numbers, again: some(1), other: some(2), ids: numbers.map((u) => TinyGPT.draw(input.chances, u)),
                       ends: [0, 0.5, 1 - 2 ** -53].map((u) => TinyGPT.draw(input.chances, u)) };"""
    found = node(code, chances=chances, count=count)
    assert min(found["numbers"]) >= 0 and max(found["numbers"]) < 1
    assert found["again"] == found["numbers"] and not set(found["other"]) & set(found["numbers"][:100])
    drawn, expected = torch.bincount(torch.tensor(found["ids"]), minlength=5) / count, torch.tensor(chances)
    assert ((drawn - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt()).all()  # four standard errors
    assert found["ends"] == [0, 2, 3]


@torch.inference_mode()
def test_every_number_of_half_precision_is_read_exactly() -> None:
    """A head with the weights of the embedding is kept once, and a number too large for it in single precision."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).float()
    finite = numbers[numbers.isfinite()].view(-1, 32)
    model = small(vocab_size=len(finite), n_layer=1)
    symbols = CharTokenizer(map(chr, range(100, 100 + len(finite))))
    for dtype, most in (("float16", finite[0, 0]), ("float32", 70_000.0)):
        finite[0, 0] = most
        model.transformer["wte"].weight.copy_(finite)
        packed = pack(model, symbols)
        assert packed["dtype"] == dtype and "lm_head.weight" not in packed["tensors"]
        found = torch.tensor(node("return [...TinyGPT.load(input.packed).wte]", packed=packed))
        assert torch.equal(found.view(-1, 32), finite)


@pytest.mark.parametrize("options", [{}, {"tie_weights": False, "bigram_table": True}], ids=str)
@torch.inference_mode()
def test_rows_without_a_token_are_left_out(options: dict[str, Any]) -> None:
    model, idx = shaken(small(**options)), ids(1, 16, vocab_size=50)
    packed = pack(model, CharTokenizer(SYMBOLS.symbols[:50]), half=False)
    assert packed["config"]["vocab_size"] == 50
    found = torch.tensor(node("return read(input.packed, input.ids)", packed=packed, ids=idx[0].tolist()))
    assert found.shape == (16, 50) and largest(found - model(idx)[0][..., :50]) < 1e-4


def test_a_model_whose_activation_the_page_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, "relu", torch.relu)
    with pytest.raises(TinyGPTError, match="the page's JavaScript does not implement activation=relu"):
        pack(small(activation="relu"), SYMBOLS)
