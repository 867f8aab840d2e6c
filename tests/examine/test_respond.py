"""Responses in batches are those of one prompt at a time; extreme requests for generated text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok
from models import ids, shaken, small

from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer
from tinygpt.examine.eval.classify import label_scores
from tinygpt.examine.eval.respond import responses
from tinygpt.generate import Sampling, answer, generate, probabilities
from tinygpt.model import GPT, GPTConfig

TOKENIZER = CharTokenizer([*"abcdefgh", *SPECIAL])
PROMPTS = ["a", "bc", "de", "fgh", "abc", "hhh", "b"]


def model(seed: int) -> GPT:
    """A random model whose distributions are sharp; some of its responses end, and some do not."""
    torch.manual_seed(seed)
    made = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=32))
    for weight in made.parameters():
        weight.data *= 6
    return made.eval()


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_responds_as_one_prompt_at_a_time(seed: int) -> None:
    made = model(seed)
    texts, probabilities = responses(made, TOKENIZER, PROMPTS, 6)
    assert texts == [answer(made, TOKENIZER, prompt, 6) for prompt in PROMPTS]
    ended = [i for i, text in enumerate(texts) if len(text) < 6 and set(text) <= set("abcdefgh")]
    for i in ended:  # the same text as a label: P(label, END | prompt)
        total, _ = label_scores(made, TOKENIZER, [PROMPTS[i]], [texts[i]])
        assert np.log(probabilities[i]) == pytest.approx(total[0, 0], abs=1e-4)


def test_some_responses_end_and_some_are_cut_off() -> None:
    """Negative control: the test above has seen both."""
    lengths = {len(text) for seed in range(4) for text in responses(model(seed), TOKENIZER, PROMPTS, 6)[0]}
    assert 6 in lengths and min(lengths) < 6


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(TinyGPTError, match=r"prompt 2 .* takes 32 tokens"):
        responses(model(0), TOKENIZER, ["a", "a" * 30], 5)


# ---- extreme requests -----------------------------------------------------------------------------------------------


def test_a_token_is_drawn_from_logits_that_overflow_with_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite logits that become infinite when divided by the temperature give the most probable token, not NaN."""
    logits = torch.tensor([[-3e38, 2.9e38, 3e38], [3e38, 1.0, -3e38]])
    monkeypatch.setattr(GPT, "forward", lambda self, idx, **more: (logits[:, None], None))
    for choice in (
        Sampling(temperature=0.5),
        Sampling(temperature=1e-5),
        Sampling(temperature=0.5, top_k=2, top_p=0.9),
    ):
        assert [row.tolist() for row in generate(small(), torch.zeros(2, 1).long(), 1, choice)] == [[2, 0]]


@pytest.mark.parametrize("top_p", ["1e-300", "1e-45", "5e-324"])
def test_a_tiny_top_p_selects_the_most_probable_token(tiny_run: Path, top_p: str) -> None:
    said = [ok(tiny_run, "sample", "--max_new_tokens=20", flag).out for flag in (f"--top_p={top_p}", "--temperature=0")]
    assert said[0] == said[1]
    chances = probabilities(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 1.0]]), 1.0, 0, float(top_p))
    assert chances.sum(-1).tolist() == [1, 1] and chances[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("options", [{}, {"position": "rope"}], ids=str)
@pytest.mark.parametrize("exact", [False, True])
def test_generating_needs_memory_only_for_the_context(options: dict[str, Any], exact: bool) -> None:
    """A request for 10**12 tokens can be started, and yields the same tokens as a short request."""
    made = shaken(small(**options))
    for length in (1, 15, 16, 60):  # of 16
        prompt = ids(2, length)
        some = torch.stack(list(generate(made, prompt, 60, Sampling(), 0, exact)), dim=1)
        endless = generate(made, prompt, 10**12, Sampling(), 0, exact)
        assert torch.equal(some, torch.stack([next(endless) for _ in range(60)], dim=1))
