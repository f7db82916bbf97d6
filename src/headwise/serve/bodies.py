"""What a request's body may say, as OpenAI's API has it. What is known there and cannot be honoured here is refused by
name, unless it says what is the case anyway."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

MOST_CHOICES, MOST_STOPS, MOST_PROMPTS, MOST_INPUTS, MOST_TOOLS = 128, 16, 64, 2048, 128


def _only(*neutral: Any) -> AfterValidator:
    """Refuses all values but those that change nothing."""

    def check(value: Any) -> Any:
        if value not in neutral:
            raise ValueError("is not supported by this server; leave it out")
        return value

    return AfterValidator(check)


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Ours(_Body):
    """headwise's own: the recipe that the caches of this request follow, or the name of a plan of this server's. draft:
    how answers are guessed ahead, such as "lookup(tokens=10)", "none" or "auto"; they stay the same."""

    recipe: str | None = Field(default=None, max_length=4096)
    plan: str | None = Field(default=None, max_length=256)
    draft: str | None = Field(default=None, max_length=256)


class OfCompletion(Ours):
    """The same of a completion. evict_after: so many tokens of a prompt, about, are evicted of by themselves."""

    evict_after: int | None = Field(default=None, ge=1, lt=2**31)


class OfChat(Ours):
    """The same of a chat. watch: between the events of a stream others tell what every head keeps. evict_after: what
    the system says is evicted of by itself."""

    watch: bool | None = None
    evict_after: Literal["system"] | None = None


class StreamOptions(_Body):
    """Whether the last event of a stream tells what it took."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Stop = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class _Asked(_Body):
    """What both ways to ask have in common."""

    model: str = Field(max_length=1024)
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    headwise: Ours = Field(default_factory=Ours)
    user: str | None = None  # changes nothing
    metadata: dict[str, Any] | None = None
    store: Annotated[bool | None, _only(None, False)] = None
    presence_penalty: Annotated[float | None, _only(None, 0.0)] = None
    frequency_penalty: Annotated[float | None, _only(None, 0.0)] = None
    logit_bias: Annotated[dict[str, float] | None, _only(None, {})] = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Called(_Body):
    """A call as an answer made it: a name, and the arguments as JSON."""

    name: str
    arguments: str


class Call(_Body):
    """A call of a tool, of an answer that is sent back."""

    id: str
    type: Literal["function"]
    function: Called


class Message(_Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    # Clients send back the messages that they were given, with all the fields that those may have.
    refusal: Annotated[str | None, _only(None)] = None
    annotations: Annotated[list[Any] | None, _only(None, [])] = None
    audio: Annotated[dict[str, Any] | None, _only(None)] = None
    function_call: Annotated[dict[str, Any] | None, _only(None)] = None

    @property
    def text(self) -> str:
        """All that it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())

    @model_validator(mode="after")
    def _whole(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs a content")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("a message of a tool, and no other, says by tool_call_id which call it answers")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls are of an assistant's message alone")
        return self


class Schema(_Body):
    """What JSON must look like."""

    name: str = Field(max_length=64)
    description: str | None = None
    form: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None  # answers are held to it in any case


class Format(_Body):
    """What an answer must look like: any text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _whole(self) -> Format:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema, and no other type, comes with a json_schema")
        return self

    @property
    def schema_of(self) -> dict[str, Any] | None:
        """The schema; None for any text."""
        if self.json_schema is not None:
            return self.json_schema.form
        return None if self.type == "text" else {"type": "object"}


class Function(_Body):
    """A function that an answer may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class Named(_Body):
    """The name of a function."""

    name: str


class Choice(_Body):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: Named


class ChatBody(_Asked):
    """Of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    headwise: OfChat = Field(default_factory=OfChat)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: Format | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None  # an answer is one call at most

    @model_validator(mode="after")
    def _callable(self) -> ChatBody:
        names = [one.function.name for one in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if self.tool_choice not in (None, "none", "auto") and not self.callable:
            raise ValueError("tool_choice asks for a tool that is not among tools")
        if self.callable and self.response_format is not None and self.response_format.type != "text":
            raise ValueError("response_format and tools both say what an answer must look like; give one of them")
        return self

    @property
    def callable(self) -> list[Function]:
        """The functions that the answer may call."""
        functions = [] if self.tool_choice == "none" else [one.function for one in self.tools or ()]
        named = self.tool_choice.function.name if isinstance(self.tool_choice, Choice) else None
        return [one for one in functions if named in (None, one.name)]

    @property
    def must_call(self) -> bool:
        """Whether the answer is to be a call."""
        return self.tool_choice not in (None, "none", "auto")

    @model_validator(mode="after")
    def _watched_in_streams(self) -> ChatBody:
        if self.headwise.watch and not self.stream:
            raise ValueError("headwise.watch tells of what happens while an answer is streamed; give stream: true")
        return self

    @property
    def limit(self) -> int | None:
        """Tokens of an answer at most, where that is said."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def told_chances(self) -> int | None:
        """How many likeliest tokens are told beside each; None where no chances are."""
        return (self.top_logprobs or 0) if self.logprobs else None


Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]


class CompletionBody(_Asked):
    """Of `/v1/completions`."""

    headwise: OfCompletion = Field(default_factory=OfCompletion)
    prompt: str | Tokens | Texts | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: Annotated[int | None, _only(None, 1)] = None
    echo: bool | None = None
    suffix: Annotated[str | None, _only(None, "")] = None

    @model_validator(mode="after")
    def _echoed_whole(self) -> CompletionBody:
        if self.echo and self.stream:
            raise ValueError("echo puts the prompt before a whole answer; leave out stream")
        return self

    @property
    def limit(self) -> int:
        """Tokens of an answer at most; OpenAI's default where it is not said."""
        return self.max_tokens or 16

    @property
    def told_chances(self) -> int | None:
        """How many likeliest tokens are told beside each; None where no chances are."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as tokens."""
        return _each(self.prompt)


Text = Annotated[str, StringConstraints(min_length=1)]


class EmbeddingBody(_Body):
    """Of `/v1/embeddings`. dimensions: those of the model's vectors, as none are cut."""

    model: str = Field(max_length=1024)
    input: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_INPUTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None  # changes nothing

    @property
    def inputs(self) -> list[str | list[int]]:
        """Each text, as text or as tokens."""
        return _each(self.input)


def _each(asked: Any) -> list[str | list[int]]:
    """One text or several, each as text or as tokens, as a list of them."""
    return [asked] if isinstance(asked, str) or isinstance(asked[0], int) else list(asked)
