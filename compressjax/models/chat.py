"""Chat messages to the prompt string that a model was trained on, by its own Jinja template."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """Renders a Hugging Face chat template.

    The template comes with the checkpoint and is not trusted: it runs in Jinja's sandbox, which can neither reach
    Python's internals nor change what it is given. It sees what templates expect: ``raise_exception``,
    ``strftime_now``, a plain ``tojson``, ``break`` and ``continue``.

    Args:
      template: the checkpoint's ``chat_template``.
      messages: dicts with "role" and "content" (or "tool_calls"), in order.
      bos_token, eos_token: special tokens as text.
      add_generation_prompt: end with the header of an assistant's turn.
      **variables: anything else the template reads, such as ``tools``.

    Returns:
      The prompt, special tokens included; tokenize it without adding more.

    Raises:
      ValueError: no messages, a message without role or content, a template that does not parse, or one that
        refuses the messages; the message holds the template's reason.
    """
    if not messages:
        raise ValueError("messages is empty: a chat needs at least one message")
    for index, message in enumerate(messages):
        needed = ("role",) if "tool_calls" in message else ("role", "content")
        missing = [field for field in needed if field not in message]
        if missing:
            raise ValueError(f"messages[{index}] has no {' and no '.join(missing)}: {dict(message)}")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ValueError(f"the chat template cannot render these messages: {error}") from error


def _raise_exception(reason: str) -> None:
    raise jinja2.TemplateError(reason)


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON as it is: Jinja's own filter escapes HTML characters, which no model was trained on."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
