"""Jobs: what is read and asked, of a novel and of a text of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headwise.assets import novel
from headwise.bench.job import CHAT, PLAIN, asking_job, encode, marked, novel_job
from headwise.errors import ContextError, HeadwiseError
from headwise.shapes import Mark

Loaded = tuple[Any, Any]


def test_the_novel_is_cut_between_sentences_and_fits(loaded: Loaded) -> None:
    tokenizer = loaded[1]
    job = novel_job(tokenizer, novel(), 1500, title="novel", facts=3, new_tokens=20)
    text = tokenizer.decode(job.ids[0], skip_special_tokens=True)
    assert job.ids[0, 0] == tokenizer.bos_token_id
    assert text.endswith(".")
    longest = max(question.ids.shape[1] + question.limit for question in job.questions)
    assert 1100 < job.tokens <= 1500 - max(longest, 256)
    assert [question.ask.depth for question in job.questions] == [0, 0.5, 1]
    places = [text.index(question.ask.expected[0].strip()) for question in job.questions]
    assert places == sorted(places)
    going_on = tokenizer.decode(job.continuation[0])
    assert going_on.strip() in novel()
    assert job.continuation.shape == (1, 256)


def test_the_job_depends_on_the_seed_alone(loaded: Loaded) -> None:
    one, same, other = (novel_job(loaded[1], novel(), 1000, title="", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.ids, same.ids)
    assert [question.ask for question in one.questions] != [question.ask for question in other.questions]


def test_a_novel_too_short_is_refused(loaded: Loaded) -> None:
    with pytest.raises(ContextError, match="give --context"):
        novel_job(loaded[1], novel()[:3000], 100_000, title="")


class Chatting:
    """A tokenizer with a chat template."""

    chat_template = "yes"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str, **how: Any) -> Any:
        return self.tokenizer(text, **how)

    def apply_chat_template(self, messages: list[dict], tokenize: bool, add_generation_prompt: bool) -> str:
        return f"<bos>[user]{messages[0]['content']}[model]"


def test_questions_follow_the_text(loaded: Loaded) -> None:
    tokenizer = loaded[1]
    how: dict = {"title": "t", "max_new_tokens": 4}
    job = asking_job(tokenizer, "A text.\n", ["Who?", "Why?"], template="", **how)
    assert job.template == PLAIN
    whole = torch.cat((job.ids, job.questions[1].ids), dim=1)[0]
    assert tokenizer.decode(whole, skip_special_tokens=True) == "A text." + PLAIN.format(ask="Why?")
    chat = asking_job(Chatting(tokenizer), "A text.\n", ["Who?"], template="", **how)
    assert chat.template == CHAT
    assert torch.equal(chat.ids, encode(tokenizer, "<bos>[user]A text."))
    assert torch.equal(chat.questions[0].ids, encode(tokenizer, "\n\nWho?[model]"))


def test_words_of_the_prompt_are_marked_as_the_tokenizer_tells(loaded: Loaded) -> None:
    tokenizer, text = loaded[1], "The bridge is old. The castle is white. The garden is far."
    job = asking_job(tokenizer, text, ["Who?"], title="", template="", max_new_tokens=4)
    offsets = tokenizer(text, add_special_tokens=True, return_offsets_mapping=True)["offset_mapping"]
    for words in ("The castle is white.", "bridge", "The bridge", "far."):
        first = text.index(words)
        right = Mark.of_text("emphasis", offsets, first, first + len(words))
        assert marked(job, tokenizer, [("emphasis", words)]).marks == (right,)
    for words, times in (("The", 3), ("tower", 0), ("Who", 0)):
        with pytest.raises(HeadwiseError, match=f"says that {times} times before the question"):
            marked(job, tokenizer, [("emphasis", words)])
