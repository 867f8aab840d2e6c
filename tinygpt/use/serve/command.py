"""`tinygpt serve`: load the models, listen, and end in order.

The server listens before the models are loaded; until then GET /health has the status 503. SIGINT and SIGTERM end the
server when the accepted requests are complete, or after DRAIN seconds; a second signal ends it at once.
"""

import contextlib
import json
import os
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinygpt.base.configs import suggest
from tinygpt.base.configs.shared import InferenceConfig
from tinygpt.base.configs.use import AskConfig, ServeConfig
from tinygpt.base.errors import TinyGPTError, require_installed
from tinygpt.base.files import folder_of, read_text
from tinygpt.checkpoint.adapter import Adapters
from tinygpt.checkpoint.loaded import Loaded
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.fast.decoder import pack
from tinygpt.use.serve.engine import Engine, Served
from tinygpt.use.serve.listen import LOCAL, LOOPBACK, listen, make_server, signals
from tinygpt.use.serve.protocol import DOCUMENTS, LABELS

DRAIN = 30  # seconds for the requests that are running when the server is asked to end
Respond = Callable[[str], tuple[str, dict[str, Any]]]  # from a message to the answer, and what is known about it
SHORTEST_KEY = 16  # characters
MAKE_KEY = "python -c 'import secrets; print(secrets.token_hex(16))' > key.txt"
SHOWN = 20  # labels in a reply
STARTS = 3  # prompts that the page offers
OPENINGS = ["Once upon a time", "The capital of France is", "The best way to learn is"]  # of an imported model
QUESTIONS = ["What is a bond?", "Why is the sky blue?", "Write a short poem about the sea."]


def serve(config: ServeConfig) -> None:
    """Serve until a signal, then end this process. Errors: TinyGPTError."""
    require_installed("tinygpt serve", "starlette", "uvicorn")
    from tinygpt.use.serve.app import make_app
    from tinygpt.use.serve.state import Responder, State

    key = read_key(config)
    paths = adapters_of(config)
    listener = listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    hosts = LOCAL if config.host in LOOPBACK else frozenset[str]()  # with a key, DNS rebinding gains nothing
    state = State(config)
    server = make_server(make_app(state, key, hosts), DRAIN)
    errors: list[BaseException] = []

    def load() -> None:
        try:
            models: list[Served] = []
            prompt: str | None = ""
            if serves_gpt(config):
                models = load_models(config, Adapters(config.ckpt, paths))
                prompt = None if models[0].tokenizer.pair is None else next(iter(models[0].starts), "")
            respond = {DOCUMENTS: reader(config)} if has_documents(config) else {}
            respond |= {LABELS: labeller(config)} if config.labels else {}
            responders = [Responder(name, function, config.max_queue) for name, function in respond.items()]
            state.open(Engine(models, config.max_batch, config.max_queue), responders)
            print(welcome(config, state.names(), prompt, host, port), flush=True)
        except BaseException as error:
            errors.append(error)
            server.should_exit = True

    with signals(server):
        threading.Thread(target=load, daemon=True).start()
        server.run([listener])
        listener.close()
    if errors:
        raise errors[0]
    print("stopped", flush=True)
    os._exit(0)  # a thread that is inside PyTorch would abort the process when Python ends


def serves_gpt(config: ServeConfig) -> bool:
    """Return whether a checkpoint is served: not if --labels or --documents is given without one."""
    return not (config.labels or has_documents(config)) or bool({"ckpt", "adapter"} & config.given)


def has_documents(config: ServeConfig) -> bool:
    return bool(config.documents or config.index)


def adapters_of(config: ServeConfig) -> dict[str, str]:
    """Return the paths of the adapters by name. Errors: TinyGPTError if a name is missing or not unique."""
    paths_by_name: dict[str, str] = {}
    taken = {
        base_name(config.ckpt),
        *([DOCUMENTS] if has_documents(config) else []),
        *([LABELS] if config.labels else []),
    }
    for text in config.adapter:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise TinyGPTError(f"--adapter {text}: expected NAME=PATH", "--adapter a=out-a/adapter.pt")
        if name in {*taken, *paths_by_name}:
            raise TinyGPTError(f"--adapter {text}: another model has the name {name}", "choose another name")
        paths_by_name[name] = str(Path(path).expanduser())
    return paths_by_name


def base_name(ckpt: str) -> str:
    """Return the name of the base model, which is the name of its folder."""
    return Path(os.path.abspath(folder_of(ckpt))).name


def load_models(config: ServeConfig, adapters: Adapters) -> list[Served]:
    """Load the base model, then the models of its adapters, each with its tokenizer. Errors: TinyGPTError."""
    settings = InferenceConfig(device=config.device, dtype=config.dtype, threads=config.threads, fast="False")
    models = []
    for name in ["", *adapters.names]:
        loaded = Loaded(adapters.checkpoint(name), config.ckpt, settings, config.data_dir)
        parameters = loaded.model.num_params()  # before `pack`, which hides the parameters of packed layers
        models.append(Served(name or base_name(config.ckpt), loaded.tokenizer, pack(loaded.model), parameters))
        models[-1].starts = starts(config, loaded)
    return models


