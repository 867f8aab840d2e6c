"""`tinygpt serve` with OpenAI's own client: its answers are those of `tinygpt sample`, and of the model's forward pass.

Two servers in this process have the models of these tests: a text model with learned positions, with an adapter that
answers prompts; and, with a key, a model of pairs with relative positions, with an adapter of it. Contexts are so short
that most answers go past them.
"""

import functools
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from conftest import GERMAN, PATIENCE, free_port, tiny_text, until
from serving import Server, events, sampled, serving, serving_here

from tinygpt.checkpoint.adapter import load_model
from tinygpt.data.dataset import Dataset
from tinygpt.data.prompts import encode_prompt
from tinygpt.data.tokenizer import END, Tokenizer, tokenizer_from_dict
from tinygpt.model import GPT

KEY = "0123456789abcdef-for-tests"
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def text(models: Path) -> Iterator[Server]:
    """The text model `out`, and its adapter `colours`."""
    flags = ["--ckpt=out", "--adapter=colours=out-lora/adapter.pt", "--max_tokens=500"]
    with serving_here(models, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def pairs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The model of pairs `out-colours`, and its adapter `german`. They need a key."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "key.txt").write_text(f"{KEY}\n")
    flags = ["--ckpt=out-colours", "--adapter=german=out-german", f"--api_key={folder / 'key.txt'}"]
    with serving_here(models, *flags, key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def ask(text: Server) -> Ask:
    """client.completions.create of the text model."""
    return functools.partial(text.client().completions.create, model="out")


@pytest.fixture(scope="module")
def chat(pairs: Server) -> Ask:
    """client.chat.completions.create of the model of pairs, with greedy decoding."""
    create = pairs.client().chat.completions.create
    return functools.partial(create, model="out-colours", temperature=0)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def loaded(server: Server, ckpt: str, adapter: str = "") -> tuple[GPT, Tokenizer]:
    """A model that a server has, in this process."""
    checkpoint = load_model(str(server.folder / ckpt), str(server.folder / adapter) if adapter else "")
    return checkpoint.build_model().eval(), tokenizer_from_dict(checkpoint.tokenizer, ckpt)


@torch.no_grad()
def log_probabilities(model: GPT, ids: list[int]) -> torch.Tensor:
    """Of the token after each of ids, (T, V)."""
    return model(torch.tensor([ids]))[0][0].log_softmax(-1)


SETTINGS = [(0.8, 200, 1.0, 1), (1.0, 0, 0.7, 2), (1e-3, 0, 1.0, 2**63 - 1)]  # temperature, top_k, top_p, seed


def as_flags(temperature: float, top_k: int, top_p: float, seed: int, length: int) -> list[str]:
    flags = [f"--temperature={temperature}", f"--top_k={top_k}", f"--top_p={top_p}", f"--seed={seed}"]
    return [*flags, f"--max_new_tokens={length}"]


def as_body(temperature: float, top_k: int, top_p: float, seed: int, length: int) -> dict[str, Any]:
    body = {"temperature": temperature, "top_p": top_p, "seed": seed, "max_tokens": length}
    return {**body, "extra_body": {"top_k": top_k}}


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_a_seed_gives_the_text_of_sample_past_a_context_with_learned_positions(
    text: Server, ask: Ask, chosen: tuple[float, int, float, int]
) -> None:
    answer = ask(prompt="the king", **as_body(*chosen, 60))
    assert answer.choices[0].text == sampled(text.folder, "the king", "--ckpt=out", *as_flags(*chosen, 60))
    assert len(answer.choices[0].text) == 60 and answer.choices[0].finish_reason == "length"
    used = {"prompt_tokens": 8, "completion_tokens": 60, "total_tokens": 68}
    assert answer.usage.model_dump(exclude_none=True) == used
    assert answer.object == "text_completion" and answer.model == "out" and answer.id.startswith("cmpl-")


def test_a_seed_gives_the_text_of_sample_past_a_context_with_relative_positions(pairs: Server) -> None:
    texts, create = list[str](), pairs.client().completions.create
    for seed in range(6):
        chosen = (4.0, 0, 1.0, seed, 80)
        flags = ["--ckpt=out-colours", "--adapter=out-german", "--plain", *as_flags(*chosen)]
        texts.append(sampled(pairs.folder, "0", *flags).partition(END)[0])
        assert create(model="german", prompt="0", **as_body(*chosen)).choices[0].text == texts[-1]
    assert max(map(len, texts)) > 40  # twice the context
    assert len(set(texts)) > 1


def test_a_seed_decides_no_seed_differs_and_top_p_0_is_greedy_decoding(ask: Ask) -> None:
    """Each sequence draws a seed of its own."""
    found = [ask(prompt="the", max_tokens=30, seed=seed).choices[0].text for seed in (1, 1, 2, None, None)]
    assert found[0] == found[1] and len(set(found)) == 4
    for more, different in (({}, 6), ({"seed": 1}, 1)):
        assert len({choice.text for choice in ask(prompt=["the"] * 6, max_tokens=30, **more).choices}) == different
    greedy = ask(prompt="the", temperature=0, max_tokens=40).choices[0].text
    assert ask(prompt="the", top_p=0, max_tokens=40).choices[0].text == greedy != found[0]


def test_each_of_sixteen_requests_at_once_gets_its_own_text(ask: Ask) -> None:
    prompts = ["the king", "thou art", "gone", "My heart doth si"]

    def body(seed: int) -> dict[str, Any]:
        return {"prompt": prompts[seed % 4], **as_body(*SETTINGS[seed % 3][:3], seed, 20 + 10 * (seed % 5))}

    alone = [ask(**body(seed)).choices[0].text for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        together = [answer.choices[0].text for answer in pool.map(lambda seed: ask(**body(seed)), range(16))]
    assert together == alone and len(set(alone)) == 16


def test_prompts_as_text_list_ids_and_lists_of_ids(text: Server, ask: Ask) -> None:
    prompts = ["the king", "art", "doth sin"]
    ids = [text.ask("tokenize", prompt=prompt)["tokens"] for prompt in prompts]
    assert ids == [loaded(text, "out")[1].encode(prompt).tolist() for prompt in prompts]
    assert text.ask("detokenize", tokens=ids[0]) == {"prompt": "the king"}
    greedy = {"temperature": 0, "max_tokens": 20}
    expected = [sampled(text.folder, one, "--ckpt=out", "--temperature=0", "--max_new_tokens=20") for one in prompts]
    assert len(set(expected)) == 3
    for several in (prompts, ids):
        answer = ask(prompt=several, **greedy)
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.prompt_tokens == 8 + 3 + 8 and answer.usage.completion_tokens == 60
        assert [ask(prompt=one, **greedy).choices[0].text for one in several] == expected


def test_n_adds_one_to_the_seed_of_each_choice(ask: Ask) -> None:
    single = [ask(prompt="the", seed=7 + i, max_tokens=20).choices[0].text for i in range(3)]
    several = ask(prompt=["my", "the"], seed=7, n=3, max_tokens=20).choices
    assert [choice.text for choice in several[3:]] == single
    assert [choice.index for choice in several] == [0, 1, 2, 3, 4, 5]


def test_stop_texts_end_an_answer_before_the_first_of_them(text: Server, ask: Ask) -> None:
    body = as_body(1.0, 0, 1.0, 5, 60)
    whole = ask(prompt="the", **body).choices[0].text
    stops = [whole[40:43], whole[25:28], whole[33:34] + "never", "never"]
    first = min(whole.index(stop) for stop in stops[:2])
    for stream in (False, True):
        answer = ask(prompt="the", stop=stops, stream=stream, **body)
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        assert "".join(choice.text for choice in choices) == whole[:first] and 0 < first < 40
        assert choices[-1].finish_reason == "stop"
    assert ask(prompt="the", stop="never", **body).choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="at most 4") as caught:
        ask(prompt="the", stop=[*stops, "fifth"], **body)
    assert caught.value.param == "stop"


def test_echo_repeats_the_prompt(ask: Ask) -> None:
    plain = ask(prompt=["the", "my"], seed=1, n=2).choices
    for stream in (False, True):
        answer = ask(prompt=["the", "my"], seed=1, n=2, echo=True, stream=stream)
        texts = ["", "", "", ""]
        for choice in (chunk.choices[0] for chunk in answer) if stream else answer.choices:
            texts[choice.index] += choice.text
        assert texts == ["the" + plain[0].text, "the" + plain[1].text, "my" + plain[2].text, "my" + plain[3].text]
    assert ask(prompt="the", echo=True, max_tokens=0).choices[0].text == "the"


def test_log_probabilities_are_those_of_the_forward_pass(text: Server, ask: Ask) -> None:
    model, tokenizer = loaded(text, "out")
    body = {"prompt": "the king", "logprobs": 3, "echo": True, "max_tokens": 6, "seed": 3}
    answer = ask(**body).choices[0]
    told = answer.logprobs
    assert "".join(told.tokens) == answer.text and answer.text.startswith("the king")
    ids = tokenizer.encode(answer.text).tolist()
    expected = log_probabilities(model, ids)
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None and len(told.token_logprobs) == len(ids)
    for position in range(1, len(ids)):
        row, top = expected[position - 1], told.top_logprobs[position]
        best = row.topk(3)
        assert told.token_logprobs[position] == pytest.approx(row[ids[position]].item(), abs=1e-4)
        assert top[told.tokens[position]] == told.token_logprobs[position]
        assert len(top) == 3 + (ids[position] not in best.indices)
        assert sorted(top.values())[-3:] == pytest.approx(best.values.flip(0).tolist(), abs=1e-4)
    assert expected.std() > 0.1  # negative control: of a uniform distribution anything would be right
    streamed = [chunk.choices[0] for chunk in ask(stream=True, **body)]
    assert "".join(choice.text for choice in streamed) == answer.text
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert [value for choice in streamed for value in getattr(choice.logprobs, name)] == getattr(told, name), name


def test_a_prompt_that_fills_the_context_is_scored_and_a_longer_one_refused(text: Server, ask: Ask) -> None:
    model, tokenizer = loaded(text, "out")
    ids = tokenizer.encode("my heart doth sing and").tolist()[:17]
    told = ask(prompt=ids[:16], echo=True, logprobs=0, max_tokens=1, temperature=0).choices[0].logprobs
    row = log_probabilities(model, ids[:16])
    assert told.token_logprobs[15:] == pytest.approx([row[14, ids[15]].item(), row[15].max().item()], abs=1e-4)
    with pytest.raises(openai.BadRequestError, match=r"17 tokens.*16") as caught:
        ask(prompt=ids)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"


@pytest.mark.parametrize(
    "kind, model, flags",
    [
        ("pairs", "out-colours", ["--ckpt=out-colours"]),
        ("pairs", "german", ["--ckpt=out-colours", "--adapter=out-german"]),
        ("text", "colours", ["--ckpt=out", "--adapter=out-lora"]),
    ],
)
def test_chat_answers_as_sample_does(
    kind: str, model: str, flags: list[str], request: pytest.FixtureRequest, models: Path
) -> None:
    create = functools.partial(request.getfixturevalue(kind).client().chat.completions.create, model=model)
    expected = sampled(models, "055 blue", *flags, "--temperature=0", "--max_new_tokens=12")
    answer = create(messages=user("055 blue"), temperature=0)
    assert answer.choices[0].message.content == expected == (GERMAN["blue"] if model == "german" else "blue")
    assert answer.choices[0].finish_reason == "stop" and answer.model == model
    assert answer.usage.completion_tokens == len(expected) + 1
    again = create(messages=user([{"type": "text", "text": part} for part in ("055 b", "lue")]), temperature=0)
    assert again.choices[0].message.content == expected and again.usage == answer.usage
    several = create(messages=user("055 blue"), n=4, temperature=1.5, seed=11, max_tokens=30).choices
    texts = [choice.message.content for choice in several]
    assert texts[0] == sampled(models, "055 blue", *flags, *as_flags(1.5, 0, 1.0, 11, 30)) and len(set(texts)) > 1


def test_the_length_of_a_chat(chat: Ask) -> None:
    found = chat(messages=user("123 green"), max_tokens=1, max_completion_tokens=4).choices[0]
    assert found.message.content == "gree" and found.finish_reason == "length"
    found = chat(messages=user("055 blue 055 green"))  # 18 characters and two special tokens fill the context
    assert found.usage.completion_tokens == 1 and found.choices[0].finish_reason == "length"


def test_log_probabilities_of_a_chat(pairs: Server, chat: Ask) -> None:
    model, tokenizer = loaded(pairs, "out-colours")
    ids = encode_prompt("123 red", tokenizer)
    assert tokenizer.pair
    answer = chat(messages=user("123 red"), logprobs=True, top_logprobs=2).choices[0]
    told = answer.logprobs.content
    assert [entry.token for entry in told] == ["r", "e", "d", END]
    for entry in told:
        row = log_probabilities(model, ids)[-1]
        assert entry.logprob == pytest.approx(row.max().item(), abs=1e-4)
        assert [other.logprob for other in entry.top_logprobs] == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)
        assert entry.top_logprobs[0].token == entry.token and bytes(entry.bytes).decode() == entry.token
        ids += tokenizer.pair.end.tolist() if entry.token == END else tokenizer.encode(entry.token).tolist()
    stream = chat(messages=user("123 red"), logprobs=True, top_logprobs=2, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in stream]
    assert [entry for part in parts if part for entry in part.content] == told


def test_order_of_the_chunks_of_a_chat(pairs: Server) -> None:
    body = {"messages": user("123 green"), "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    status, data, headers = pairs.request("POST", "/v1/chat/completions", json.dumps(body).encode())
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = events(data)
    assert done == "[DONE]" and last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 11, "completion_tokens": 6, "total_tokens": 17}
    assert all(chunk.get("usage") is None for chunk in chunks)
    assert len({(chunk["object"], chunk["id"]) for chunk in chunks}) == 1
    first, *contents, end = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"] for choice in contents] == [{"content": letter} for letter in "green"]
    assert end["delta"] == {} and end["finish_reason"] == "stop"


def test_models_and_adapters_are_listed(text: Server, pairs: Server) -> None:
    listed = {model.id: model.model_dump() for model in pairs.client().models.list()}
    assert list(listed) == ["out-colours", "german"]
    for name, adapter in (("out-colours", ""), ("german", "out-german")):
        entry, (model, tokenizer) = listed[name], loaded(pairs, "out-colours", adapter)
        assert entry["object"] == "model" and 0 < entry["created"] <= time.time()
        assert (entry["task"], entry["turns"], entry["system"], entry["context"]) == ("chat", False, False, 20)
        assert entry["parameters"] == model.num_params() and entry["vocabulary"] == tokenizer.vocab_size
    assert [(model.id, model.task) for model in text.client().models.list()] == [("out", "text"), ("colours", "chat")]
    assert text.ask("v1/completions", prompt="the")["model"] == "out"  # the first one
    assert re.search(rf"^serving:  out, colours\npage:     http://127.0.0.1:{text.port}\n", text.output, re.M)


def test_the_page_gets_prompts_of_each_model_s_dataset_on_this_machine_only(text: Server, pairs: Server) -> None:
    def starts(server: Server) -> dict[str, list[str]]:
        return {model.id: model.model_dump()["starts"] for model in server.client().models.list()}

    dataset = Dataset(str(text.folder / "data"), "german")
    known = [prompt for prompt, _ in dataset.sources["val"].examples(dataset.tokenizer)][:3]
    assert starts(pairs)["german"] == known and starts(text)["out"] == tiny_text().split("\n")[:3]
    config = pairs.app.state.tinygpt.config
    config.host = "0.0.0.0"
    try:
        assert list(starts(pairs).values()) == [[], []]
    finally:
        config.host = "127.0.0.1"


def test_a_model_and_a_path_that_do_not_exist(text: Server, ask: Ask) -> None:
    with pytest.raises(openai.NotFoundError, match="the models are out, colours") as caught:
        ask(model="gpt-4", prompt="a")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError, match="continues text"):
        text.client().chat.completions.create(model="out", messages=user("12 red"))
    assert text.request("GET", "/v1/models/nobody")[0] == 404


