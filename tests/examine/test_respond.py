"""Responses in batches are those of one prompt at a time; extreme requests for generated text."""

import numpy as np
import pytest
import torch

from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer
from tinygpt.examine.eval.classify import label_scores
from tinygpt.examine.eval.respond import responses
from tinygpt.generate import answer
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


def test_a_batch_responds_as_one_prompt_at_a_time() -> None:
    lengths = set()
    for seed in (0, 1):
        made = model(seed)
        texts, probabilities = responses(made, TOKENIZER, PROMPTS, 6)
        assert texts == [answer(made, TOKENIZER, prompt, 6) for prompt in PROMPTS]
        lengths |= {len(text) for text in texts}
        ended = [i for i, text in enumerate(texts) if len(text) < 6 and set(text) <= set("abcdefgh")]
        for i in ended:  # the same text as a label: P(label, END | prompt)
            total, _ = label_scores(made, TOKENIZER, [PROMPTS[i]], [texts[i]])
            assert np.log(probabilities[i]) == pytest.approx(total[0, 0], abs=1e-4)
    assert 6 in lengths and min(lengths) < 6  # negative control: some end, and some are cut off


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(TinyGPTError, match=r"prompt 2 .* takes 32 tokens"):
        responses(model(0), TOKENIZER, ["a", "a" * 30], 5)
