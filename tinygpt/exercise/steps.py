"""The checks of the ten steps: properties of a correct solution, tested on small inputs.

A check is a function of the student's module. It calls `expect` for each property; if one does not hold, the check ends
with CheckFailed. child.py runs the checks.

    [check.name for check in checks_of(4)]
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from tinygpt.model import GPT, GPTConfig


class CheckFailed(Exception):
    """A property that does not hold: the input, the output and the expected output."""

    def __init__(self, given: str, got: str, expected: str) -> None:
        super().__init__(given, got, expected)
        self.finding = {"given": given, "got": got, "expected": expected}


@dataclasses.dataclass
class Check:
    """One property of a step."""

    step: int
    name: str  # the property, as a sentence that is true of a correct solution
    look: str  # where the mistake probably is
    run: Callable[[Any], object]


CHECKS: list[Check] = []


def register(step: int, name: str, look: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Decorate a function as a check of a step, and add it to CHECKS."""

    def add(function: Callable[[Any], None]) -> Callable[[Any], None]:
        CHECKS.append(Check(step, name, look, function))
        return function

    return add


def expect(holds: bool, given: str, got: Any, expected: Any) -> None:
    """Errors: CheckFailed unless the property holds."""
    if not holds:
        raise CheckFailed(given, shown(got), shown(expected))


def expect_equal(got: Any, expected: Any, given: str) -> None:
    expect(got == expected, given, got, expected)


def expect_number(got: float, expected: float, given: str, label: str = "", atol: float = 1e-6) -> None:
    expect(abs(got - expected) < atol, given, f"{label}{got:.4f}", f"{label}{expected:.4f}")


def expect_close(got: Any, expected: Tensor, given: str, atol: float = 1e-5) -> None:
    """Errors: CheckFailed unless `got` is a tensor with the shape and, up to rounding, the values of `expected`."""
    expect_shape(got, tuple(expected.shape), given)
    expect(bool(torch.isfinite(got).all()), given, got, expected)
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


def randomise(module: nn.Module, std: float = 0.5) -> nn.Module:
    """Draw weights large enough that every parameter changes the output."""
    for index, parameter in enumerate(module.parameters()):
        parameter.data = std * noise(*parameter.shape, seed=index)
    return module.eval()


def expect_causal(function: Callable[[Tensor], Tensor], x: Tensor, other: Tensor, what: str) -> None:
    """Check that no output depends on later positions: x and other differ only in the last two of T positions."""
    T = x.size(1)
    before, after = function(x), function(other)
    changed = [t for t in range(T - 2) if not torch.allclose(before[:, t], after[:, t], atol=1e-5)]
    given = f"two {what} of {T} positions that differ only at positions {T - 2} and {T - 1}"
    expect(
        not changed, given, f"different outputs at positions {changed}", f"the same outputs at positions 0 to {T - 3}"
    )
    same_end = torch.allclose(before[:, -1], after[:, -1], atol=1e-6)
    expect(not same_end, given, f"the same output at position {T - 1}", f"different outputs at position {T - 1}")


# ==== step 1: tokenizer ====


@register(1, "vocab_size is the number of distinct characters", "set(text) contains each character once")
def _(my: Any) -> None:
    expect_equal(my.CharTokenizer("hello").vocab_size, 4, "CharTokenizer('hello').vocab_size")


@register(
    1,
    "token ids follow the sorted order of the characters",
    "sorted(set(text)): the order of a set can change from one run to the next",
)
def _(my: Any) -> None:
    got = list(my.CharTokenizer("the cat").encode(" aceht"))
    expect_equal(got, [0, 1, 2, 3, 4, 5], "CharTokenizer('the cat').encode(' aceht')")


@register(1, "decoding gives the text back", "decode must be the inverse of encode, for every character")
def _(my: Any) -> None:
    text = "First Citizen:\nBefore we proceed, naïve €5!\n\n"
    tokenizer = my.CharTokenizer(text)
    got = tokenizer.decode(tokenizer.encode(text))
    expect(got == text, "a text with capitals, line breaks and accents, encoded and decoded", repr(got), repr(text))


@register(1, "an unknown character raises an error that names it", "encode: a character that is not in the vocabulary")
def _(my: Any) -> None:
    given, expected = "CharTokenizer('hello').encode('hex')", "an error that names 'x'"
    try:
        got = my.CharTokenizer("hello").encode("hex")
    except (ValueError, KeyError) as error:
        expect("x" in str(error), given, f"{type(error).__name__}: {error}", expected)
    else:
        expect(False, given, got, expected)


# ==== step 2: batches ====