TURNS = [*user("123 red"), {"role": "assistant", "content": "red"}, *user("124 blue")]


@pytest.mark.parametrize(
    "api, field, value, said",
    [
        ("ask", "temperature", "warm", "expected a number"),
        ("ask", "top_p", 1.1, "expected 0 to 1"),
        ("ask", "max_tokens", 501, "limit of 500"),
        ("ask", "stream", "yes", "true or false"),
        ("ask", "prompt", None, "required"),
        ("ask", "prompt", [1, -1], None),
        ("ask", "prompt", [1, 1000], None),
        ("ask", "prompt", "ä", r"U\+00E4"),
        ("ask", "prompt", ["a"] * 129, "at most 128"),
        ("ask", "presence_penalty", 0.5, "not supported"),
        ("chat", "tools", [{}], None),
        ("chat", "response_format", {"type": "json_object"}, None),
        ("chat", "messages", TURNS, "one prompt"),
        ("chat", "messages", [{"role": "system", "content": "be brief"}, *user("123 red")], "no system message"),
        ("chat", "messages", user([{"type": "image_url", "image_url": {"url": "data:,"}}]), "no images"),
        ("chat", "messages", user(" "), "the prompt is empty"),
    ],
    ids=str,
)
def test_a_wrong_or_unsupported_field_is_refused(
    api: str, field: str, value: object, said: str | None, request: pytest.FixtureRequest
) -> None:
    given = {"prompt": "the"} if api == "ask" else {"messages": user("123 red")}
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        request.getfixturevalue(api)(**given, extra_body={field: value})
    assert caught.value.param == field and caught.value.type == "invalid_request_error"
    assert f"{field}: " in caught.value.message


