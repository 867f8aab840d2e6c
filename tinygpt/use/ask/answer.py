"""Answer a question from passages with a language model: the prompt, what fits the context, the answer's probability.

A reader is either a model trained on the task `reader` (data/tasks/reader.py), or an instruction model with a chat
template. Documents and questions are always encoded as plain text, never as special tokens. So a document cannot end
the prompt, or speak for the user.

Source: a reader of retrieved passages, Chen et al. 2017, "Reading Wikipedia to Answer Open-Domain Questions".

    reader = Reader(model, tokenizer, dataset="reader")
    reader.read("Who is the CFO of Norvik?", search(index, "Who is the CFO of Norvik?", 3)).text    # "Lars Holm"
"""

import bisect
import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tinygpt.base.configs.use import AskConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import one_line
from tinygpt.checkpoint.loaded import Loaded
from tinygpt.data.tasks import reader as task
from tinygpt.data.tokenizer import CharTokenizer, HuggingFaceTokenizer, Tokenizer
from tinygpt.generate import GREEDY, generate_with_logits
from tinygpt.model import GPT
from tinygpt.use.ask.passages import sentences
from tinygpt.use.ask.store import Passage

# --ckpt=reader: the tiny reader that ships
TINY = "reader"
SHIPPED = Path(__file__).with_name("reader.pt")
LONGEST = 96  # tokens of a response, at most
INSTRUCTION = (
    "Answer with a few words copied from the passages. If the passages do not answer the question, answer "
    f'"{task.UNANSWERABLE}".'
)
# Characters that Unicode does not decompose into ASCII; a character model seldom knows them.
SPELLINGS = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "–": "-", "—": "-", "−": "-", "‐": "-"}
    | {"ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "Oe", "ł": "l", "Ł": "L", "đ": "d"}
)


class Answer(NamedTuple):
    """A model's answer."""

    text: str  # empty if the model found none
    probability: float  # of the complete response, the product over its tokens
    passage: int = 0  # the number of the passage that the model cites, 0 if it cites none
    note: str = ""  # which passages were shortened or left out; whether the answer was cut off


class Reader:
    """A model that answers questions from passages. Errors: TinyGPTError for a model that only continues text."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, dataset: str = "") -> None:
        """dataset: the name of the dataset that the model was trained on."""
        if tokenizer.pair is None:
            hint = "use a reader (tinygpt prepare reader) or an instruction model (tinygpt import smollm2)"
            raise TinyGPTError("this model only continues text; it does not answer prompts", hint)
        self.model = model
        self.tokenizer = tokenizer
        self.end = int(tokenizer.pair.end[0])
        chat = isinstance(tokenizer, HuggingFaceTokenizer) and bool(tokenizer.chat_template)
        self.copies = dataset in task.DATASETS  # answers are copied from a passage; other models may translate
        self.instructed = chat and not self.copies
        self.room = min(LONGEST, model.config.block_size // 3)  # tokens of the context kept for the response

    def read(self, question: str, hits: Sequence[Passage]) -> Answer:
        """Answer a question from one or more passages, the most relevant first.

        Errors: TinyGPTError if the question leaves no room for a passage in the model's context, or if the model's
        vocabulary has none of the characters of the question or of the passages.
        """
        question = self.readable(question)
        titles = [self.readable(f"{hit.title}: ") * bool(hit.title) for hit in hits]
        passages = list(zip(titles, (self.readable(hit.text) for hit in hits), strict=True))
        for name, text in ("question", question), ("passages", "".join(text for _, text in passages)):
            if not text.strip():
                message = f"the model cannot read the {name}: its vocabulary has none of the characters"
                raise TinyGPTError(message, "use --ckpt with a model for this language")
        read = self.fitted(question, passages)
        if not any(read):
            message = f"the question has {len(self.ids(question, [])):,} tokens, which leaves no room for a passage"
            context = f"the model's context has {self.model.config.block_size:,}, {self.room} of them for the response"
            raise TinyGPTError(f"{message}: {context}", "ask a shorter question, or use a model with a larger context")
        numbers = [number for number, part in enumerate(read, start=1) if part]  # of the passages in the prompt
        prompt = self.ids(question, list(filter(None, read)))
        response, probability = self.respond(prompt)
        response_text = self.tokenizer.decode(response).strip()
        is_sentence = self.instructed and not response_text.startswith("[")  # "Five years [1]."
        number, text = (0, response_text) if is_sentence else task.cited_answer(response_text)
        cited = numbers[number - 1] if 0 < number <= len(numbers) else 0
        text = "" if task.unanswerable(text) else text
        cut = f"the model's response was cut off after {self.room} tokens" if len(response) == self.room else ""
        note = "; ".join(filter(None, (self.unread_note(passages, read), cut)))
        return Answer(text, probability, cited * bool(text), note)

    def quoted(self, question: str, hits: Sequence[Passage]) -> Answer:
        """Answer a question as `read` does, but with a quotation: as a passage that was read spells it, or empty.

        If the model cites a passage, the answer must stand in that one. Errors: as in `read`.
        """
        answer = self.read(question, hits)
        for number, hit in enumerate(hits, start=1):
            text = one_line(hit.text)
            place = self.span(answer.text, text) if answer.passage in (0, number) else None
            if place:
                return answer._replace(text=text[slice(*place)], passage=number)
        return answer._replace(text="", passage=0)

    @torch.inference_mode()
    def respond(self, prompt: np.ndarray) -> tuple[list[int], float]:
        """Decode the response to an encoded prompt greedily; return its token ids and their probability.

        The ids are at most `room`, without the end token. The probability includes the end token.
        """
        idx = torch.from_numpy(prompt)[None].to(self.model.lm_head.weight.device)
        ids: list[int] = []
        log_probability = 0.0
        for tokens, logits in generate_with_logits(self.model, idx, self.room + 1, GREEDY, self.tokenizer.vocab_size):
            token = int(tokens) if len(ids) < self.room else self.end
            log_probability += float(logits[0].float().log_softmax(-1)[token])
            if token == self.end:
                break
            ids.append(token)
        return ids, math.exp(log_probability)

    def ids(self, question: str, passages: Sequence[str]) -> np.ndarray:
        """Encode the prompt: int64 (n,). Its only special tokens are those of the tokenizer's prompt format."""
        if self.instructed:
            numbered = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, start=1))
            prompt = f"Passages:\n{numbered}\n\nQuestion: {question}\n{INSTRUCTION}"
        else:
            prompt = task.reader_prompt(question, passages)
        return self.tokenizer.encode_prompt(prompt, skip_unknown=True).astype(np.int64)

    def readable(self, text: str) -> str:
        """Convert a text to one line of characters in the vocabulary; others lose their accents or are left out."""
        return "".join(self.spelled(re.sub(r"\s+", " ", text)))

    def spelled(self, text: str) -> list[str]:
        """Spell each character of a text with characters in the vocabulary: unchanged, in ASCII, or empty."""
        if not isinstance(self.tokenizer, CharTokenizer):
            return [*text]
        known = set(self.tokenizer.symbols)
        return ["".join(c for c in ([char] if char in known else ascii_letters(char)) if c in known) for char in text]

    def fitted(self, question: str, passages: Sequence[tuple[str, str]]) -> list[str]:
        """Shorten passages (title, text) to fit the context with the response; each is complete, shortened or empty.

        Reading each passage alone and taking the most probable answer, as Chen et al. do, was measured to be worse: a
        tiny reader answers from the wrong passage with confidence, and seldom abstains.
        """
        fitted: list[str] = []

        def fits(passage: str) -> bool:
            return len(self.ids(question, [*filter(None, fitted), passage])) <= self.model.config.block_size - self.room

        def selected(title: str, text: str) -> str:
            part = shortened(text, question, lambda part: fits(title + part))
            return title + part if part else ""

        for title, text in passages:
            # a long heading is left out before the text is
            fitted.append(title + text if fits(title + text) else selected(title, text) or selected("", text))
        return fitted

    def unread_note(self, passages: Sequence[tuple[str, str]], read: Sequence[str]) -> str:
        """Name the passages that the model does not read completely; empty if it reads them all."""
        parts: dict[str, list[str]] = {"shortened": [], "left out": []}
        for number, (passage, used) in enumerate(zip(passages, read, strict=True), start=1):
            if used != "".join(passage):
                parts["shortened" if used else "left out"].append(str(number))
        nouns = {change: "passages" if len(n) > 1 else "passage" for change, n in parts.items()}
        notes = [f"{nouns[change]} {', '.join(n)} {change}" for change, n in parts.items() if n]
        return f"the model's context has {self.model.config.block_size:,} tokens: {'; '.join(notes)}" if notes else ""

    def span(self, answer: str, text: str) -> tuple[int, int] | None:
        """Find the span (start, end) of an answer in a passage; None if there is none. The answer is `spelled`."""
        parts = self.spelled(text)
        match = occurrence(answer, "".join(parts))
        if not match:
            return None
        ends = list(itertools.accumulate(map(len, parts)))  # of each character of the text
        return bisect.bisect_right(ends, match.start()), bisect.bisect_left(ends, match.end()) + 1