def batch(my: Any, length: int, block: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y = my.get_batch(torch.arange(length), block, size, torch.Generator().manual_seed(seed))
    return x, y


@register(
    2, "the validation part is the end of the data, without overlap", "split the data before you draw windows from it"
)
def _(my: Any) -> None:
    train, val = my.split(torch.arange(10), 0.2)
    got = f"{train.tolist()} and {val.tolist()}"
    expect_equal(got, "[0, 1, 2, 3, 4, 5, 6, 7] and [8, 9]", "split(torch.arange(10), 0.2)")


@register(2, "x and y are int64 of shape (batch_size, block_size)", "torch.stack: one window per row")
def _(my: Any) -> None:
    for part, name in zip(batch(my, 100, 8, 4), "xy", strict=True):
        given = f"{name} of get_batch(torch.arange(100), 8, 4, generator)"
        expect_shape(part, (4, 8), given)
        expect_equal(str(part.dtype), "torch.int64", given)


@register(2, "the target is the input shifted by one", "y starts one position after x, in the same window")
def _(my: Any) -> None:
    x, y = batch(my, 100, 8, 4)
    given = f"data 0, 1, 2, ..., 99; the window x[0] = {x[0].tolist()}"
    expect(bool((x[:, 1:] == x[:, :-1] + 1).all()), given, x[0], "consecutive numbers")
    expect(bool((y == x + 1).all()), given, f"y[0] = {y[0].tolist()}", f"y[0] = {(x[0] + 1).tolist()}")


@register(2, "windows are random and depend only on the generator", "pass generator=generator to torch.randint")
def _(my: Any) -> None:
    first, second = batch(my, 1000, 4, 6)[0], batch(my, 1000, 4, 6, seed=1)[0]
    starts = first[:, 0]
    expect(len(set(starts.tolist())) > 3, "6 windows of one batch", f"starts {starts.tolist()}", "different starts")
    given = "get_batch twice, with generators of the same seed"
    torch.manual_seed(1)
    again = batch(my, 1000, 4, 6)[0]
    expect(torch.equal(first, again), given, f"starts {again[:, 0].tolist()}", f"starts {starts.tolist()}")
    expect(not torch.equal(first, second), "generators of different seeds", "the same windows", "different ones")


@register(
    2,
    "every window can be drawn, including the first and the last",
    "the last window starts block_size + 1 tokens before the end",
)
def _(my: Any) -> None:
    starts = sorted(set(batch(my, 7, 4, 300)[0][:, 0].tolist()))
    expect_equal(f"starts {starts}", "starts [0, 1, 2]", "300 windows of block_size 4 from 7 tokens")


# ==== step 3: bigram ====

PAIRS = torch.tensor([0, 1, 0, 1, 0, 2])  # after 0: twice 1, once 2; after 1: always 0


@register(3, "logits have shape (B, T, V), and the loss is None without targets", "logits = self.table(idx)")
def _(my: Any) -> None:
    logits, loss = my.Bigram(5)(torch.tensor([[0, 1, 2], [3, 4, 0]]))
    expect_shape(logits, (2, 3, 5), "the logits of Bigram(5) for idx of shape (2, 3)")
    expect(loss is None, "Bigram(5)(idx) without targets", loss, "None as the loss")


@register(
    3,
    "the logits depend on the current character only",
    "look up one row of the table per character; ignore the characters before it",
)
def _(my: Any) -> None:
    model = randomise(my.Bigram(5))
    logits = model(torch.tensor([[1, 2, 3], [0, 2, 4]]))[0]
    expect_close(logits[1, 1], logits[0, 1], "the logits at position 1 of [0, 2, 4] and of [1, 2, 3]")
    expect_close(logits[0, 1], model.table.weight[2], "the logits after token 2, compared with row 2 of self.table")  # type: ignore[union-attr, index]


@register(
    3,
    "the loss is the mean cross-entropy in nats",
    "F.cross_entropy takes logits of shape (B T, V) and targets of shape (B T,)",
)
def _(my: Any) -> None:
    model = my.Bigram(5)
    model.table.weight.data = 2 * noise(5, 5)
    idx, targets = torch.tensor([[0, 1, 2], [3, 4, 0]]), torch.tensor([[1, 2, 3], [4, 0, 2]])
    by_hand = -torch.stack(
        [model.table.weight[i].log_softmax(0)[t] for i, t in zip(idx.flatten(), targets.flatten(), strict=True)]
    ).mean()
    given = "idx [[0, 1, 2], [3, 4, 0]], targets [[1, 2, 3], [4, 0, 2]]: -log softmax(row)[target], averaged"
    expect_close(model(idx, targets)[1], by_hand, given)


@register(
    3,
    "counts_loss is the cross-entropy under the bigram frequencies",
    "p(next | current) = count(current, next) / count(current, any)",
)
def _(my: Any) -> None:
    expected = (2 * math.log(3 / 2) + math.log(3) + 2 * math.log(1)) / 5
    got = my.counts_loss(PAIRS, 3)
    given = "counts_loss of 0 1 0 1 0 2, where p(1 | 0) = 2/3, p(2 | 0) = 1/3 and p(0 | 1) = 1"
    expect(
        abs(float(got) - expected) < 1e-4,
        given,
        f"{float(got):.4f}",
        f"(2 ln 3/2 + ln 3 + 2 ln 1) / 5 = {expected:.4f}",
    )


@register(
    3,
    "training converges to the loss of the bigram frequencies",
    "the loss must be a tensor with a gradient: no .item(), no .detach()",
)
def _(my: Any) -> None:
    model = my.Bigram(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = model(PAIRS[None, :-1], PAIRS[None, 1:])[1]
        expect(isinstance(loss, Tensor) and loss.requires_grad, "the loss", shown(loss), "a tensor with a gradient")
        loss.backward()
        optimizer.step()
    expected = (2 * math.log(3 / 2) + math.log(3)) / 5
    given = "300 training steps on 0 1 0 1 0 2, from random weights"
    expect_number(loss.item(), expected, given, "loss ", atol=0.02)


# ==== step 4: head ====


@register(4, "each row of attention weights sums to one", "softmax over the last dimension, after the mask")
def _(my: Any) -> None:
    weights = my.attention_weights(noise(2, 5, 16), noise(2, 5, 16, seed=1))
    expect_shape(weights, (2, 5, 5), "attention_weights of q and k, both (2, 5, 16)")
    expect_close(weights.sum(-1), torch.ones(2, 5), "the sums of the rows of attention_weights(q, k)")


@register(
    4,
    "no position attends to a later one",
    "set the scores of later positions to -inf before the softmax: torch.tril, masked_fill",
)
def _(my: Any) -> None:
    weights = my.attention_weights(noise(1, 4, 16), noise(1, 4, 16, seed=1))[0]
    later = [(t, s) for t in range(4) for s in range(t + 1, 4) if weights[t, s].abs() > 1e-6]
    expect(
        not later,
        "attention_weights of 4 positions; row t has the weights of position t",
        weights,
        "zeros above the diagonal",
    )
    expect(
        bool((weights.tril() > 0).sum() == 10),
        "attention_weights of 4 positions",
        weights,
        "weights above zero on and below the diagonal",
    )


@register(
    4,
    "equal scores give equal weights",
    "a query of zeros gives equal scores, so each of the t + 1 visible positions has the weight 1 / (t + 1)",
)
def _(my: Any) -> None:
    expected = torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])
    expect_close(
        my.attention_weights(torch.zeros(1, 3, 8), noise(1, 3, 8))[0], expected, "queries of zeros, 3 positions"
    )


