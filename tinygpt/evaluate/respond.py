"""Greedy responses of a model to many prompts, in batches.

texts, probabilities = responses(model, tokenizer, ["2 + 2", "3 + 4"], longest=8)      # ["4", "7"], [0.98, 0.91]
"""

from collections.abc import Sequence

import numpy as np
import torch

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.classify import cut, of_equal_length
from tinygpt.generate import GREEDY, generate_with_logits
from tinygpt.model import GPT
from tinygpt.terminal import progress

BATCH_TOKENS = 1 << 14  # prompts and responses of a batch


@torch.inference_mode()
def responses(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], longest: int, skip_unknown: bool = False
) -> tuple[list[str], np.ndarray]:
    """Decode the response to each prompt greedily, up to its end or `longest` tokens: texts, and their probabilities.

    A probability, float64 (n,), is that of the complete response, the product over its tokens and END; a response that
    is cut off has the probability of its tokens. Errors: TinyGPTError for a prompt that leaves no room for a response
    in the model's context, and for logits that are not finite.
    """
    assert tokenizer.pair is not None
    end, device = int(tokenizer.pair.end[0]), model.lm_head.weight.device
    asked = [tokenizer.encode_prompt(prompt, skip_unknown).astype(np.int64) for prompt in prompts]
    room = model.config.block_size
    for number, ids in enumerate(asked, start=1):
        if len(ids) >= room:
            raise TinyGPTError(
                f"prompt {number} ({cut(repr(prompts[number - 1]), 40)}) takes {len(ids)} tokens, and the model's "
                f"context has {room}",
                "shorten it, or train with a larger --block_size",
            )
    texts, log_probabilities = [""] * len(asked), np.zeros(len(asked))
    most = BATCH_TOKENS // (max(map(len, asked), default=0) + longest)
    with progress(total=len(asked), unit="prompt", desc="writing responses") as bar:
        for some in of_equal_length(asked, most):
            idx = torch.from_numpy(np.stack([asked[i] for i in some])).to(device)
            steps = min(longest, room - idx.size(1))
            made, ended = np.full((len(some), steps), end), torch.zeros(len(some), dtype=torch.bool)
            total = torch.zeros(len(some), dtype=torch.float64)
            for step, (tokens, logits) in enumerate(
                generate_with_logits(model, idx, steps, GREEDY, tokenizer.vocab_size)
            ):
                best, chosen = logits.float().log_softmax(-1).amax(-1).cpu(), tokens.cpu()
                total += best.double().masked_fill(ended, 0)
                ended = ended | (chosen == end)
                made[:, step] = chosen.masked_fill(ended, end).numpy()
                if ended.all():
                    break
            for row, i in enumerate(some):
                texts[i] = tokenizer.decode(made[row][made[row] != end].tolist())
                log_probabilities[i] = total[row]
            bar.update(len(some))
    return texts, np.exp(log_probabilities)
