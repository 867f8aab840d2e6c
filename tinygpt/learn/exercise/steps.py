"""The checks of the ten steps, as tests for pytest: properties of a correct solution, on small inputs.

`tinygpt exercise check` runs them through runner.py. To run them directly, with pytest's own options:

    python -m pytest -p tinygpt.learn.exercise.child --pyargs tinygpt.learn.exercise.steps --file my_gpt.py -k Step4

The fixture `my` is the student's module (child.py). Any code that does what the template's docstrings say passes.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from tinygpt.model import GPT, GPTConfig


class CheckFailed(AssertionError):
    """A property that does not hold. Its argument: {"given", "got", "expected"}, as texts."""


def check(name: str, look: str) -> Callable[[Any], Any]:
    """Mark a test with the property that it checks, and with the place where the mistake probably is if it fails."""

    def mark(test: Any) -> Any:
        test.check = {"check": name, "look": look}
        return test

    return mark


def expect(holds: Any, given: str, got: Any, expected: Any) -> None:
    """Check a property. Errors: CheckFailed unless it holds."""
    if not holds:
        raise CheckFailed({"given": given, "got": shown(got), "expected": shown(expected)})


def expect_equal(got: Any, expected: Any, given: str) -> None:
    expect(got == expected, given, got, expected)


def expect_number(got: float, expected: float, given: str, label: str = "", atol: float = 1e-6) -> None:
    expect(abs(got - expected) < atol, given, f"{label}{got:.4f}", f"{label}{expected:.4f}")


def expect_close(got: Any, expected: Tensor, given: str, atol: float = 1e-5) -> None:
    """Check shape and, up to rounding, values of a tensor. Errors: CheckFailed unless they are those of `expected`."""
    expect_shape(got, tuple(expected.shape), given)
    expect(torch.isfinite(got).all(), given, got, expected)
    expect(torch.allclose(got.float(), expected.float(), atol=atol, rtol=1e-4), given, got, expected)


def expect_shape(got: Any, shape: tuple[int, ...], given: str) -> None:
    expect(isinstance(got, Tensor), given, f"a {type(got).__name__}", "a tensor")
    expect(tuple(got.shape) == shape, given, f"a tensor of shape {tuple(got.shape)}", f"a tensor of shape {shape}")


def shown(value: Any) -> str:
    """Format a value in a few lines; a large tensor by its shape and first values."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, str) else repr(value)
    value = value.detach()
    if value.numel() > 40:
        flat = ", ".join(f"{x:.4g}" for x in value.flatten()[:6].tolist())
        return f"a tensor of shape {tuple(value.shape)}, beginning with {flat}, ..."
    numbers = nested(value.tolist()) if value.is_floating_point() else str(value.tolist())
    return numbers.replace("], [", "],\n [")


def nested(value: Any) -> str:
    return f"[{', '.join(map(nested, value))}]" if isinstance(value, list) else f"{value:.4f}"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: nn.Module) -> Any:
    """Draw weights large enough that every parameter changes the output."""
    for index, parameter in enumerate(module.parameters()):
        parameter.data = 0.5 * noise(*parameter.shape, seed=index)
    return module.eval()


def expect_causal(function: Callable[[Tensor], Tensor], x: Tensor, other: Tensor, inputs: str) -> None:
    """Check that no output depends on later positions: x and other differ only in the last two of T positions."""
    T = x.size(1)
    before, after = function(x), function(other)
    changed = [t for t in range(T - 2) if not torch.allclose(before[:, t], after[:, t], atol=1e-5)]
    given = f"two {inputs} of {T} positions that differ only at positions {T - 2} and {T - 1}"
    got, expected = f"different outputs at positions {changed}", f"the same outputs at positions 0 to {T - 3}"
    expect(not changed, given, got, expected)
    same_end = torch.allclose(before[:, -1], after[:, -1], atol=1e-6)
    expect(not same_end, given, f"the same output at position {T - 1}", f"different outputs at position {T - 1}")


