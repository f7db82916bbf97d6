"""A conversation in a terminal: lines are said to the model, those that begin with a slash are for headwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from headwise.chat.conversation import Conversation
from headwise.cli.progress import Watcher
from headwise.errors import HeadwiseError, did_you_mean, shown
from headwise.report.terminal import plain, stdout
from headwise.seams.transformers.drive import Progress
from headwise.shapes import format_bytes

with suppress(ImportError):  # not on every system; lines are then read without keys to edit them
    import readline  # noqa: F401

SLOW = 512  # tokens that are read in view: fewer are read before anybody looks
PROMPT, DENSE = "> ", "dense"


class Talk:
    """Reads lines until there are no more. Answers go to stdout, and all that is about them to stderr."""

    def __init__(self, conversation: Conversation, max_new_tokens: int) -> None:
        self.conversation, self.max_new_tokens = conversation, max_new_tokens
        self.screen, self.aside = stdout(), Console(stderr=True)
        self.open, self.told_rewritten = True, False

    def run(self) -> None:
        """Talk until /quit or the end of what is typed."""
        while self.open:
            try:
                line = input(PROMPT if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self.tell("\n/quit or Ctrl-D leaves")
                continue
            try:
                self.take(line)
            except HeadwiseError as error:
                self.tell(f"error: {' '.join(str(error).split())}", "red")
            except KeyboardInterrupt:
                self.tell("\nstopped; the conversation goes on from here")

    def take(self, line: str) -> None:
        """Do what a line asks for."""
        name, _, rest = line.partition(" ")
        if name in ORDERS:
            ORDERS[name].follow(self, rest.strip())
        elif name.startswith("/"):
            raise HeadwiseError(f"no order '{name}'; {did_you_mean(name, ORDERS)}")
        elif line:
            self.say(line)

    def say(self, line: str) -> None:
        """Say a line to the model and show its answer as it comes."""
        conversation, before, start = self.conversation, self.conversation.read, time.perf_counter()
        with self._reading("reading", len(line) // 4 + len(conversation.ids) - before) as progress:
            logits = conversation.hear(line, progress)
        self._tell_rewritten()
        read, begun, count, out = conversation.read - before, time.perf_counter(), 0, ""
        with closing(conversation.answer(logits, self.max_new_tokens)) as pieces:
            answer = ""
            for piece in pieces:
                count, answer = count + 1, answer + piece
                ready = answer.strip()  # what may be the space at the end waits for what comes after it
                self.screen.print(plain(ready[len(out) :]), end="", soft_wrap=True)
                out = ready
        self.screen.print()
        speed = count / (time.perf_counter() - begun)
        held = format_bytes(conversation.cache.nbytes)
        self.tell(
            f"[{read} tokens read in {begun - start:.1f} s, {count} written at {speed:.1f}/s; "
            f"{len(conversation.ids)} in all, {held} held]"
        )

    def follow(self, followed: str) -> None:
        """Go on under another recipe or plan."""
        conversation, before = self.conversation, self.conversation.cache.nbytes
        with self._reading("reading it all again", conversation.read) as progress:
            conversation.follow(followed, progress)
        held = f"{format_bytes(conversation.cache.nbytes)} held, {format_bytes(before)} before"
        self.tell(f"[{conversation.read} tokens were read again, under {_shown(followed)}; {held}]")

    def load(self, file: str) -> None:
        """Go on with a saved conversation; what was said last in it is shown."""
        self.conversation.load(_file("/load", file))
        self.told_rewritten = False
        for turn in self.conversation.turns[-1:]:
            self.tell(f"{PROMPT}{turn.said}")
            self.screen.print(plain(turn.answer.strip()), soft_wrap=True)
        self.tell(
            f"[{len(self.conversation.ids)} tokens, {len(self.conversation.turns)} turns, under "
            f"{_shown(self.conversation.followed)}]"
        )

    def save(self, file: str) -> None:
        """Write the conversation to a file."""
        path = _file("/save", file)
        self.conversation.save(path)
        self.tell(f"[saved: {path}, {format_bytes(path.stat().st_size)}]")

    def reset(self) -> None:
        """Begin anew."""
        self.conversation.reset()
        self.told_rewritten = False
        self.tell("[all is forgotten, the document too]")

    def report(self) -> None:
        """What the cache holds."""
        self.screen.print(plain(self.conversation.cache.report()), soft_wrap=True)

    def leave(self) -> None:
        """Read no more lines."""
        self.open = False

    @contextmanager
    def _reading(self, what: str, tokens: int) -> Iterator[Progress | None]:
        """How far the reading of about so many tokens is, in view where that takes a while."""
        if tokens < SLOW:
            yield None
            return
        with Watcher() as watch:
            watch(what)
            yield lambda done, total: watch(what, done, total)

    def _tell_rewritten(self) -> None:
        """Say once where the chat template would by now write other tokens than were read."""
        place = self.conversation.rewritten
        if place is None or self.told_rewritten:
            return
        self.told_rewritten = True
        near = self.conversation.tokenizer.decode(self.conversation.ids[max(0, place - 4) : place + 4])
        self.tell(
            f"[from token {place} on, near {shown(near)}, the chat template would write this conversation in other "
            "tokens than were read; they stay as they were read, and only the new turn is added]"
        )

    def tell(self, text: str, style: str = "dim") -> None:
        """A line that is not the model's."""
        self.aside.print(plain(text, style), soft_wrap=True)


def _shown(followed: str) -> str:
    return followed or DENSE


def _file(name: str, path: str) -> Path:
    """The path after the name of an order."""
    if not path:
        raise HeadwiseError(f"{name} needs a file; write it like {name} talk.session")
    return Path(path).expanduser()


def _recipe(talk: Talk, sentence: str) -> None:
    if sentence:
        talk.follow("" if sentence == DENSE else sentence)
    else:
        talk.tell(f"[{_shown(talk.conversation.followed)}; another one is followed after /recipe SENTENCE]")


def _plan(talk: Talk, file: str) -> None:
    talk.follow(str(_file("/plan", file)))


def _help(talk: Talk, rest: str) -> None:
    for name, order in ORDERS.items():
        talk.tell(f"{f'{name} {order.takes}':18} {order.does}")


@dataclass(frozen=True)
class Order:
    """A line for headwise. takes: what stands after its name."""

    takes: str
    does: str
    follow: Callable[[Talk, str], None]


ORDERS = {
    "/recipe": Order("SENTENCE", "follow this recipe; all is read again. `dense` keeps everything", _recipe),
    "/plan": Order("FILE", "follow this plan; all is read again", _plan),
    "/report": Order("", "what the cache holds, by layer and head", lambda talk, _: talk.report()),
    "/save": Order("FILE", "write the conversation to a file", lambda talk, file: talk.save(file)),
    "/load": Order("FILE", "go on with a saved conversation", lambda talk, file: talk.load(file)),
    "/reset": Order("", "begin anew", lambda talk, _: talk.reset()),
    "/help": Order("", "this", _help),
    "/quit": Order("", "leave; Ctrl-D does too, and Ctrl-C stops an answer", lambda talk, _: talk.leave()),
}
