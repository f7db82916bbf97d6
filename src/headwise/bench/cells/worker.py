"""One cell of a comparison: an arm on the documents of one task at one length."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from headwise.bench.arms import Arm
from headwise.bench.frame import Frame
from headwise.bench.job import Job, Question, encode
from headwise.bench.protocol import STOP, TEMPLATE
from headwise.bench.protocol import digest as digest_of
from headwise.bench.provenance import versions
from headwise.bench.runner import Ran, Runner
from headwise.calibrate.calibration import Calibration
from headwise.errors import ContextError, HeadwiseError
from headwise.plan import Plan
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.replay import Recording, read_once
from headwise.shapes import Mark
from headwise.tasks.base import Ask, Item, chance, digest
from headwise.tasks.taskbook import build_task, facts_of


@dataclass(frozen=True)
class Setting:
    """What all cells share. model: path or hub id; items: documents of each task and length.

    calibration: path of a calibration file, "" for none; calibrated: its digest.
    """

    model: str
    fingerprint: str
    dtype: str
    device: str
    items: int
    seed: int
    calibration: str = ""
    calibrated: str = ""


@dataclass(frozen=True)
class Cell:
    """One arm on one task at one context length."""

    task: str
    context: int
    arm: Arm

    def key(self, setting: Setting) -> str:
        """Name of the cell's result: equal where everything that decides the result is."""
        facts = asdict(setting) | {"task": facts_of(build_task(self.task)), "cell": asdict(self)}
        facts |= {"versions": versions(), "template": TEMPLATE, "stop": STOP}
        if self.arm.is_plan:
            facts["plan"] = Plan.read(self.arm.sentence).digest
        return digest_of({name: value for name, value in facts.items() if name not in ("model", "calibration")})


class Worker:
    """Runs cells on one loaded model. Documents and their dense recording are kept while cells of one task follow."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, setting: Setting) -> None:
        self.model, self.tokenizer, self.setting = model, tokenizer, setting
        self.seam, self.runner = attach(model), Runner(model, tokenizer, seed=setting.seed)
        self.calibration = None
        if setting.calibration:
            self.calibration = Calibration.load(setting.calibration, self.seam.fingerprint)
        self._at: tuple[str, int] | None = None
        self._jobs: list[Job] = []
        self._recordings: dict[int, Recording] = {}
        self._data, self._chance = "", 0.0

    def run(self, cell: Cell) -> dict[str, Any]:
        """The cell's result as plain JSON data; `refused` says why where the arm cannot take this prompt."""
        self._turn_to(cell)
        start, refused = perf_counter(), None
        documents: list[dict[str, Any]] = []
        samples: list[dict[str, Any]] = []
        seconds = 0.0
        try:
            for place in range(len(self._jobs)):
                ran = self._ran(cell.arm, place)
                documents.append(asdict(ran.held))
                samples += self._samples(cell.task, place, ran)
                seconds += ran.answers_s
        except HeadwiseError as error:
            if cell.arm.role in ("dense", "control"):
                raise
            documents, samples, refused = [], [], str(error)
        return {
            "cell": asdict(cell),
            "data": self._data,
            "chance": self._chance,
            "documents": documents,
            "samples": samples,
            "refused": refused,
            "timings": {"seconds": perf_counter() - start, "answers_s": seconds},
        }

    def _turn_to(self, cell: Cell) -> None:
        if self._at == (cell.task, cell.context):
            return
        task = build_task(cell.task)
        made = task.items(self._count, cell.context, self.setting.items, self.setting.seed)
        if len(made) != self.setting.items:
            raise HeadwiseError(f"task '{cell.task}' made {len(made)} items of {self.setting.items}; mend its items()")
        limit = min(cell.context, self.seam.geometry.max_positions)
        self._jobs = [encoded(self.tokenizer, cell.task, item, limit) for item in made]
        self._data, self._chance = digest(made), chance(made)
        self._recordings = {}
        self._at = (cell.task, cell.context)

    def _count(self, text: str) -> int:
        return encode(self.tokenizer, text).shape[1]

    def _ran(self, arm: Arm, place: int) -> Ran:
        """What an arm does with one document."""
        job = self._jobs[place]
        if place not in self._recordings:
            self._recordings[place] = read_once(self.model, job.ids.to(self.model.device))
        plan = arm.plan(Frame(self.seam, job.tokens, self.model.dtype, self.calibration))
        # the control takes the model's own way through the prompt, so it also shows that sharing changes nothing
        return self.runner.run(plan, job, recording=None if arm.role == "control" else self._recordings[place])

    def _samples(self, sentence: str, place: int, ran: Ran) -> list[dict[str, Any]]:
        """What was answered about one document, with its scores."""
        task, before = build_task(sentence), ran.held.byte_steps
        return [
            {
                "item": place, "ask": number, "depth": question.ask.depth,
                "score": float(task.score(question.ask, answer.text)), "got": answer.text, "tokens": answer.tokens,
                "truncated": answer.truncated, "byte_steps": answer.byte_steps - before,
            }
            for number, (question, answer) in enumerate(zip(self._jobs[place].questions, ran.answers, strict=True))
        ]  # fmt: skip


def encoded(tokenizer: Any, task: str, item: Item, limit: int) -> Job:
    """An item as ids; ContextError where document, an ask and its answer exceed `limit` tokens: nothing is cut.

    An answer ends by the rule of `protocol.STOP`.
    """
    ids = encode(tokenizer, item.document, start=True)
    questions = tuple(Question(ask, encode(tokenizer, ask.prompt), _lines(ask)) for ask in item.asks)
    needed = ids.shape[1] + max(question.ids.shape[1] + question.limit for question in questions)
    if needed > limit:
        raise ContextError(
            f"an item of task '{task}' takes {needed} tokens with its longest question and answer, more than the "
            f"{limit} allowed; give --context {needed} or more, or a model trained on more positions"
        )
    return Job(ids, questions, _marks(tokenizer, item))


def _lines(ask: Ask) -> int:
    """Line breaks within the longest expected answer."""
    return max((one.strip().count("\n") for one in ask.expected), default=0)


def _marks(tokenizer: Any, item: Item) -> tuple[Mark, ...]:
    """The examples of a document by token. A tokenizer that cannot tell where its tokens stand leaves them unmarked,
    which methods that ask for marks take as text without examples."""
    if not item.examples or not tokenizer.is_fast:
        return ()
    told = tokenizer(item.document, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
    return tuple(Mark.of_text("example", told["offset_mapping"], *one) for one in item.examples)