class TestStep1:
    @check(
        "vocab_size is the number of distinct characters",
        "set(text) contains each character once",
    )
    def test_vocab_size(self, my: Any) -> None:
        expect_equal(my.CharTokenizer("hello").vocab_size, 4, "CharTokenizer('hello').vocab_size")

    @check(
        "token ids follow the sorted order of the characters",
        "sorted(set(text)): the order of a set can change from one run to the next",
    )
    def test_sorted_ids(self, my: Any) -> None:
        got = list(my.CharTokenizer("the cat").encode(" aceht"))
        expect_equal(got, [0, 1, 2, 3, 4, 5], "CharTokenizer('the cat').encode(' aceht')")

    @check(
        "decoding gives the text back",
        "decode must be the inverse of encode, for every character",
    )
    def test_round_trip(self, my: Any) -> None:
        text = "First Citizen:\nBefore we proceed, naïve €5!\n\n"
        own = my.CharTokenizer(text)
        got = own.decode(own.encode(text))
        expect(got == text, "a text with capitals, line breaks and accents, encoded and decoded", repr(got), repr(text))

    @check(
        "an unknown character raises an error that names it",
        "encode: a character that is not in the vocabulary",
    )
    def test_unknown_character(self, my: Any) -> None:
        given, expected = "CharTokenizer('hello').encode('hex')", "an error that names 'x'"
        try:
            got = my.CharTokenizer("hello").encode("hex")
        except Exception as error:
            expect("x" in str(error), given, f"{type(error).__name__}: {error}", expected)
        else:
            expect(False, given, got, expected)


def batch(my: Any, length: int, block: int, size: int, seed: int = 0) -> Any:
    return my.get_batch(torch.arange(length), block, size, torch.Generator().manual_seed(seed))


class TestStep2:
    @check(
        "the validation part is the end of the data, without overlap",
        "split the data before you draw windows from it",
    )
    def test_split(self, my: Any) -> None:
        train, val = my.split(torch.arange(10), 0.2)
        got = f"{train.tolist()} and {val.tolist()}"
        expect_equal(got, "[0, 1, 2, 3, 4, 5, 6, 7] and [8, 9]", "split(torch.arange(10), 0.2)")

    @check(
        "x and y are int64 of shape (batch_size, block_size)",
        "torch.stack: one window per row",
    )
    def test_shapes(self, my: Any) -> None:
        x, y = batch(my, 100, 8, 4)
        for name, part in (("x", x), ("y", y)):
            given = f"{name} of get_batch(torch.arange(100), 8, 4, generator)"
            expect_shape(part, (4, 8), given)
            expect_equal(str(part.dtype), "torch.int64", given)

    @check(
        "the target is the input shifted by one",
        "y starts one position after x, in the same window",
    )
    def test_shifted_target(self, my: Any) -> None:
        x, y = batch(my, 100, 8, 4)
        given = f"data 0, 1, 2, ..., 99; the window x[0] = {x[0].tolist()}"
        expect((x[:, 1:] == x[:, :-1] + 1).all(), given, x[0], "consecutive numbers")
        expect((y == x + 1).all(), given, f"y[0] = {y[0].tolist()}", f"y[0] = {(x[0] + 1).tolist()}")

    @check(
        "windows are random and depend only on the generator",
        "pass generator=generator to torch.randint",
    )
    def test_random_windows(self, my: Any) -> None:
        first, second = batch(my, 1000, 4, 6)[0], batch(my, 1000, 4, 6, seed=1)[0]
        starts = first[:, 0]
        expect(len(set(starts.tolist())) > 3, "6 windows of one batch", f"starts {starts.tolist()}", "different starts")
        given = "get_batch twice, with generators of the same seed"
        torch.manual_seed(1)
        again = batch(my, 1000, 4, 6)[0]
        expect(torch.equal(first, again), given, f"starts {again[:, 0].tolist()}", f"starts {starts.tolist()}")
        expect(not torch.equal(first, second), "generators of different seeds", "the same windows", "different ones")

    @check(
        "every window can be drawn, including the first and the last",
        "the last window starts block_size + 1 tokens before the end",
    )
    def test_every_window(self, my: Any) -> None:
        starts = sorted(set(batch(my, 7, 4, 300)[0][:, 0].tolist()))
        expect_equal(f"starts {starts}", "starts [0, 1, 2]", "300 windows of block_size 4 from 7 tokens")


PAIRS = torch.tensor([0, 1, 0, 1, 0, 2])  # after 0: twice 1, once 2; after 1: always 0
LOWEST = (2 * math.log(3 / 2) + math.log(3) + 2 * math.log(1)) / 5