def starts(config: ServeConfig, loaded: Loaded) -> list[str]:
    """Return prompts for the page: of the model's dataset, if it is here, and general ones for an imported model."""
    found: list[str] = []
    with contextlib.suppress(TinyGPTError, OSError):
        texts = OPENINGS if loaded.tokenizer.pair is None else QUESTIONS
        if name := str(loaded.config.get("dataset", "")):
            texts = beginnings(Dataset(data_dir(config, loaded.config, config.ckpt), name))
        for text in dict.fromkeys(filter(None, texts)):
            loaded.tokenizer.encode(text)  # another dataset of that name may have other characters
            found.append(text)
    return found[:STARTS]


def beginnings(dataset: Dataset) -> list[str]:
    """Return the first prompts of the validation split, or the first lines of the training text, shortened."""
    tokenizer = dataset.tokenizer
    if dataset.pairs:
        return [prompt for prompt, _ in dataset.sources["val"].first(10 * STARTS).examples(tokenizer)]
    text = tokenizer.decode(dataset.splits["train"][:2000].tolist())
    end = tokenizer.decode(tokenizer.end_of_text.tolist()) or "\n"
    return [textwrap.shorten(line, 60, placeholder="") for line in text.replace(end, "\n").split("\n")]


def reader(config: ServeConfig) -> Respond:
    """Make or open the index; return a function that answers questions from it, as `tinygpt ask` does, with the
    sentences.

    The index stays open. After an update by `tinygpt ask` it is opened again, so that no removed document is quoted.
    Errors: TinyGPTError.
    """
    from tinygpt.use.ask.command import ABSTENTION, Responder, checked_question, load_reader
    from tinygpt.use.ask.index import index_of
    from tinygpt.use.ask.store import open_index

    ask_config = AskConfig(
        documents=config.documents,
        index=config.index,
        ckpt=config.reader,
        device=config.device,
        dtype=config.dtype,
    )
    model = load_reader(ask_config)
    path = index_of(ask_config).absolute()
    opened = contextlib.ExitStack()
    respond = Responder(ask_config, opened.enter_context(open_index(path)), model)
    _ = respond.index.embeddings  # now, and not only at the first question

    def answer(question: str) -> tuple[str, dict[str, Any]]:
        nonlocal opened
        if not respond.index.is_current():
            newer = contextlib.ExitStack()
            respond.index = newer.enter_context(open_index(path))
            opened.close()
            opened = newer
        outcome = respond(checked_question(question))
        return outcome.answer or ABSTENTION, outcome._asdict()

    return answer


def labeller(config: ServeConfig) -> Respond:
    """Load the model that `tinygpt advise` has left; return a function that labels a text with it, as `tinygpt label`
    does, with the highest probabilities. Errors: TinyGPTError."""
    from tinygpt.use.advise.labeller import load

    model = load(Path(config.labels))

    def answer(text: str) -> tuple[str, dict[str, Any]]:
        (probs,) = model([text.strip()])
        best = model.answer(probs)
        probabilities = {model.labels[index]: float(probs[index]) for index in (-probs).argsort()[:SHOWN]}
        return best.label, best._asdict() | {"probabilities": probabilities}

    return answer


def read_key(config: ServeConfig) -> str:
    """Read the key that requests must send; empty if no key is needed. Errors: TinyGPTError."""
    if not config.api_key and config.host in LOOPBACK:
        return ""
    if not config.api_key:
        message = f"--host={config.host} is reachable from other machines, so a key is required"
        raise TinyGPTError(message, f"{MAKE_KEY}, and --api_key key.txt")
    key = read_text(Path(config.api_key), "--api_key key.txt").strip()
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        message = f"{config.api_key}: a key has at least {SHORTEST_KEY} ASCII characters without spaces, on one line"
        raise TinyGPTError(message, MAKE_KEY)
    return key


def welcome(config: ServeConfig, names: list[str], prompt: str | None, host: str, port: int) -> str:
    """Format the message that follows loading: the names of the models, and how to reach them.

    prompt: for the example; empty: "Hello"; None: the first model only continues text.
    """
    url_host = f"[{host}]" if ":" in host else host
    if host == "0.0.0.0":
        url_host = "127.0.0.1"
    url = f"http://{url_host}:{port}"
    key = f' -H "Authorization: Bearer $(cat {suggest.quoted(config.api_key)})"' if config.api_key else ""
    path = "completions"
    body = '{"prompt": "Once", "max_tokens": 40}'
    if prompt is not None:
        messages = [{"role": "user", "content": prompt or "Hello"}]
        path = "chat/completions"
        body = json.dumps({"messages": messages, "temperature": 0})
    clients = "programs on this machine only" if config.host in LOOPBACK else "other machines, with the key"
    return (
        f"serving:  {', '.join(names)}\n"
        f"page:     {url}\n"
        f"API:      {url}/v1 (OpenAI's protocol)\n"
        f"try:      curl {url}/v1/{path} -H 'Content-Type: application/json'{key} -d {suggest.quoted(body)}\n"
        f"access:   {clients}; prompts and responses are not logged\n"
        "stop:     Ctrl-C"
    )
