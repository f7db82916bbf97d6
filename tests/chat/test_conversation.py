"""A conversation reads each token once, whatever becomes of its turns, and its file holds all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from headwise.assets import novel
from headwise.chat.conversation import Conversation
from headwise.chat.wording import Plain, Templated, Turn, wording_of
from headwise.errors import ContextError, HeadwiseError, SessionError
from headwise.seams.transformers import drive
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.load import load_model, load_tokenizer
from tests.tiny import build

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] | trim }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(place: Path) -> PreTrainedModel:
    return load_model(place)


@pytest.fixture
def tokenizer(place: Path) -> Any:
    made = load_tokenizer(place)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def talk(model: PreTrainedModel, tokenizer: Any) -> Conversation:
    return Conversation(model, tokenizer, wording_of(tokenizer))


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """All tokens that any forward is given."""
    seen: list[int] = []
    original = drive.forward

    def forward(model: Any, cache: Any, ids: torch.Tensor, **how: Any) -> Any:
        seen.extend(ids[0].tolist())
        return original(model, cache, ids, **how)

    monkeypatch.setattr(drive, "forward", forward)
    yield seen


def ask(talk: Conversation, said: str, limit: int = 6) -> str:
    return "".join(talk.answer(talk.hear(said), limit))


@pytest.mark.parametrize("recipe", ["", "snapkv(0.5) | int8"])
@pytest.mark.parametrize("template", ["", "\nQ: {ask}\nA:"])
def test_every_token_is_read_once_and_in_order(
    model: PreTrainedModel, tokenizer: Any, fed: list[int], recipe: str, template: str
) -> None:
    talk = Conversation(model, tokenizer, wording_of(tokenizer, template), recipe, chunk=64)
    talk.open(novel()[:600])
    for said in ("Who came?", "Why so late?", novel()[600:900]):
        ask(talk, said)
    assert fed == talk.ids[: talk.read] and len(fed) >= len(talk.ids) - 1
    assert len(talk.turns) == 3


def test_an_answer_is_what_a_new_cache_gives_over_the_same_tokens(model: PreTrainedModel, talk: Conversation) -> None:
    for said in ("Who came?", "Why?"):
        logits = talk.hear(said)
        prompt = torch.tensor([list(talk.ids)])
        answer = "".join(talk.answer(logits, 9))
        new = drive.generate(model, Cache(model, ""), prompt, 9)[0].tolist()
        assert talk.ids[prompt.shape[1] :] == new
        assert answer == talk.tokenizer.decode(new, skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")


def test_a_turn_is_written_as_the_template_writes_it(talk: Conversation) -> None:
    ask(talk, "Who came?")
    talk.turns[-1] = Turn(said="Who came?", answer="A man")
    after = talk.wording.turn("", talk.turns, "Why?")
    assert after == "<eos>\n<bos>user: Why?<eos>\n<bos>assistant:"
    whole = talk.wording.whole("", talk.turns, "Why?")
    assert whole is not None and whole.endswith(f"assistant: A man{after}")


def test_the_token_that_ends_an_answer_is_not_put_twice(talk: Conversation) -> None:
    talk.hear("Who came?")
    talk.ids.append(1)  # as if the model had written <eos>
    new = talk._new_tokens("Why?")
    assert new[0] != 1 and talk.tokenizer.decode(new).startswith("\n<bos>user: Why?")


def test_what_the_template_would_write_otherwise_is_noted(talk: Conversation) -> None:
    """This template trims answers: one with a space in front is written in other tokens."""
    talk.hear("Who came?")
    assert talk.rewritten is None
    written = len(talk.ids)
    talk.ids += talk._encode("   A man  ", first=False)
    talk.turns[-1] = Turn(said="Who came?", answer="   A man  ")
    before = list(talk.ids)
    talk.hear("Why?")
    assert talk.rewritten is not None and written <= talk.rewritten < len(before)
    assert talk.ids[: len(before)] == before


def test_an_answer_that_is_stopped_belongs_to_the_conversation(talk: Conversation, fed: list[int]) -> None:
    with closing(talk.answer(talk.hear("Who came?"), 50)) as pieces:
        some = next(pieces) + next(pieces) + next(pieces)
    assert talk.turns == [Turn(said="Who came?", answer=some)]
    assert talk.read == len(talk.ids) - 1
    ask(talk, "Why?")
    assert fed == talk.ids[: talk.read]


def test_reading_that_is_stopped_goes_on_with_the_next_turn(
    talk: Conversation, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(talk, "Who came?")
    with monkeypatch.context() as patch:
        patch.setattr(drive, "_last_logits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            talk.hear("Why?")
    assert talk.turns[-1] == Turn(said="Why?", answer="") and talk.read < len(talk.ids)
    ask(talk, "And then?")
    assert fed == talk.ids[: talk.read]


def test_what_is_refused_is_not_said(talk: Conversation) -> None:
    ask(talk, "Who came?")
    ids, turns = list(talk.ids), list(talk.turns)
    with pytest.raises(ContextError, match="/reset"):
        talk.hear(novel()[:9000])
    assert (talk.ids, talk.turns) == (ids, turns)


def test_another_recipe_reads_all_again(model: PreTrainedModel, talk: Conversation) -> None:
    talk.open(novel()[:1500])
    ask(talk, "Who came?")
    read = talk.read
    talk.follow("snapkv(0.3)")
    assert (talk.read, talk.followed) == (read, "snapkv(0.3)")
    assert talk.cache.session is not None and int(talk.cache.session.lengths(0)[0].max()) < read
    cache = talk.cache
    with pytest.raises(HeadwiseError, match="did you mean 'snapkv'"):
        talk.follow("snapkw(0.3)")
    assert talk.cache is cache
    ask(talk, "Why?")


def test_a_saved_conversation_goes_on_as_if_it_had_not_stopped(
    model: PreTrainedModel, tokenizer: Any, talk: Conversation, tmp_path: Path
) -> None:
    with pytest.raises(SessionError, match="nothing was said yet"):
        talk.save(tmp_path / "a.session")
    talk.follow("snapkv(0.5) | int8")
    ask(talk, "Who came?")
    talk.save(tmp_path / "a.session")
    other = Conversation(model, tokenizer, wording_of(tokenizer))
    other.load(tmp_path / "a.session")
    assert (other.ids, other.turns, other.followed, other.read) == (talk.ids, talk.turns, talk.followed, talk.read)
    assert ask(other, "Why?") == ask(talk, "Why?")
    assert other.ids == talk.ids


def test_a_session_without_a_conversation_is_refused(
    model: PreTrainedModel, talk: Conversation, tmp_path: Path
) -> None:
    cache = Cache(model, "")
    drive.prefill(model, cache, torch.arange(2, 40)[None])
    cache.save(tmp_path / "a.session")
    with pytest.raises(SessionError, match="without a conversation"):
        talk.load(tmp_path / "a.session")


def test_wordings(tokenizer: Any, place: Path) -> None:
    bare = load_tokenizer(place)
    assert isinstance(wording_of(tokenizer), Templated) and isinstance(wording_of(bare), Plain)
    assert isinstance(wording_of(tokenizer, "Q {ask}"), Plain)
    with pytest.raises(HeadwiseError, match="no chat template"):
        wording_of(bare, "chat")
    with pytest.raises(HeadwiseError, match=r"put \{ask\} where it goes"):
        wording_of(bare, "Q:")
    tokenizer.chat_template = "{{ raise_exception('Only one message.') }}"
    with pytest.raises(HeadwiseError, match=r"does not take the conversation \(Only one message\)"):
        wording_of(tokenizer).turn("", [], "a")
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(HeadwiseError, match="leaves out what was answered"):
        wording_of(tokenizer).turn("", [Turn(said="a", answer="b")], "c")