class TestStep3:
    @check(
        "logits have shape (B, T, V), and the loss is None without targets",
        "logits = self.table(idx)",
    )
    def test_shapes(self, my: Any) -> None:
        logits, loss = my.Bigram(5)(torch.tensor([[0, 1, 2], [3, 4, 0]]))
        expect_shape(logits, (2, 3, 5), "the logits of Bigram(5) for idx of shape (2, 3)")
        expect(loss is None, "Bigram(5)(idx) without targets", loss, "None as the loss")

    @check(
        "the logits depend on the current character only",
        "look up one row of the table per character; ignore the characters before it",
    )
    def test_current_character_only(self, my: Any) -> None:
        model = randomise(my.Bigram(5))
        logits = model(torch.tensor([[1, 2, 3], [0, 2, 4]]))[0]
        expect_close(logits[1, 1], logits[0, 1], "the logits at position 1 of [0, 2, 4] and of [1, 2, 3]")
        expect_close(logits[0, 1], model.table.weight[2], "the logits after token 2, compared with row 2 of self.table")

    @check(
        "the loss is the mean cross-entropy in nats",
        "F.cross_entropy takes logits of shape (B T, V) and targets of shape (B T,)",
    )
    def test_loss(self, my: Any) -> None:
        model = my.Bigram(5)
        model.table.weight.data = 2 * noise(5, 5)
        idx, targets = torch.tensor([[0, 1, 2], [3, 4, 0]]), torch.tensor([[1, 2, 3], [4, 0, 2]])
        by_hand = -model.table.weight.log_softmax(1)[idx.flatten(), targets.flatten()].mean()
        given = "idx [[0, 1, 2], [3, 4, 0]], targets [[1, 2, 3], [4, 0, 2]]: -log softmax(row)[target], averaged"
        expect_close(model(idx, targets)[1], by_hand, given)

    @check(
        "counts_loss is the cross-entropy under the bigram frequencies",
        "p(next | current) = count(current, next) / count(current, any)",
    )
    def test_counts_loss(self, my: Any) -> None:
        got = float(my.counts_loss(PAIRS, 3))
        given = "counts_loss of 0 1 0 1 0 2, where p(1 | 0) = 2/3, p(2 | 0) = 1/3 and p(0 | 1) = 1"
        expect(abs(got - LOWEST) < 1e-4, given, f"{got:.4f}", f"(2 ln 3/2 + ln 3 + 2 ln 1) / 5 = {LOWEST:.4f}")

    @check(
        "training converges to the loss of the bigram frequencies",
        "the loss must be a tensor with a gradient: no .item(), no .detach()",
    )
    def test_convergence(self, my: Any) -> None:
        model = my.Bigram(3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            loss = model(PAIRS[None, :-1], PAIRS[None, 1:])[1]
            expect(isinstance(loss, Tensor) and loss.requires_grad, "the loss", shown(loss), "a tensor with a gradient")
            loss.backward()
            optimizer.step()
        expect_number(loss.item(), LOWEST, "300 training steps on 0 1 0 1 0 2, from random weights", "loss ", atol=0.02)


class TestStep4:
    @check(
        "each row of attention weights sums to one",
        "softmax over the last dimension, after the mask",
    )
    def test_rows_sum_to_one(self, my: Any) -> None:
        weights = my.attention_weights(noise(2, 5, 16), noise(2, 5, 16, seed=1))
        expect_shape(weights, (2, 5, 5), "attention_weights of q and k, both (2, 5, 16)")
        expect_close(weights.sum(-1), torch.ones(2, 5), "the sums of the rows of attention_weights(q, k)")

    @check(
        "no position attends to a later one",
        "set the scores of later positions to -inf before the softmax: torch.tril, masked_fill",
    )
    def test_causal(self, my: Any) -> None:
        weights = my.attention_weights(noise(1, 4, 16), noise(1, 4, 16, seed=1))[0]
        later = [(t, s) for t in range(4) for s in range(t + 1, 4) if weights[t, s].abs() > 1e-6]
        given = "attention_weights of 4 positions"
        expect(not later, f"{given}; row t has the weights of position t", weights, "zeros above the diagonal")
        expect((weights.tril() > 0).sum() == 10, given, weights, "weights above zero on and below the diagonal")

    @check(
        "equal scores give equal weights",
        "a query of zeros gives equal scores, so each of the t + 1 visible positions has the weight 1 / (t + 1)",
    )
    def test_equal_scores(self, my: Any) -> None:
        expected = torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])
        weights = my.attention_weights(torch.zeros(1, 3, 8), noise(1, 3, 8))[0]
        expect_close(weights, expected, "queries of zeros, 3 positions")

    @check(
        "scores are scaled by 1 / sqrt(head_size)",
        "head_size is the last dimension of q, not T and not n_embd",
    )
    def test_scale(self, my: Any) -> None:
        q, k = torch.zeros(1, 2, 16), torch.zeros(1, 2, 16)
        q[0, 1, 0], k[0, 0, 0] = 2.0, 2.0  # query 1 matches key 0: score 4, scaled 1
        expected = torch.tensor([[1, 0], [math.e / (math.e + 1), 1 / (math.e + 1)]])
        given = "head_size 16, scores of position 1 before scaling: 4 and 0, so softmax(4 / 4, 0)"
        expect_close(my.attention_weights(q, k)[0], expected, given)

    @check(
        "the output is the weighted sum of the values",
        "weights @ self.value(x), and not weights @ x or weights @ keys",
    )
    def test_weighted_values(self, my: Any) -> None:
        own = randomise(my.Head(8, 16))
        x = noise(2, 5, 8)
        q, k, v = own.query(x), own.key(x), own.value(x)
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        expect_close(own(x), expected, "Head(8, 16) on x of shape (2, 5, 8), compared with PyTorch's attention")