def load_reader(config: AskConfig) -> Reader:
    """Load the model of --ckpt and --adapter. Errors: TinyGPTError, also if it only continues text."""
    loaded = Loaded.load(file_of(config.ckpt), config.adapter, config)
    return Reader(loaded.model, loaded.tokenizer, str(loaded.config.get("dataset", "")))


def file_of(ckpt: str) -> str:
    """Return the path of a model: that of the tiny reader for `reader`, unless a file or folder has this name."""
    return str(SHIPPED) if ckpt == TINY and not Path(TINY).exists() else ckpt


def occurrence(answer: str, text: str) -> re.Match[str] | None:
    """Find an answer in a text as whole words and numbers: 12, but not a part of 1912 or of 12.5."""
    return re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?!\w|[.,]\d)", text, re.IGNORECASE) if answer else None


def shortened(passage: str, question: str, fits: Callable[[str], bool]) -> str:
    """Shorten a passage to the sentences that share most words with the question, as many as fit, in their order.

    A word that occurs in few sentences counts more. If no sentence fits, parts of sentences are selected, if any fits.
    """
    for size in (len(passage), 40):  # characters; the second for sentences that are too long
        pieces = [passage[start:end] for start, end in sentences(passage, size)]
        selected: list[int] = []
        for i in by_rare_words(pieces, question):
            if fits(" ".join(pieces[j] for j in sorted([*selected, i]))):
                selected.append(i)
        if selected:
            return " ".join(pieces[i] for i in sorted(selected))
    return ""


def by_rare_words(pieces: Sequence[str], question: str) -> list[int]:
    """Order pieces of text by the words that they share with a question, of which one in few pieces counts more."""
    question_words = words(question)
    shared = [words(piece) & question_words for piece in pieces]
    counts = Counter(word for piece_words in shared for word in piece_words)
    rarity = [math.fsum(1 / counts[word] for word in piece_words) for piece_words in shared]  # in any order the same
    return sorted(range(len(pieces)), key=lambda i: -rarity[i])


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def ascii_letters(character: str) -> str:
    """Convert a character to ASCII, without accents: `e` for `é`; empty if it has no ASCII equivalent."""
    return unicodedata.normalize("NFKD", character.translate(SPELLINGS)).encode("ascii", "ignore").decode()
