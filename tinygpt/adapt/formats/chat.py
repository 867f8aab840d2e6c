"""Chat templates: the text that a model expects around prompt and response.

A chat template is a program in Jinja, run in Jinja's sandbox as transformers runs it. tinygpt runs it when a model is
imported, with a conversation of one prompt and one response, and keeps the text around the two. Other commands do not
need Jinja; `tinygpt serve` runs it once more, with several turns.

The sandbox limits neither loops nor the size of a text. So a template runs in a process of its own, `python -m
tinygpt.adapt.formats.chat`, with a limit of time and, where the system has one, of memory.

Source: https://huggingface.co/docs/transformers/chat_templating

    pair = pair_format(template, bos="", eos="<|im_end|>", special={"<|im_start|>", "<|im_end|>"})
"""

import contextlib
import json
import subprocess
import sys

from tinygpt.base.errors import TinyGPTError, require_installed

Conversation = list[dict[str, str]]  # messages: {"role": ..., "content": ...}
# letters, so that no template changes them
PROMPT = "tinygptPROMPTtinygpt"
RESPONSE = "tinygptRESPONSEtinygpt"
# of a template's process; a real one takes a fraction of a second and 30 MB
SECONDS = 20
BYTES = 1 << 30
LONGEST = 1 << 16  # characters that a template may write


def pair_format(template: str, bos: str, eos: str, special: set[str]) -> dict[str, str]:
    """Return the text before a prompt, between prompt and response, and the special token that ends a response.

    special: names of the special tokens. Errors: TinyGPTError if the template cannot be run, or if prompt and response
    are not separated by special tokens, so that a user's text could imitate the separation.
    """
    messages = [{"role": "user", "content": PROMPT}]
    answered = [*messages, {"role": "assistant", "content": RESPONSE}]
    prompt_text, full_text = render(template, bos, eos, [messages, answered])
    if prompt_text.count(PROMPT) != 1 or full_text.count(PROMPT) != 1 or full_text.count(RESPONSE) != 1:
        raise UnusableTemplate("it does not contain prompt and response once each")
    prefix, middle = prompt_text.split(PROMPT)
    before, rest = full_text.split(RESPONSE)
    if before != prompt_text:
        reason = "the text before a response is not the same as before a response that is to be generated"
        raise UnusableTemplate(reason)
    end = next((token for token in sorted(special, key=len, reverse=True) if rest.startswith(token)), "")
    parts = {"prefix": prefix, "middle": middle, "end": end or eos}
    for name, text in parts.items():
        if not any(token in text for token in special):
            raise UnusableTemplate(f"there is no special token in the {name} of an example ({ascii(text)[:60]})")
    return parts


def render(template: str, bos: str, eos: str, conversations: list[Conversation]) -> list[str]:
    """Run a chat template in a process of its own; returns the text of each conversation.

    A conversation that ends with a prompt is followed by the text before its response. Errors: TinyGPTError for a
    template that cannot be run or takes too long, and without the package jinja2.
    """
    require_installed("a chat template", "jinja2")
    command = [sys.executable, "-P", "-m", "tinygpt.adapt.formats.chat"]  # -P: no json.py of the current folder
    request = json.dumps([template, bos, eos, conversations]).encode()
    try:
        process = subprocess.run(command, input=request, capture_output=True, timeout=SECONDS)
        texts, problem = json.loads(process.stdout)
    except subprocess.TimeoutExpired:
        raise UnusableTemplate(f"it runs for more than {SECONDS} seconds") from None
    except ValueError:
        raise UnusableTemplate(f"its process ended with exit status {process.returncode}") from None
    if problem:
        raise UnusableTemplate(problem)
    return list(texts)


def run_template(template: str, bos: str, eos: str, conversations: list[Conversation]) -> tuple[list[str], str]:
    """Return the texts of `render`, and the problem that prevents them, empty if there is none."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise ValueError(f"it refuses a conversation of one prompt: {message}")

    loops = ["jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=loops)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: ""}
    values = {"bos_token": bos, "eos_token": eos, "tools": None}
    try:
        compiled = environment.from_string(template)
        texts = [
            compiled.render(**values, messages=messages, add_generation_prompt=messages[-1]["role"] == "user")
            for messages in conversations
        ]
    except Exception as error:  # a template from a stranger raises many types
        return [], f"it cannot be run ({type(error).__name__}: {ascii(str(error))[:120]})"
    if max(map(len, texts)) > LONGEST:
        return [], f"it writes more than {LONGEST:,} characters"
    return texts, ""


class UnusableTemplate(TinyGPTError):
    """A chat template that cannot be used; the model can, without it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model's chat template cannot be used: {reason}")


if __name__ == "__main__":  # the process of `render`: its request as JSON on standard input, the result on output
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits, macOS may refuse this one
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    json.dump(run_template(*json.load(sys.stdin)), sys.stdout)