class TestStep5:
    @check(
        "attention keeps the shape (B, T, C)",
        "concatenate the heads along the channels, then apply self.c_proj",
    )
    def test_shape(self, my: Any) -> None:
        got = my.MultiHeadAttention(12, 3)(noise(2, 5, 12))
        expect_shape(got, (2, 5, 12), "MultiHeadAttention(12, 3) on (2, 5, 12)")

    @check(
        "no head attends to a later position",
        "view(B, T, n_head, head_size).transpose(1, 2), as view(B, n_head, T, head_size) mixes positions; the mask",
    )
    def test_causal(self, my: Any) -> None:
        attention, x = randomise(my.MultiHeadAttention(12, 3)), noise(2, 6, 12)
        other = torch.cat((x[:, :-2], noise(2, 2, 12, seed=9)), 1)
        expect_causal(attention, x, other, "inputs of MultiHeadAttention(12, 3)")

    @check(
        "each head works on its own channels",
        "q, k, v in this order; head h uses channels h * head_size to (h + 1) * head_size - 1 of each",
    )
    def test_heads(self, my: Any) -> None:
        attention = randomise(my.MultiHeadAttention(12, 3))
        x = noise(2, 5, 12)
        q, k, v = (part.view(2, 5, 3, 4).transpose(1, 2) for part in attention.c_attn(x).split(12, dim=2))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        expected = attention.c_proj(heads.transpose(1, 2).reshape(2, 5, 12))
        expect_close(attention(x), expected, "12 channels in 3 heads, compared with PyTorch's attention on each head")

    @check(
        "the MLP is linear, GELU, linear",
        "self.c_proj(F.gelu(self.c_fc(x)))",
    )
    def test_mlp(self, my: Any) -> None:
        mlp, x = randomise(my.MLP(8)), noise(2, 3, 8)
        expected = mlp.c_proj(F.gelu(mlp.c_fc(x)))
        # atol accepts the tanh approximation of GELU
        expect_close(mlp(x), expected, "MLP(8) on x of shape (2, 3, 8)", atol=5e-3)

    @check(
        "a block adds to the residual stream",
        "x = x + ...: if both output projections are zero, the output is x",
    )
    def test_residual(self, my: Any) -> None:
        own = randomise(my.Block(12, 3))
        x = noise(2, 5, 12)
        for parameter in (*own.attn.c_proj.parameters(), *own.mlp.c_proj.parameters()):
            nn.init.zeros_(parameter)
        expect_close(own(x), x, "Block(12, 3) whose output projections are zero")

    @check(
        "attention and the MLP each get a normalised input",
        "x = x + self.attn(self.ln_1(x)), then x = x + self.mlp(self.ln_2(x))",
    )
    def test_normalised_inputs(self, my: Any) -> None:
        own = randomise(my.Block(12, 3))
        x = 3 * noise(2, 5, 12)
        middle = x + own.attn(own.ln_1(x))
        given = "Block(12, 3) on x, compared with x + attn(ln_1(x)) followed by x + mlp(ln_2(x))"
        expect_close(own(x), middle + own.mlp(own.ln_2(middle)), given, 1e-4)


def small_gpt(my: Any, n_layer: int = 2) -> Any:
    return my.GPT(vocab_size=11, block_size=8, n_layer=n_layer, n_head=2, n_embd=16)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