@register(4, "scores are scaled by 1 / sqrt(head_size)", "head_size is the last dimension of q, not T and not n_embd")
def _(my: Any) -> None:
    q, k = torch.zeros(1, 2, 16), torch.zeros(1, 2, 16)
    q[0, 1, 0], k[0, 0, 0] = 2.0, 2.0  # query 1 matches key 0: score 4, scaled 1
    expected = torch.tensor([[1, 0], [math.e / (math.e + 1), 1 / (math.e + 1)]])
    given = "head_size 16, scores of position 1 before scaling: 4 and 0, so softmax(4 / 4, 0)"
    expect_close(my.attention_weights(q, k)[0], expected, given)


@register(
    4, "the output is the weighted sum of the values", "weights @ self.value(x), and not weights @ x or weights @ keys"
)
def _(my: Any) -> None:
    head, x = randomise(my.Head(8, 16)), noise(2, 5, 8)
    q, k, v = head.query(x), head.key(x), head.value(x)  # type: ignore[operator]
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    expect_close(head(x), expected, "Head(8, 16) on x of shape (2, 5, 8), compared with PyTorch's attention")


# ==== step 5: block ====


@register(5, "attention keeps the shape (B, T, C)", "concatenate the heads along the channels, then apply self.c_proj")
def _(my: Any) -> None:
    expect_shape(my.MultiHeadAttention(12, 3)(noise(2, 5, 12)), (2, 5, 12), "MultiHeadAttention(12, 3) on (2, 5, 12)")


