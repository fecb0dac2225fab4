"""Chat templates: programs inside a model file, run sandboxed and, by the child's time limit, bounded."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence

import jinja2
import jinja2.sandbox

from penjing.engines.base import Message
from penjing.errors import EngineError


def render(template: str | None, messages: Sequence[Message], specials: Mapping[str, str]) -> str:
    """The prompt for the assistant's next turn.

    A model without a template gets the bare texts, as a base model would be prompted.

    Raises:
        EngineError: the template is broken or refuses these messages.
    """
    if template is None:
        return "\n\n".join(message.content for message in messages)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=turns, add_generation_prompt=True, tools=None, **specials)
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        RecursionError,
        MemoryError,
    ) as error:
        raise EngineError(
            f"the model's chat template fails: {str(error) or type(error).__name__}",
            hint="send the bare text with `--raw`",
        ) from error


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