class TestStep6:
    @check(
        "logits have shape (B, T, V) for every T up to block_size",
        "add the first T rows of self.wpe, not all of them",
    )
    def test_shapes(self, my: Any) -> None:
        for T in (8, 3, 1):
            logits, loss = small_gpt(my)(tokens(2, T))
            expect_shape(logits, (2, T, 11), f"the logits of GPT(11, 8, 2, 2, 16) for idx of shape (2, {T})")
            expect(loss is None, "the model without targets", loss, "None as the loss")

    @check(
        "the loss of an untrained model is about ln(vocab_size)",
        "initialise linear and embedding weights with standard deviation 0.02",
    )
    def test_untrained_loss(self, my: Any) -> None:
        loss = small_gpt(my)(tokens(32, 8), tokens(32, 8, seed=1))[1]
        expect(isinstance(loss, Tensor), "the model with targets", shown(loss), "a loss")
        given = "an untrained model with vocab_size 11"
        expect(abs(loss.item() - math.log(11)) < 0.05, given, f"{loss.item():.3f}", f"about ln 11 = {math.log(11):.3f}")

    @check(
        "the loss is the mean cross-entropy of the logits",
        "average over all positions of all sequences",
    )
    def test_loss(self, my: Any) -> None:
        model = randomise(small_gpt(my))
        x, y = tokens(3, 8), tokens(3, 8, seed=1)
        expected = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
        expect_close(model(x, y)[1], expected, "idx and targets of shape (3, 8)", 1e-4)

    @check(
        "logits do not depend on later tokens",
        "causal attention in every block",
    )
    def test_causal(self, my: Any) -> None:
        model, x = randomise(small_gpt(my)), tokens(2, 8)
        other = torch.cat((x[:, :-2], (x[:, -2:] + 3) % 11), 1)
        expect_causal(lambda idx: model(idx)[0], x, other, "sequences")

    @check(
        "the order of earlier characters matters",
        "add the position embedding to the token embedding",
    )
    def test_position(self, my: Any) -> None:
        model = randomise(small_gpt(my, n_layer=1))
        one, two = (model(torch.tensor([text]))[0][0, -1] for text in ([1, 2, 3, 4], [2, 1, 3, 4]))
        given = "one layer; the last logits for [1, 2, 3, 4] and for [2, 1, 3, 4]"
        expect(not torch.allclose(one, two, atol=1e-4), given, "the same logits", "different logits")

    @check(
        "every parameter gets a gradient",
        "a layer that is made in __init__ but not used in forward gets none",
    )
    def test_every_gradient(self, my: Any) -> None:
        model = randomise(small_gpt(my))
        model(tokens(4, 8), tokens(4, 8, seed=1))[1].backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
        expect(not idle, "one backward pass", f"no gradient for {', '.join(idle)}", "a gradient for every parameter")
        sizes = [sum(p.numel() for p in small_gpt(my, n_layer).parameters()) for n_layer in (1, 2)]
        expect(sizes[1] > sizes[0], "n_layer = 2", "one block used twice", "more parameters than with n_layer = 1")