@register(
    5,
    "no head attends to a later position",
    "view(B, T, n_head, head_size).transpose(1, 2), because view(B, n_head, T, head_size) mixes positions; the mask",
)
def _(my: Any) -> None:
    attention, x = randomise(my.MultiHeadAttention(12, 3)), noise(2, 6, 12)
    other = torch.cat((x[:, :-2], noise(2, 2, 12, seed=9)), 1)
    expect_causal(attention, x, other, "inputs of MultiHeadAttention(12, 3)")


@register(
    5,
    "each head works on its own channels",
    "q, k, v in this order; head h uses channels h * head_size to (h + 1) * head_size - 1 of each",
)
def _(my: Any) -> None:
    attention, x = randomise(my.MultiHeadAttention(12, 3)), noise(2, 5, 12)
    q, k, v = (part.view(2, 5, 3, 4).transpose(1, 2) for part in attention.c_attn(x).split(12, dim=2))  # type: ignore[operator]
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = attention.c_proj(heads.transpose(1, 2).reshape(2, 5, 12))  # type: ignore[operator]
    expect_close(attention(x), expected, "12 channels in 3 heads, compared with PyTorch's attention on each head")


@register(5, "the MLP is linear, GELU, linear", "self.c_proj(F.gelu(self.c_fc(x)))")
def _(my: Any) -> None:
    mlp, x = randomise(my.MLP(8)), noise(2, 3, 8)
    expected = mlp.c_proj(F.gelu(mlp.c_fc(x)))  # type: ignore[operator]
    # atol accepts the tanh approximation of GELU
    expect_close(mlp(x), expected, "MLP(8) on x of shape (2, 3, 8)", atol=5e-3)


@register(5, "a block adds to the residual stream", "x = x + ...: if both output projections are zero, the output is x")
def _(my: Any) -> None:
    block, x = randomise(my.Block(12, 3)), noise(2, 5, 12)
    for layer in (block.attn.c_proj, block.mlp.c_proj):  # type: ignore[union-attr]
        nn.init.zeros_(layer.weight)  # type: ignore[union-attr, arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[union-attr, arg-type]
    expect_close(block(x), x, "Block(12, 3) whose output projections are zero")


@register(
    5,
    "attention and the MLP each get a normalised input",
    "x = x + self.attn(self.ln_1(x)), then x = x + self.mlp(self.ln_2(x))",
)
def _(my: Any) -> None:
    block, x = randomise(my.Block(12, 3)), 3 * noise(2, 5, 12)
    middle = x + block.attn(block.ln_1(x))  # type: ignore[operator]
    expected = middle + block.mlp(block.ln_2(middle))  # type: ignore[operator]
    expect_close(
        block(x), expected, "Block(12, 3) on x, compared with x + attn(ln_1(x)) followed by x + mlp(ln_2(x))", 1e-4
    )


# ==== step 6: gpt ====


