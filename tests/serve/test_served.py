"""What a body means for a model whose tokenizer has a chat template, as most have that are served."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import PreTrainedModel

from headwise.chat.wording import wording_of
from headwise.serve.bodies import ChatBody
from headwise.serve.refusals import Refused
from headwise.serve.served import Served

TEMPLATE = (
    "{% for one in messages %}{{ one.role }}: {{ one.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def served(model: PreTrainedModel, tokenizer: Any) -> Served:
    templated = copy.deepcopy(tokenizer)
    templated.chat_template = TEMPLATE
    return Served("tiny", model, templated, wording_of(templated))


def body(**told: Any) -> ChatBody:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    return ChatBody.model_validate({"model": "tiny", "messages": messages} | told)


def test_a_conversation_is_written_by_the_template(served: Served) -> None:
    made = served.chat(body(max_tokens=7, headwise={"recipe": "int8"}))
    assert served.tokenizer.decode(made.ids) == "system: Be brief.<eos>user: Why?<eos>assistant: "
    assert made.max_tokens == 7 and str(made.plan.recipes[0][0]) == "int8" and not made.stops


def test_answers_end_with_the_token_that_the_template_puts_after_them(served: Served) -> None:
    assert served.tokenizer.convert_tokens_to_ids("<eos>") in served.ends


def test_text_that_is_no_unicode_is_refused(served: Served) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        served.encode("\ud800", True)
