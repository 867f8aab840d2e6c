"""`tinygpt sample` on the command line: its output is what the options request."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, ok
from hypothesis import given, settings
from hypothesis import strategies as st
from models import nanogpts_file

from tinygpt import api
from tinygpt.checkpoint.store import load, save
from tinygpt.data.tokenizer import CharTokenizer, GPT2Tokenizer, HuggingFaceTokenizer, Tokenizer, tokenizer_from_dict
from tinygpt.generate import Sampling, TextStream, draw, generate


def written(folder: Path, *args: str) -> str:
    seed = [] if any(arg.startswith("--seed") for arg in args) else ["--seed=1337"]
    return ok(folder, "sample", "--device=cpu", *seed, *args).out


def objects(folder: Path, *args: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(folder, "--json", *args).splitlines()]


def test_the_text_is_what_the_model_generates(tiny_run: Path) -> None:
    """From checkpoint to text by hand, with the tokenizer that the checkpoint holds."""
    checkpoint = load(tiny_run / "out/ckpt.pt")
    tokenizer = tokenizer_from_dict(checkpoint.tokenizer, "")
    prompt = torch.tensor([tokenizer.encode("The king").tolist()])
    choice = Sampling(temperature=0.7, top_k=10, top_p=0.9, seed=3)
    steps = generate(checkpoint.build_model().eval(), prompt, 40, choice, tokenizer.vocab_size)
    expected = tokenizer.decode([int(step[0]) for step in steps])
    args = ["--start=The king", "--temperature=0.7", "--top_k=10", "--top_p=0.9", "--seed=3", "--max_new_tokens=40"]
    assert written(tiny_run, *args) == f"The king{expected}\n"
    assert objects(tiny_run, *args) == [{"sample": 0, "prompt": "The king", "text": expected}]
    assert expected not in written(tiny_run, *args[:-2], "--seed=4")


def test_each_call_without_a_seed_writes_another_text(tiny_run: Path) -> None:
    """Its seed repeats the text, through the command line and through a config file; the API keeps its seed."""
    calls = [ok(tiny_run, "sample", "--device=cpu") for _ in range(3)]
    assert len({call.out for call in calls}) == 3
    for call in calls:
        seed = re.fullmatch(r"seed: (\d+) \(the same text again: --seed=\1\)\n", call.err)
        assert seed and ok(tiny_run, "sample", "--device=cpu", f"--seed={seed[1]}") == Result(0, call.out, "")
    assert not ok(tiny_run, "sample", "--device=cpu", "--temperature=0").err
    texts = {api.load(tiny_run / "out", device="cpu").generate(n=50) for _ in range(2)}
    assert texts == {written(tiny_run, "--seed=1337", "--max_new_tokens=50").removeprefix("\n").removesuffix("\n")}


def test_streamed_text_is_batch_text(tiny_run: Path) -> None:
    for extra in ([], ["--stop=k"], ["--exact_window"], ["--temperature=0"]):
        args = ["--start=My heart", "--max_new_tokens=60", *extra]
        (made,) = objects(tiny_run, *args)
        assert written(tiny_run, *args) == f"{made['prompt']}{made['text']}\n"


def test_streamed_text_is_batch_text_if_tokens_begin_with_a_space(run_copy: Path) -> None:
    """A tokenizer in the style of SentencePiece, which leaves out a space at the beginning of what it decodes."""
    library, checkpoint = pytest.importorskip("tokenizers"), load(run_copy / "out/ckpt.pt")
    words = {f"▁{chr(97 + i)}": i for i in range(checkpoint.model_args["vocab_size"])}
    encoding = library.Tokenizer(library.models.WordLevel(words))
    encoding.pre_tokenizer, encoding.decoder = library.pre_tokenizers.Metaspace(), library.decoders.Metaspace()
    checkpoint.tokenizer = HuggingFaceTokenizer(encoding.to_str()).to_dict()
    save(run_copy / "out/ckpt.pt", checkpoint)
    (made,) = objects(run_copy, "--start=a b", "--max_new_tokens=5")
    assert made["prompt"] == "a b" and made["text"][0] == " "
    assert written(run_copy, "--start=a b", "--max_new_tokens=5") == f"a b{made['text']}\n"


def test_samples_of_one_prompt(tiny_run: Path) -> None:
    args = ["--num_samples=3", "--max_new_tokens=30", "--start=The "]
    made = objects(tiny_run, *args)
    assert [one["sample"] for one in made] == [0, 1, 2] and {one["prompt"] for one in made} == {"The "}
    assert len({one["text"] for one in made}) == 3 and {len(one["text"]) for one in made} == {30}
    assert written(tiny_run, *args) == "".join(f"The {one['text']}\n{'-' * 15}\n" for one in made)


def test_generation_stops_when_every_sample_has_ended(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr("tinygpt.generate.draw", lambda *given: steps.append(1) or draw(*given))
    args = ["--num_samples=4", "--max_new_tokens=300"]
    whole = [one["text"] for one in objects(tiny_run, *args)]
    ends = [text.index(" t") for text in whole]
    assert len(steps) == 300 and len(set(ends)) == 4 and max(ends) < 290
    steps.clear()
    stopped = [one["text"] for one in objects(tiny_run, *args, "--stop= t")]
    assert stopped == [text[:end] for text, end in zip(whole, ends, strict=True)]
    assert len(steps) == max(ends) + len(" t")


def test_the_ends_of_texts_and_prompts(run_copy: Path) -> None:
    assert written(run_copy, "--start=The king", "--max_new_tokens=0") == "The king\n"
    (sample,) = objects(run_copy, "--max_new_tokens=30")
    assert objects(run_copy, "--max_new_tokens=30", f"--stop={sample['text'][-2:]}§") == [sample]  # half a stop text
    (run_copy / "prompt.txt").write_text("The king\nof my heart")
    from_file = written(run_copy, "--start=FILE:prompt.txt", "--max_new_tokens=20")
    assert from_file == written(run_copy, "--start=The king\nof my heart", "--max_new_tokens=20")
    assert written(run_copy, "--start=") == written(run_copy) and from_file[0] != "\n" == written(run_copy)[0]


def test_nanogpts_file_with_the_tokenizer_of_its_dataset(run_copy: Path) -> None:
    torch.save(nanogpts_file(load(run_copy / "out/last.pt")), run_copy / "nano.pt")
    expected = written(run_copy, "--ckpt=out/last.pt", "--start=The ")
    assert written(run_copy, "--ckpt=nano.pt", "--start=The ") == expected
    (run_copy / "data").rename(run_copy / "elsewhere")
    assert written(run_copy, "--ckpt=nano.pt", "--start=The ", "--data_dir=elsewhere") == expected


def streamed(tokenizer: Tokenizer, ids: list[int], *stops: str) -> str:
    stream, text = TextStream(tokenizer, stops), ""
    for token in ids:
        text += stream.feed(token)
        if stream.stopped:
            break
    return text + stream.end()


@settings(deadline=None)
@given(text=st.text("ab\n", max_size=30), stops=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3))
def test_streaming_stops_exactly_before_the_first_stop_text(text: str, stops: list[str]) -> None:
    """Of texts that are complete at the same token, the longest comes first."""
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    assert streamed(CharTokenizer("ab\n"), CharTokenizer("ab\n").encode(text).tolist(), *stops) == expected


def test_characters_spread_over_several_tokens_come_whole() -> None:
    tokenizer = GPT2Tokenizer()
    text = "naïve 🤗 字𝄞 end"
    ids = tokenizer.encode(text).tolist()
    assert any("\ufffd" in tokenizer.decode([token]) for token in ids)
    for count in range(len(ids) + 1):  # cut in the middle of a character too
        assert streamed(tokenizer, ids[:count]) == tokenizer.decode(ids[:count])
    assert streamed(tokenizer, ids, "字") == "naïve 🤗 "