class Line(nn.Module):
    """A model with a simple gradient: loss = mean((w x - y)^2), so dloss/dw = mean(2 x (w x - y))."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.w * x, ((self.w * x - y) ** 2).mean()


def line_steps(my: Any, steps: int = 1, max_norm: float = 1e9) -> tuple[Any, float]:
    """Train a Line on x = 1, y = 1 with SGD and lr = 0.1. Returns what the last step returned, and w."""
    model, one = Line(), torch.tensor([1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(steps):
        loss = my.train_step(model, optimizer, one, one, 0.1, max_norm)
    return loss, model.w.item()


def expect_rates(my: Any, rates: dict[int, float]) -> None:
    """Check the learning rate of each step in `rates`."""
    for step, expected in rates.items():
        got = float(my.learning_rate(step, peak=1.0, minimum=0.1, warmup=9, total=109))
        expect_number(got, expected, f"learning_rate({step}, peak=1.0, minimum=0.1, warmup=9, total=109)")


class TestStep7:
    @check(
        "the learning rate rises to the peak, then falls to the minimum",
        "three cases: step < warmup, step > total, and the cosine between them",
    )
    def test_rises_and_falls(self, my: Any) -> None:
        expect_rates(my, {0: 0.1, 3: 0.4, 9: 1.0, 109: 0.1, 500: 0.1})

    @check(
        "the decay follows half a cosine",
        "(1 + cos(pi * progress)) / 2, where progress goes from 0 at warmup to 1 at total",
    )
    def test_cosine(self, my: Any) -> None:
        expect_rates(my, {34: 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 59: 0.55})

    @check(
        "train_step returns the loss before the update, as a float",
        "loss.item()",
    )
    def test_loss_before_update(self, my: Any) -> None:
        loss, _ = line_steps(my)
        expect(isinstance(loss, float), "the return value of train_step", f"a {type(loss).__name__}", "a float")
        expect_number(loss, 1.0, "w = 0, x = 1, y = 1: the loss (w x - y)^2")

    @check(
        "the update uses the given learning rate",
        "for group in optimizer.param_groups: group['lr'] = lr",
    )
    def test_given_rate(self, my: Any) -> None:
        expect_number(line_steps(my)[1], 0.2, "w = 0 with gradient -2, plain SGD, lr = 0.1", "w = ")

    @check(
        "each update uses the gradient of its own batch only",
        "optimizer.zero_grad() before loss.backward()",
    )
    def test_own_gradient(self, my: Any) -> None:
        given = "two steps with lr = 0.1: w = 0 with gradient -2, then w = 0.2 with gradient -1.6"
        expect_number(line_steps(my, steps=2)[1], 0.36, given, "w = ")

    @check(
        "the gradient is clipped between backward and step",
        "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)",
    )
    def test_clipping(self, my: Any) -> None:
        given = "gradient -2, max_norm = 0.5, lr = 0.1: the update is 0.1 times 0.5"
        expect_number(line_steps(my, max_norm=0.5)[1], 0.05, given, "w = ", atol=1e-4)

    @check(
        "one batch can be memorised",
        "the loss, its gradient and the update: a correct training step can overfit one batch",
    )
    def test_memorises(self, my: Any) -> None:
        model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=32, bias=True))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
        x, y = tokens(4, 8), tokens(4, 8, seed=1)
        first = model(x, y)[1].item()
        for _ in range(150):
            my.train_step(model, optimizer, x, y, 1e-2, 1.0)
        last = model(x, y)[1].item()
        given = "a GPT with one layer, 150 training steps on the same 4 windows"
        expect(
            last < 0.1, given, f"loss {first:.2f} at the start, {last:.2f} at the end", "a loss below 0.1 at the end"
        )


LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
ORDER = [2, 0, 3, 1]


def generated(
    my: Any, logits: Callable[[Tensor], Tensor], idx: Tensor, count: int, block_size: int = 8, seed: int = 0, **how: Any
) -> Any:
    """Call generate with a model that has these logits, and accepts at most block_size tokens."""

    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            given, got = f"a model with block_size {block_size}", f"an input of {x.size(1)} tokens"
            expect(x.size(1) <= block_size, given, got, f"the last {block_size} tokens")
            return logits(x), None

    return my.generate(Model(), idx, count, block_size, torch.Generator().manual_seed(seed), **how)


def successor(x: Tensor) -> Tensor:
    """Return the logits of a model that predicts (n + 1) mod 10 after token n with certainty."""
    return 100.0 * F.one_hot((x + 1) % 10, 10)


def uniform(x: Tensor) -> Tensor:
    return torch.zeros(*x.shape, 50)


def sloping(x: Tensor) -> Tensor:
    """Return the logits of a model in which each of 50 tokens is slightly less probable than the one before it."""
    return (-0.01 * torch.arange(50)).expand(*x.shape, 50)


START = torch.zeros(1, 1, dtype=torch.int64)


class TestStep8:
    @check(
        "probabilities sum to one, and the temperature divides the logits",
        "softmax(logits / temperature)",
    )
    def test_temperature(self, my: Any) -> None:
        for temperature in (1.0, 2.0, 0.5):
            given = f"logits ln(0.5, 0.3, 0.15, 0.05), temperature {temperature}"
            expect_close(my.probabilities(LOGITS, temperature), F.softmax(LOGITS / temperature, 0), given)

    @check(
        "a temperature near zero is greedy decoding",
        "divide the logits, not the probabilities",
    )
    def test_near_zero(self, my: Any) -> None:
        got = my.probabilities(torch.tensor([1.0, 3.0, 2.9]), 1e-3)
        expect_close(got, torch.tensor([0.0, 1.0, 0.0]), "logits 1, 3, 2.9, temperature 0.001")

    @check(
        "top_k keeps the k most probable tokens",
        "all others get probability zero; the k kept sum to one",
    )
    def test_top_k(self, my: Any) -> None:
        expected = torch.tensor([0.5, 0.3, 0, 0])[ORDER] / 0.8
        got = my.probabilities(LOGITS[ORDER], 1.0, top_k=2)
        expect_close(got, expected, "logits ln(0.15, 0.5, 0.05, 0.3), top_k 2")
        expect_close(my.probabilities(LOGITS, 1.0, top_k=9), LOGITS.exp(), "4 logits, top_k 9: all tokens are kept")

    @check(
        "top_p keeps the smallest set of tokens that reaches p",
        "keep the token that reaches p as well; always keep the most probable token",
    )
    def test_top_p(self, my: Any) -> None:
        for top_p, kept in ((0.7, [0.5, 0.3, 0, 0]), (0.85, [0.5, 0.3, 0.15, 0]), (0.1, [0.5, 0, 0, 0])):
            expected = torch.tensor(kept)[ORDER] / sum(kept)
            given = f"probabilities 0.15, 0.5, 0.05, 0.3, top_p {top_p}"
            expect_close(my.probabilities(LOGITS[ORDER], 1.0, top_p=top_p), expected, given)

    @check(
        "temperature comes first, then top_k, then top_p",
        "normalise the probabilities after top_k, then apply top_p to them",
    )
    def test_order_of_filters(self, my: Any) -> None:
        given = "probabilities 0.5, 0.3, 0.15, 0.05; top_k 2 gives 0.625 and 0.375, so top_p 0.6 keeps the first"
        expect_close(my.probabilities(LOGITS, 1.0, top_k=2, top_p=0.6), torch.tensor([1.0, 0, 0, 0]), given)
        cold = F.softmax(LOGITS / 0.5, 0)
        given = "temperature 0.5 raises the probability 0.5 to 0.68, so top_p 0.6 keeps only this token"
        expect_close(my.probabilities(LOGITS, 0.5, top_p=0.6), torch.tensor([1.0, 0, 0, 0]), f"{given} ({shown(cold)})")

    @check(
        "generate appends one token at a time to every sequence",
        "take the logits of the last position, draw a token, append it, repeat",
    )
    def test_appends(self, my: Any) -> None:
        got = generated(my, successor, torch.tensor([[1, 2], [5, 7]]), 4)
        given = "a model that predicts n + 1 after n; 4 new tokens after [[1, 2], [5, 7]]"
        expect_close(got, torch.tensor([[1, 2, 3, 4, 5, 6], [5, 7, 8, 9, 0, 1]]), given)

    @check(
        "the model gets at most the last block_size tokens",
        "idx[:, -block_size:]: the last tokens, not the first",
    )
    def test_last_tokens(self, my: Any) -> None:
        got = generated(my, successor, torch.tensor([[1, 2, 3, 4]]), 5, block_size=3)
        expected = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]])
        expect_close(got, expected, "block_size 3; 5 new tokens after [[1, 2, 3, 4]]")

    @check(
        "tokens are random and depend only on the generator",
        "torch.multinomial(probabilities, 1, generator=generator)",
    )
    def test_random_tokens(self, my: Any) -> None:
        first = generated(my, uniform, START, 40)
        second = generated(my, uniform, START, 40, seed=1)
        given = "a model with 50 equally probable tokens, 40 tokens drawn"
        expect(len(set(first[0].tolist())) > 10, given, first[0], "many different tokens")
        torch.manual_seed(1)
        same = torch.equal(first, generated(my, uniform, START, 40))
        expect(same, "two generators of the same seed", "different tokens", "the same tokens")
        expect(not torch.equal(first, second), "generators of different seeds", "the same tokens", "different tokens")

    @check(
        "generate uses temperature, top_k and top_p",
        "pass all three to probabilities",
    )
    def test_passes_options(self, my: Any) -> None:
        for name, value, allowed in (("temperature", 1e-4, {0}), ("top_k", 3, {0, 1, 2}), ("top_p", 0.05, {0, 1, 2})):
            choice: dict[str, Any] = {name: value}
            drawn = set(generated(my, sloping, START, 40, **choice)[0, 1:].tolist())
            given = f"50 tokens, each slightly less probable than the one before it; {name} {value}"
            expect(drawn <= allowed, given, f"drawn: {sorted(drawn)}", f"drawn: only {sorted(allowed)}")


PAIR = "pair_example(prompt=[1, 2, 3], response=[4, 5], end=9, block_size=8)"


def pair(my: Any) -> Any:
    return my.pair_example([1, 2, 3], [4, 5], 9, 8)


class TestStep9:
    @check(
        "x is the prompt, then the response, padded with end",
        "sequence = prompt + response + [end]; x = sequence[:-1]",
    )
    def test_sequence(self, my: Any) -> None:
        x, y = pair(my)
        expect_shape(x, (8,), f"x of {PAIR}")
        expect_shape(y, (8,), f"y of {PAIR}")
        expect_equal(x.tolist(), [1, 2, 3, 4, 5, 9, 9, 9], f"x of {PAIR}")

    @check(
        "the prompt carries no loss",
        "the first len(prompt) - 1 targets belong to the prompt: -1",
    )
    def test_prompt_without_loss(self, my: Any) -> None:
        y = pair(my)[1]
        given = f"the first two targets y of {PAIR}"
        expect(y[:2].tolist() == [-1, -1], given, y[:2], "[-1, -1], because 2 and 3 belong to the prompt")

    @check(
        "the first token of the response is a target",
        "at the last position of the prompt the target is the first token of the response",
    )
    def test_first_of_response(self, my: Any) -> None:
        expect_equal(pair(my)[1][2:4].tolist(), [4, 5], f"positions 2 and 3 of y of {PAIR}")

    @check(
        "the end token is a target",
        "at the last token of the response the target is end, or the model never learns to stop",
    )
    def test_end_token(self, my: Any) -> None:
        expect_equal(pair(my)[1][4].item(), 9, f"position 4 of y of {PAIR}")

    @check(
        "padding carries no loss",
        "end is a target once; after that y is -1",
    )
    def test_padding(self, my: Any) -> None:
        expect_equal(pair(my)[1][5:].tolist(), [-1, -1, -1], f"the last three targets y of {PAIR}")

    @check(
        "the loss is the mean over the targets that are not -1",
        "F.cross_entropy(..., ignore_index=-1)",
    )
    def test_masked_loss(self, my: Any) -> None:
        logits, targets = 2 * noise(2, 4, 5), torch.tensor([[-1, -1, 3, 1], [-1, 2, -1, -1]])
        chosen = logits.log_softmax(2)[[0, 0, 1], [2, 3, 1], [3, 1, 2]]
        given = "targets [[-1, -1, 3, 1], [-1, 2, -1, -1]]: the mean of three terms"
        expect_close(my.masked_loss(logits, targets), -chosen.mean(), given)

    @check(
        "the logits at masked positions get no gradient",
        "ignore_index=-1: replacing -1 with a valid token id would train on a wrong target",
    )
    def test_masked_gradient(self, my: Any) -> None:
        logits, targets = noise(1, 4, 5).requires_grad_(), torch.tensor([[-1, -1, 3, 1]])
        my.masked_loss(logits, targets).backward()
        assert logits.grad is not None
        idle = logits.grad[0, :2].abs().sum(-1)
        expect(not idle.sum(), "the gradient at the masked positions 0 and 1", idle, "zeros")
        expect((logits.grad[0, 2:].abs().sum(-1) > 0).all(), "the gradient at positions 2 and 3", "zero", "not zero")


def linear() -> Any:
    return randomise(nn.Linear(6, 4))


def adapter(my: Any, layer: nn.Linear) -> Any:
    return my.LoRALinear(layer, rank=2, alpha=8.0)


def trained_adapter(my: Any, layer: nn.Linear) -> Any:
    """Return an adapter as after some training."""
    own = adapter(my, layer)
    own.A.data = noise(2, 6, seed=2)
    own.B.data = noise(4, 2, seed=3)
    return own


class TestStep10:
    @check(
        "A is (rank, in_features) and B is (out_features, rank)",
        "make both in __init__, as nn.Parameter",
    )
    def test_shapes(self, my: Any) -> None:
        own = adapter(my, linear())
        for name, shape in (("A", (2, 6)), ("B", (4, 2))):
            expect_shape(getattr(own, name, None), shape, f"LoRALinear(nn.Linear(6, 4), rank=2, alpha=8).{name}")

    @check(
        "a new adapter does not change the output",
        "initialise B with zeros, so that B A is zero",
    )
    def test_unchanged_output(self, my: Any) -> None:
        expected = linear()(noise(3, 6))
        expect_close(
            adapter(my, linear())(noise(3, 6)), expected, "a new LoRALinear, compared with the layer that it wraps"
        )

    @check(
        "only A and B are trainable",
        "linear.requires_grad_(False), and A and B as nn.Parameter: rank (in + out) trainable parameters",
    )
    def test_trainable(self, my: Any) -> None:
        got = sorted(name for name, parameter in adapter(my, linear()).named_parameters() if parameter.requires_grad)
        given = "the trainable parameters for in_features 6, out_features 4, rank 2"
        expect(got == ["A", "B"], given, ", ".join(got), "A, B: 2 (6 + 4) = 20 parameters")

    @check(
        "a new adapter can learn",
        "if A and B are both zero, both gradients are zero and stay zero",
    )
    def test_can_learn(self, my: Any) -> None:
        own = adapter(my, linear())
        own(noise(3, 6)).square().sum().backward()
        moved = any(part.grad is not None and part.grad.abs().sum() > 0 for part in (own.A, own.B))
        expect(moved, "the gradients of A and B after one backward pass", "zero", "one of them not zero")

    @check(
        "the adapter adds (alpha / rank) B A x",
        "rank 2 and alpha 8: a factor of 4",
    )
    def test_scaled_update(self, my: Any) -> None:
        own = trained_adapter(my, linear())
        x = noise(3, 6, seed=4)
        expected = linear()(x) + 4 * x @ own.A.T @ own.B.T
        expect_close(own(x), expected, "alpha 8, rank 2: the output is W x + bias + 4 B A x", 1e-4)

    @check(
        "the merged layer computes the same output",
        "the weight W + (alpha / rank) B A, with the same bias",
    )
    def test_merged(self, my: Any) -> None:
        own = trained_adapter(my, linear())
        x = noise(3, 6, seed=4)
        before = own(x)
        merged = own.merged()
        expect(type(merged) is nn.Linear, "the return value of merged()", f"a {type(merged).__name__}", "an nn.Linear")
        expect_close(merged(x), before, "merged()(x), compared with the LoRALinear itself", 1e-4)

    @check(
        "merging does not change the frozen layer",
        "copy the weight before you add to it",
    )
    def test_frozen_layer(self, my: Any) -> None:
        layer = linear()
        before = layer.weight.detach().clone()
        trained_adapter(my, layer).merged()
        expect_close(layer.weight, before, "the frozen weight after merged()")
