"""Tools in words: what a model reads of them, of its calls and of their results. Templates have ways of their own to
write these, each model another; the words here are the same for all, as is the form that calls are held to."""

from __future__ import annotations

import json
from collections.abc import Sequence

from headwise.serve.bodies import Function, Message
from headwise.serve.refusals import Refused

ASKED = (
    "You may call one of these functions. To call one, answer with one JSON object and nothing else, "
    '{"name": NAME, "arguments": {...}}.'
)
ANY = {"type": "object"}


def tool(one: Function) -> dict[str, object]:
    """A function as it is described, and as calls of it are checked."""
    about = {} if one.description is None else {"description": one.description}
    return {"name": one.name, **about, "parameters": ANY if one.parameters is None else one.parameters}


def in_words(messages: Sequence[Message], functions: Sequence[Function]) -> list[Message]:
    """A conversation without tools that says the same: functions in the system's first message, calls as the JSON that
    they were, results as what a user says. Refused where a result is of no call before it."""
    told, names = list[Message](), dict[str, str]()
    for one in messages:
        if one.role == "tool":
            if one.tool_call_id not in names:
                raise Refused(
                    400, f"no call before it is '{one.tool_call_id}'", "unknown_call", "messages.tool_call_id"
                )
            told.append(Message(role="user", content=f"{names[one.tool_call_id]} gave: {one.text}"))
        elif one.tool_calls:
            names |= {call.id: call.function.name for call in one.tool_calls}
            calls = [f'{{"name": "{it.function.name}", "arguments": {it.function.arguments}}}' for it in one.tool_calls]
            told.append(Message(role="assistant", content="\n".join([*filter(None, [one.text]), *calls])))
        else:
            told.append(one)
    if not functions:
        return told
    words = "\n".join([ASKED, *(json.dumps(tool(one), ensure_ascii=False) for one in functions)])
    if told[0].role in ("system", "developer"):
        return [told[0].model_copy(update={"content": f"{told[0].text}\n\n{words}"}), *told[1:]]
    return [Message(role="system", content=words), *told]


def call_of(text: str) -> tuple[str, str] | None:
    """The name and the arguments, as JSON, of an answer that is a call; None where it is none, or was cut off."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
        return str(found["name"]), json.dumps(found["arguments"], ensure_ascii=False)
    except (ValueError, KeyError):
        return None