def small_gpt(my: Any, n_layer: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return my.GPT(vocab_size=11, block_size=8, n_layer=n_layer, n_head=2, n_embd=16)  # type: ignore[no-any-return]


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


@register(
    6,
    "logits have shape (B, T, V) for every T up to block_size",
    "add the first T rows of self.wpe, not all of them",
)
def _(my: Any) -> None:
    for T in (8, 3, 1):
        logits, loss = small_gpt(my)(tokens(2, T))
        expect_shape(logits, (2, T, 11), f"the logits of GPT(11, 8, 2, 2, 16) for idx of shape (2, {T})")
        expect(loss is None, "the model without targets", loss, "None as the loss")


@register(
    6,
    "the loss of an untrained model is about ln(vocab_size)",
    "initialise linear and embedding weights with standard deviation 0.02",
)
def _(my: Any) -> None:
    loss = small_gpt(my)(tokens(32, 8), tokens(32, 8, seed=1))[1]
    expect(isinstance(loss, Tensor), "the model with targets", shown(loss), "a loss")
    given = "an untrained model with vocab_size 11"
    expect(abs(loss.item() - math.log(11)) < 0.05, given, f"{loss.item():.3f}", f"about ln 11 = {math.log(11):.3f}")


@register(6, "the loss is the mean cross-entropy of the logits", "average over all positions of all sequences")
def _(my: Any) -> None:
    model, x, y = randomise(small_gpt(my)), tokens(3, 8), tokens(3, 8, seed=1)
    expected = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
    expect_close(model(x, y)[1], expected, "idx and targets of shape (3, 8)", 1e-4)


@register(6, "logits do not depend on later tokens", "causal attention in every block")
def _(my: Any) -> None:
    model, x = randomise(small_gpt(my)), tokens(2, 8)
    other = torch.cat((x[:, :-2], (x[:, -2:] + 3) % 11), 1)
    expect_causal(lambda idx: model(idx)[0], x, other, "sequences")  # type: ignore[no-any-return]


@register(6, "the order of earlier characters matters", "add the position embedding to the token embedding")
def _(my: Any) -> None:
    model = randomise(small_gpt(my, n_layer=1))
    one, two = (model(torch.tensor([text]))[0][0, -1] for text in ([1, 2, 3, 4], [2, 1, 3, 4]))
    given = "one layer; the last logits for [1, 2, 3, 4] and for [2, 1, 3, 4]"
    expect(not torch.allclose(one, two, atol=1e-4), given, "the same logits", "different logits")


@register(6, "every parameter gets a gradient", "a layer that is made in __init__ but not used in forward gets none")
def _(my: Any) -> None:
    model = randomise(small_gpt(my))
    expect(len({id(block) for block in model.h}) == 2, "n_layer = 2", "one block used twice", "two blocks in self.h")  # type: ignore[arg-type, union-attr]
    model(tokens(4, 8), tokens(4, 8, seed=1))[1].backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    expect(not idle, "one backward pass", f"no gradient for {', '.join(idle)}", "a gradient for every parameter")
    for name in ("wte", "wpe", "ln_f", "lm_head"):
        expect(hasattr(model, name), "the parts of the model", f"no self.{name}", "self.wte, wpe, h, ln_f and lm_head")


# ==== step 7: training ====


class Line(nn.Module):
    """A model with a simple gradient: loss = mean((w x - y)^2), so dloss/dw = mean(2 x (w x - y))."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.w * x, ((self.w * x - y) ** 2).mean()


def line_step(my: Any, model: Line, optimizer: torch.optim.Optimizer, lr: float = 0.1, max_norm: float = 1e9) -> Any:
    return my.train_step(model, optimizer, torch.tensor([1.0]), torch.tensor([1.0]), lr, max_norm)


def expect_rate(my: Any, step: int, expected: float) -> None:
    got = float(my.learning_rate(step, peak=1.0, minimum=0.1, warmup=9, total=109))
    expect_number(got, expected, f"learning_rate({step}, peak=1.0, minimum=0.1, warmup=9, total=109)")


@register(
    7,
    "the learning rate rises to the peak, then falls to the minimum",
    "three cases: step < warmup, step > total, and the cosine between them",
)
def _(my: Any) -> None:
    for step, expected in ((0, 0.1), (3, 0.4), (9, 1.0), (109, 0.1), (500, 0.1)):
        expect_rate(my, step, expected)


@register(
    7,
    "the decay follows half a cosine",
    "(1 + cos(pi * progress)) / 2, where progress goes from 0 at warmup to 1 at total",
)
def _(my: Any) -> None:
    for step, expected in ((34, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2), (59, 0.55)):
        expect_rate(my, step, expected)


@register(7, "train_step returns the loss before the update, as a float", "loss.item()")
def _(my: Any) -> None:
    model = Line()
    loss = line_step(my, model, torch.optim.SGD(model.parameters(), lr=1.0))
    expect(isinstance(loss, float), "the return value of train_step", f"a {type(loss).__name__}", "a float")
    expect_number(loss, 1.0, "w = 0, x = 1, y = 1: the loss (w x - y)^2")


@register(7, "the update uses the given learning rate", "for group in optimizer.param_groups: group['lr'] = lr")
def _(my: Any) -> None:
    model = Line()
    line_step(my, model, torch.optim.SGD(model.parameters(), lr=1.0), lr=0.1)
    given = "w = 0 with gradient -2, plain SGD, lr = 0.1"
    expect_number(model.w.item(), 0.2, given, "w = ")


@register(7, "each update uses the gradient of its own batch only", "optimizer.zero_grad() before loss.backward()")
def _(my: Any) -> None:
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    line_step(my, model, optimizer)
    line_step(my, model, optimizer)
    given = "two steps with lr = 0.1: w = 0 with gradient -2, then w = 0.2 with gradient -1.6"
    expect_number(model.w.item(), 0.36, given, "w = ")


@register(
    7,
    "the gradient is clipped between backward and step",
    "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)",
)
def _(my: Any) -> None:
    model = Line()
    line_step(my, model, torch.optim.SGD(model.parameters(), lr=1.0), max_norm=0.5)
    given = "gradient -2, max_norm = 0.5, lr = 0.1: the update is 0.1 times 0.5"
    expect_number(model.w.item(), 0.05, given, "w = ", atol=1e-4)


@register(
    7,
    "one batch can be memorised",
    "the loss, its gradient and the update: a correct training step can overfit one batch",
)
def _(my: Any) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=32, bias=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    x, y = tokens(4, 8), tokens(4, 8, seed=1)
    first = model(x, y)[1].item()
    for _ in range(150):
        my.train_step(model, optimizer, x, y, 1e-2, 1.0)
    last = model(x, y)[1].item()
    given = "a GPT with one layer, 150 training steps on the same 4 windows"
    expect(last < 0.1, given, f"loss {first:.2f} at the start, {last:.2f} at the end", "a loss below 0.1 at the end")


# ==== step 8: sampler ====

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


@register(8, "probabilities sum to one, and the temperature divides the logits", "softmax(logits / temperature)")
def _(my: Any) -> None:
    for temperature in (1.0, 2.0, 0.5):
        given = f"logits ln(0.5, 0.3, 0.15, 0.05), temperature {temperature}"
        expect_close(my.probabilities(LOGITS, temperature), F.softmax(LOGITS / temperature, 0), given)


@register(8, "a temperature near zero is greedy decoding", "divide the logits, not the probabilities")
def _(my: Any) -> None:
    got = my.probabilities(torch.tensor([1.0, 3.0, 2.9]), 1e-3)
    expect_close(got, torch.tensor([0.0, 1.0, 0.0]), "logits 1, 3, 2.9, temperature 0.001")


@register(8, "top_k keeps the k most probable tokens", "all others get probability zero; the k kept sum to one")
def _(my: Any) -> None:
    order = torch.tensor([2, 0, 3, 1])
    expected = torch.tensor([0.5, 0.3, 0, 0])[order] / 0.8
    expect_close(my.probabilities(LOGITS[order], 1.0, top_k=2), expected, "logits ln(0.15, 0.5, 0.05, 0.3), top_k 2")
    expect_close(my.probabilities(LOGITS, 1.0, top_k=9), LOGITS.exp(), "4 logits, top_k 9: all tokens are kept")


@register(
    8,
    "top_p keeps the smallest set of tokens that reaches p",
    "keep the token that reaches p as well; always keep the most probable token",
)
def _(my: Any) -> None:
    for top_p, kept in ((0.7, [0.5, 0.3, 0, 0]), (0.85, [0.5, 0.3, 0.15, 0]), (0.1, [0.5, 0, 0, 0])):
        order = torch.tensor([2, 0, 3, 1])
        expected = torch.tensor(kept)[order] / sum(kept)
        given = f"probabilities 0.15, 0.5, 0.05, 0.3, top_p {top_p}"
        expect_close(my.probabilities(LOGITS[order], 1.0, top_p=top_p), expected, given)


@register(
    8,
    "temperature comes first, then top_k, then top_p",
    "normalise the probabilities after top_k, then apply top_p to them",
)
def _(my: Any) -> None:
    given = "probabilities 0.5, 0.3, 0.15, 0.05; top_k 2 gives 0.625 and 0.375, so top_p 0.6 keeps the first"
    expect_close(my.probabilities(LOGITS, 1.0, top_k=2, top_p=0.6), torch.tensor([1.0, 0, 0, 0]), given)
    cold = F.softmax(LOGITS / 0.5, 0)
    given = "temperature 0.5 raises the probability 0.5 to 0.68, so top_p 0.6 keeps only this token"
    expect_close(my.probabilities(LOGITS, 0.5, top_p=0.6), torch.tensor([1.0, 0, 0, 0]), f"{given} ({shown(cold)})")


class Counting(nn.Module):
    """A model that predicts n + 1 after token n with certainty, and accepts at most block_size tokens."""

    def __init__(self, V: int, block_size: int) -> None:
        super().__init__()
        self.V, self.block_size = V, block_size

    def forward(self, idx: Tensor) -> tuple[Tensor, None]:
        given = f"a model with block_size {self.block_size}"
        expect(
            idx.size(1) <= self.block_size,
            given,
            f"an input of {idx.size(1)} tokens",
            f"the last {self.block_size} tokens",
        )
        return 100.0 * F.one_hot((idx + 1) % self.V, self.V), None


class Uniform(nn.Module):
    """A model that gives all 50 tokens the same probability."""

    def forward(self, idx: Tensor) -> tuple[Tensor, None]:
        return torch.zeros(*idx.shape, 50), None


def generated(
    my: Any, model: nn.Module, idx: Tensor, count: int, block_size: int = 8, seed: int = 0, **choice: Any
) -> Any:
    return my.generate(model, idx, count, block_size, torch.Generator().manual_seed(seed), **choice)


@register(
    8,
    "generate appends one token at a time to every sequence",
    "take the logits of the last position, draw a token, append it, repeat",
)
def _(my: Any) -> None:
    got = generated(my, Counting(10, 8), torch.tensor([[1, 2], [5, 7]]), 4)
    given = "a model that predicts n + 1 after n; 4 new tokens after [[1, 2], [5, 7]]"
    expect_close(got, torch.tensor([[1, 2, 3, 4, 5, 6], [5, 7, 8, 9, 0, 1]]), given)


@register(
    8, "the model gets at most the last block_size tokens", "idx[:, -block_size:]: the last tokens, not the first"
)
def _(my: Any) -> None:
    got = generated(my, Counting(10, 3), torch.tensor([[1, 2, 3, 4]]), 5, block_size=3)
    expect_close(got, torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]]), "block_size 3; 5 new tokens after [[1, 2, 3, 4]]")


@register(
    8,
    "tokens are random and depend only on the generator",
    "torch.multinomial(probabilities, 1, generator=generator)",
)
def _(my: Any) -> None:
    start = torch.zeros(1, 1, dtype=torch.int64)
    first, second = generated(my, Uniform(), start, 40), generated(my, Uniform(), start, 40, seed=1)
    given = "a model with 50 equally probable tokens, 40 tokens drawn"
    expect(len(set(first[0].tolist())) > 10, given, first[0], "many different tokens")
    torch.manual_seed(1)
    same = torch.equal(first, generated(my, Uniform(), start, 40))
    expect(same, "two generators of the same seed", "different tokens", "the same tokens")
    expect(not torch.equal(first, second), "generators of different seeds", "the same tokens", "different tokens")


class Sloping(nn.Module):
    """A model in which each of 50 tokens is slightly less probable than the one before it."""

    def forward(self, idx: Tensor) -> tuple[Tensor, None]:
        return (-0.01 * torch.arange(50)).expand(*idx.shape, 50), None


@register(8, "generate uses temperature, top_k and top_p", "pass all three to probabilities")
def _(my: Any) -> None:
    start = torch.zeros(1, 1, dtype=torch.int64)
    choices: list[tuple[str, Any, set[int]]]
    choices = [("temperature", 1e-4, {0}), ("top_k", 3, {0, 1, 2}), ("top_p", 0.05, {0, 1, 2})]
    for name, value, kept in choices:
        got = set(generated(my, Sloping(), start, 40, **{name: value})[0, 1:].tolist())
        given = f"50 tokens, each slightly less probable than the one before it; {name} {value}"
        expect(got <= kept, given, f"drawn: {sorted(got)}", f"drawn: only {sorted(kept)}")


# ==== step 9: fine-tuning ====

PAIR = "pair_example(prompt=[1, 2, 3], response=[4, 5], end=9, block_size=8)"


def pair(my: Any) -> tuple[Tensor, Tensor]:
    x, y = my.pair_example([1, 2, 3], [4, 5], 9, 8)
    for part, name in ((x, "x"), (y, "y")):
        expect_shape(part, (8,), f"{name} of {PAIR}")
    return x, y


@register(
    9, "x is the prompt, then the response, padded with end", "sequence = prompt + response + [end]; x = sequence[:-1]"
)
def _(my: Any) -> None:
    x = pair(my)[0]
    expect_equal(x.tolist(), [1, 2, 3, 4, 5, 9, 9, 9], f"x of {PAIR}")


@register(9, "the prompt carries no loss", "the first len(prompt) - 1 targets belong to the prompt: -1")
def _(my: Any) -> None:
    y = pair(my)[1]
    expect(
        y[:2].tolist() == [-1, -1],
        f"the first two targets y of {PAIR}",
        y[:2],
        "[-1, -1], because 2 and 3 belong to the prompt",
    )


@register(
    9,
    "the first token of the response is a target",
    "at the last position of the prompt the target is the first token of the response",
)
def _(my: Any) -> None:
    y = pair(my)[1]
    expect_equal(y[2:4].tolist(), [4, 5], f"positions 2 and 3 of y of {PAIR}")


@register(
    9,
    "the end token is a target",
    "at the last token of the response the target is end, or the model never learns to stop",
)
def _(my: Any) -> None:
    expect_equal(pair(my)[1][4].item(), 9, f"position 4 of y of {PAIR}")


@register(9, "padding carries no loss", "end is a target once; after that y is -1")
def _(my: Any) -> None:
    y = pair(my)[1]
    expect_equal(y[5:].tolist(), [-1, -1, -1], f"the last three targets y of {PAIR}")


@register(9, "the loss is the mean over the targets that are not -1", "F.cross_entropy(..., ignore_index=-1)")
def _(my: Any) -> None:
    logits, targets = 2 * noise(2, 4, 5), torch.tensor([[-1, -1, 3, 1], [-1, 2, -1, -1]])
    chosen = [logits[0, 2].log_softmax(0)[3], logits[0, 3].log_softmax(0)[1], logits[1, 1].log_softmax(0)[2]]
    given = "targets [[-1, -1, 3, 1], [-1, 2, -1, -1]]: the mean of three terms"
    expect_close(my.masked_loss(logits, targets), -torch.stack(chosen).mean(), given)


@register(
    9,
    "the logits at masked positions get no gradient",
    "ignore_index=-1: replacing -1 with a valid token id would train on a wrong target",
)
def _(my: Any) -> None:
    logits, targets = noise(1, 4, 5).requires_grad_(), torch.tensor([[-1, -1, 3, 1]])
    my.masked_loss(logits, targets).backward()
    assert logits.grad is not None
    idle = logits.grad[0, :2].abs().sum(-1)
    expect(not idle.sum(), "the gradient at the masked positions 0 and 1", idle, "zeros")
    expect(bool((logits.grad[0, 2:].abs().sum(-1) > 0).all()), "the gradient at positions 2 and 3", "zero", "not zero")


# ==== step 10: lora ====


def adapted(my: Any, **values: Any) -> tuple[nn.Linear, Any]:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    return linear, my.LoRALinear(linear, **({"rank": 2, "alpha": 8.0} | values))


def trained(my: Any) -> tuple[nn.Linear, Any]:
    """An adapter whose A and B are random, as after some training."""
    linear, lora = adapted(my)
    lora.A.data, lora.B.data = noise(2, 6), noise(4, 2, seed=1)
    return linear, lora


@register(10, "A is (rank, in_features) and B is (out_features, rank)", "make both in __init__, as nn.Parameter")
def _(my: Any) -> None:
    _, lora = adapted(my)
    for name, shape in (("A", (2, 6)), ("B", (4, 2))):
        expect_shape(getattr(lora, name, None), shape, f"LoRALinear(nn.Linear(6, 4), rank=2, alpha=8).{name}")


@register(10, "a new adapter does not change the output", "initialise B with zeros, so that B A is zero")
def _(my: Any) -> None:
    linear, lora = adapted(my)
    expect_close(lora(noise(3, 6)), linear(noise(3, 6)), "a new LoRALinear, compared with the layer that it wraps")


@register(
    10,
    "only A and B are trainable",
    "linear.requires_grad_(False), and A and B as nn.Parameter: rank (in + out) trainable parameters",
)
def _(my: Any) -> None:
    _, lora = adapted(my)
    got = sorted(name for name, parameter in lora.named_parameters() if parameter.requires_grad)
    expect(
        got == ["A", "B"],
        "the trainable parameters for in_features 6, out_features 4, rank 2",
        ", ".join(got),
        "A, B: 2 (6 + 4) = 20 parameters",
    )


@register(10, "a new adapter can learn", "if A and B are both zero, both gradients are zero and stay zero")
def _(my: Any) -> None:
    _, lora = adapted(my)
    lora(noise(3, 6)).square().sum().backward()
    moved = lora.B.grad is not None and bool(lora.B.grad.abs().sum() > 0)
    expect(moved, "the gradient of B after one backward pass", "zero", "not zero")


@register(10, "the adapter adds (alpha / rank) B A x", "rank 2 and alpha 8: a factor of 4")
def _(my: Any) -> None:
    linear, lora = trained(my)
    x = noise(3, 6, seed=2)
    expected = linear(x) + 4 * x @ lora.A.T @ lora.B.T
    expect_close(lora(x), expected, "alpha 8, rank 2: the output is W x + bias + 4 B A x", 1e-4)


@register(10, "the merged layer computes the same output", "the weight W + (alpha / rank) B A, with the same bias")
def _(my: Any) -> None:
    _, lora = trained(my)
    x = noise(3, 6, seed=2)
    before, merged = lora(x), lora.merged()
    expect(type(merged) is nn.Linear, "the return value of merged()", f"a {type(merged).__name__}", "an nn.Linear")
    expect_close(merged(x), before, "merged()(x), compared with the LoRALinear itself", 1e-4)


@register(10, "merging does not change the frozen layer", "copy the weight before you add to it")
def _(my: Any) -> None:
    linear, lora = trained(my)
    before = linear.weight.detach().clone()
    lora.merged()
    expect_close(linear.weight, before, "the frozen weight after merged()")


def checks_of(step: int) -> list[Check]:
    return [check for check in CHECKS if check.step == step]