def test_unknown_and_neutral_fields_are_ignored(chat: Ask, ask: Ask) -> None:
    more: dict[str, Any] = {"user": "me", "store": False, "unheard_of": [1, {"x": None}]}
    neutral = {"presence_penalty": 0, "logit_bias": {}, "n": 1, "stop": None, "seed": None, "tools": []}
    answer = chat(messages=user("123 red"), extra_body=more | neutral | {"response_format": {"type": "text"}})
    assert answer.choices[0].message.content == "red"
    assert ask(prompt="the", seed=1, extra_body=more).choices[0].text == ask(prompt="the", seed=1).choices[0].text


def test_a_wrong_key(pairs: Server) -> None:
    with pytest.raises(openai.AuthenticationError, match="a key is required") as caught:
        pairs.client(api_key=KEY.upper()).models.list()
    assert caught.value.code == "invalid_api_key"
    assert pairs.request("GET", "/health", authorization="")[0] == 200


def test_a_body_that_is_too_large(ask: Ask) -> None:
    with pytest.raises(openai.APIStatusError, match="larger than 4 MiB") as caught:
        ask(prompt="a" * (5 << 20))
    assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_while_a_model_loads_requests_get_503(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out/ckpt.pt")  # it is never written, so the model loads until the test ends
    with serving(tmp_path, tmp_path / "log", "--ckpt=out", port=free_port(), wait=False) as server:

        def loading() -> openai.InternalServerError | None:
            try:
                server.client().models.list()
            except openai.APIConnectionError:  # not yet listening
                return None
            except openai.InternalServerError as error:
                return error
            raise AssertionError("it answers without a model")

        error = until(loading)
        assert (error.status_code, error.code) == (503, "loading") and error.response.headers["retry-after"] == "1"
        status, data, _ = server.request("GET", "/health")
        assert (status, json.loads(data)) == (503, {"status": "loading"})
        assert server.stop(signal.SIGINT) == 0
        assert server.output == "stopped\n"


def test_a_request_that_takes_too_long_gets_503_or_ends_its_stream(models: Path) -> None:
    with serving_here(models, "--ckpt=out", "--timeout=1", "--max_tokens=1000000") as server:
        create = server.client().completions.create
        with pytest.raises(openai.InternalServerError, match="longer than the server allows") as caught:
            create(model="out", prompt="the", max_tokens=1000000)
        assert (caught.value.status_code, caught.value.code) == (503, "timeout")
        limits, pieces = server.app.state.tinygpt.config, []
        limits.timeout = 3.0
        with pytest.raises(openai.APIError, match="longer than the server allows"):
            for chunk in create(model="out", prompt="the", max_tokens=1000000, stream=True):
                pieces.append(chunk.choices[0].text)
        assert pieces
        limits.timeout = PATIENCE
        assert create(model="out", prompt="the", max_tokens=5).usage.completion_tokens == 5
