"""Chat templates: the text that a model expects around prompt and response.

A chat template is a program in Jinja, run in Jinja's sandbox as transformers runs it. tinygpt runs it when a model is
imported, with a conversation of one prompt and one response, and keeps the text around the two. Later commands do not
need Jinja.

Source: https://huggingface.co/docs/transformers/chat_templating

    pair = pair_format(template, bos="", eos="<|im_end|>", special={"<|im_start|>", "<|im_end|>"})
"""

from typing import Any

from tinygpt.errors import TinyGPTError, missing

PROMPT, RESPONSE = "tinygptPROMPTtinygpt", "tinygptRESPONSEtinygpt"  # letters, so that no template changes them


def pair_format(template: str, bos: str, eos: str, special: set[str]) -> dict[str, str]:
    """Return the text before a prompt, between prompt and response, and the special token that ends a response.

    special: names of the special tokens. Errors: TinyGPTError if the template cannot be run, or if prompt and response
    are not separated by special tokens, so that a user's text could imitate the separation.
    """
    asked = {"role": "user", "content": PROMPT}
    question = render(template, [asked], bos, eos, True)
    example = render(template, [asked, {"role": "assistant", "content": RESPONSE}], bos, eos, False)
    if question.count(PROMPT) != 1 or example.count(PROMPT) != 1 or example.count(RESPONSE) != 1:
        raise UnusableTemplate("it does not contain prompt and response once each")
    prefix, middle = question.split(PROMPT)
    before, rest = example.split(RESPONSE)
    if before != question:
        raise UnusableTemplate(
            "the text before a response is not the same as before a response that is to be generated"
        )
    end = next((token for token in sorted(special, key=len, reverse=True) if rest.startswith(token)), "")
    parts = {"prefix": prefix, "middle": middle, "end": end or eos}
    for name, text in parts.items():
        if not any(token in text for token in special):
            raise UnusableTemplate(f"there is no special token in the {name} of an example ({ascii(text)[:60]})")
    return parts


def render(template: str, messages: list[dict[str, str]], bos: str, eos: str, add_generation_prompt: bool) -> str:
    """Run a chat template. Errors: TinyGPTError for one that cannot be run, and without the package jinja2."""
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise missing("jinja2", "a chat template") from None

    def refuse(message: str) -> None:
        raise UnusableTemplate(f"it refuses a conversation of one prompt: {ascii(message)[:80]}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: ""}
    values: dict[str, Any] = {"messages": messages, "bos_token": bos, "eos_token": eos, "tools": None}
    try:
        return environment.from_string(template).render(**values, add_generation_prompt=add_generation_prompt)
    except TinyGPTError:
        raise
    except Exception as error:  # a template from a stranger raises many types
        raise UnusableTemplate(f"it cannot be run ({type(error).__name__})") from None


class UnusableTemplate(TinyGPTError):
    """A chat template that cannot be used; the model can, without it."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the model's chat template cannot be used: {why}")
