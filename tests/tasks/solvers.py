"""A slow reader by hand for every task: finds the answer in the document's text, with no help of the generator."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable

from headwise.tasks.few_shot import BY_WEIGHT, COUNTRIES

Solver = Callable[[str, str], str]


def values_of(document: str, key: str) -> list[str]:
    return re.findall(rf"\b[Tt]he {re.escape(key)} is ([\w-]+)\.", document)


def fact(document: str, prompt: str) -> str:
    """What the text says of the key that the prompt opens, every value of it."""
    key = re.findall(r"[Tt]he (.+?) is$", prompt)[-1].split("Answer: The ")[-1]
    return " " + ", ".join(values_of(document, key)) + "."


def facts_at_once(document: str, prompt: str) -> str:
    asked = re.search(r"say of the (.+)\? Name every", prompt)
    assert asked
    return "; ".join(", ".join(values_of(document, key)) for key in asked[1].split(", of the "))


def record(document: str, prompt: str) -> str:
    key = prompt.rstrip(":").rpartition("\n")[2]
    return " " + re.findall(rf"^{re.escape(key)}: (.+)$", document, re.MULTILINE)[-1]


def next_word(document: str, prompt: str) -> str:
    words = document.split()
    return " " + words[words.index(prompt.strip()) + 1]


def passage(document: str, prompt: str) -> str:
    asked = re.search(r"Copy of passage (.+):\n(.+)$", prompt, re.DOTALL)
    assert asked
    told = re.search(rf"Passage {asked[1]}:\n(.+?)\nEnd of passage {asked[1]}\.", document, re.DOTALL)
    assert told
    return " " + " ".join(told[1].split()[len(asked[2].split()) :])


def going_on(document: str, prompt: str) -> str:
    """The words after those of the prompt, where they stand first."""
    words, said = document.split(), prompt.split()
    place = next(i for i in range(len(words)) if words[i : i + len(said)] == said)
    return " " + " ".join(words[place + len(said) : place + len(said) + 8])


def links(document: str) -> dict[str, str]:
    return dict(re.findall(r"The ([a-z]+ [a-z]+) is in the ([a-z]+(?: [a-z]+)?)\.", document))


def room(document: str, prompt: str) -> str:
    where, found = re.findall(r"is the (.+)\?", prompt)[0], links(document)
    while where in found:
        where = found[where]
    return f" the {where}."


def steps(document: str, prompt: str) -> str:
    what, found = re.findall(r"Trace the (.+)\.", prompt)[0], links(document)
    said = [f" {found[what]}"]
    while found[what] in found:
        what = found[what]
        said.append(f"the {what} is in the {found[what]}")
    return ", ".join(said) + "."


def first_link(document: str, prompt: str) -> str:
    return " " + links(document)[re.findall(r"Trace the (.+)\.", prompt)[0]]


def variables(document: str, prompt: str) -> str:
    wanted, held = re.findall(r"hold the value (\d+)", prompt)[0], {}
    told = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", document)
    for _ in told:
        for name, other in told:
            held[name] = held.get(other, other)
    return ", ".join(name for name, value in held.items() if value == wanted)


def common_words(document: str, prompt: str) -> str:
    count = int(re.findall(r"Which (\d+) words", prompt)[0])
    return ", ".join(word for word, _ in Counter(re.findall(r"\d+\. ([a-z]+)", document)).most_common(count))


def frequent_words(document: str, prompt: str) -> str:
    return ", ".join(
        word for word, _ in Counter(re.findall(r"(?<= )[a-z]{6}\b", document.split(":")[1])).most_common(3)
    )


def chapters(document: str) -> list[str]:
    return re.findall(r"Chapter \d+\. (.+)", document)


def story_fact(document: str, prompt: str) -> str:
    number, opening = re.findall(r"Answer: In chapter (\d+), (.+)$", prompt)[0]
    return (
        " "
        + re.findall(rf"{opening.split(' ')[1]} (?:to )?(?:the )?([\w]+ [\w]+)", chapters(document)[int(number) - 1])[0]
    )


def story_before(document: str, prompt: str) -> str:
    bought = re.findall(r"bought the ([a-z]+ [a-z]+)\.", document)
    return " " + bought[bought.index(re.findall(r"before the (.+)\?", prompt)[0]) - 1]


def story_idle(document: str, prompt: str) -> str:
    return " " + ", ".join(str(i) for i, text in enumerate(chapters(document), 1) if "bought nothing" in text)


def life(document: str, prompt: str) -> str:
    question = re.findall(r"Question: (.+)", prompt)[0]
    forms = (
        (r"was (.+) born", r"{} was born in (\w+)"),
        (r"did (.+) work as", r"{} was born in \w+ and worked as a (\w+)"),
        (r"did (.+) keep", r"{} kept a (\w+)"),
    )
    if neighbour := re.search(r"neighbour of (.+) born", question):
        name = re.findall(rf"years {neighbour[1]} kept a \w+ and lived in the house next to (.+)\.", document)[0]
        return re.findall(forms[0][1].format(name), document)[0]
    for asked, told in forms:
        if name := re.search(asked, question):
            return re.findall(told.format(name[1]), document)[0]
    raise AssertionError(question)


def letter(document: str, prompt: str) -> str:
    return " " + re.findall(rf"([A-D])\. {life(document, prompt)}\b", prompt)[0]


def arithmetic(document: str, prompt: str) -> str:
    has, more, less = map(int, re.findall(r"\d+", prompt))
    return f" {has} + {more} = {has + more}. The answer is {has + more - less}."


def capital(document: str, prompt: str) -> str:
    city = dict(pair.split("/") for pair in COUNTRIES)[re.findall(r"capital of (\w+)", prompt)[0]]
    return f" The answer is {re.findall(rf'([A-D])[)] {city}', prompt)[0]}."


def heavier(document: str, prompt: str) -> str:
    pair = re.findall(r"a (\w+) or a (\w+)", prompt)[0]
    return f" The answer is {max(pair, key=BY_WEIGHT.index)}."


def code(document: str, prompt: str) -> str:
    form = re.findall(r"value of (.+) in Python", prompt)[0]
    values = ast.literal_eval(re.findall(r"\[[\d, ]+\]", form)[0])
    known = {"max": max(values), "len": len(values), "sum": sum(values)}
    return f" The answer is {known.get(form[:3], values[1])}."


def call(document: str, prompt: str) -> str:
    name, told = re.findall(r"Call the tool (\w+) with (.+)\. Write", prompt)[0]
    tool = next(one for one in map(json.loads, document.split("\n")[1:]) if one["tool"] == name)
    given = {key: json.loads(value) for key, value in re.findall(r'(\w+) = ("\w+"|\d+|true|false)', told)}
    assert given.keys() == tool["arguments"].keys()
    return json.dumps({"tool": name, "arguments": given}).removeprefix('{"tool":')


SOLVERS: dict[str, Solver] = {
    **dict.fromkeys(
        ("niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery", "restated", "passkey"), fact
    ),
    "five_turns": fact,
    **dict.fromkeys((f"ruler_niah_{kind}" for kind in ("single_1", "single_2", "single_3")), facts_at_once),
    **dict.fromkeys((f"ruler_niah_{kind}" for kind in ("multikey_1", "multikey_2", "multikey_3")), facts_at_once),
    **dict.fromkeys((f"ruler_niah_{kind}" for kind in ("multivalue", "multiquery")), facts_at_once),
    **dict.fromkeys(("kv_recall", "kv_latest"), record),
    "mqar": next_word,
    **dict.fromkeys(("copy_passage", "copy_text"), passage),
    **dict.fromkeys(("induction", "repeated_text"), going_on),
    "trace_room": room,
    "trace_steps": steps,
    "trace_first": first_link,
    "ruler_vt": variables,
    "ruler_cwe": common_words,
    "ruler_fwe": frequent_words,
    "story_retrieval": story_fact,
    "story_multihop": story_before,
    "story_filtering": story_idle,
    **dict.fromkeys(("passage_qa", "ruler_qa_1", "ruler_qa_2"), life),
    "choice_qa": letter,
    "few_shot_arithmetic": arithmetic,
    "few_shot_knowledge": capital,
    "few_shot_commonsense": heavier,
    "few_shot_code": code,
    "loops": lambda document, prompt: " ".join(map(str, range(200))),
    "tool_call": call,
}
