"""Who is let in, and with how much."""

from __future__ import annotations

import asyncio
import hmac
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from headwise.errors import HeadwiseError
from headwise.schema import complaint
from headwise.serve.refusals import Refused

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BODY_SECONDS = 60.0  # that a client may take to send a body
MINUTE = 60.0


class Key(BaseModel):
    """Who gives `key` is called `name` in the log, and may ask so much: requests in any minute, and requests that are
    answered at once; None: any number."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    name: str = Field(min_length=1, max_length=64)
    key: str = Field(min_length=1, max_length=1024)
    requests_per_minute: int | None = Field(default=None, ge=1)
    at_once: int | None = Field(default=None, ge=1)


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    key: list[Key] = Field(min_length=1)


def keys_of(file: Path) -> list[Key]:
    """The keys of a TOML file, each a table [[key]]. HeadwiseError for one that cannot be read, or that names a key
    twice."""
    try:
        found = _File.model_validate(tomllib.loads(file.read_text())).key
    except ValidationError as problem:
        raise HeadwiseError(f"{file}: {complaint(_File, problem)}") from None
    except (OSError, ValueError) as error:
        raise HeadwiseError(f"{file} cannot be read as keys ({error}); give a TOML file of [[key]] tables") from None
    return found


@dataclass
class _Asked:
    """What somebody asks: when, within the last minute, and how many requests are being answered."""

    times: deque[float] = field(default_factory=deque)
    now: int = 0


class Guard:
    """Lets requests in. keys: one of them must be given, where there are any. most_bytes: of a body. patience: seconds
    for which a request waits where no server is there. open_to: the limits of all who ask together, where there are no
    keys."""

    def __init__(
        self,
        keys: Sequence[Key] = (),
        most_bytes: int = 8 << 20,
        patience: float = 60.0,
        open_to: Key | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        names, texts = {one.name for one in keys}, {one.key for one in keys}
        if len(names) < len(keys) or len(texts) < len(keys):
            raise HeadwiseError("two keys have the same name or text; give each its own")
        self.keys, self.most_bytes, self.patience, self.clock = tuple(keys), most_bytes, patience, clock
        self.open_to = open_to or Key(name="all", key="-")
        self._asked = {one.name: _Asked() for one in (*keys, self.open_to)}

    @contextmanager
    def entered(self, request: Request) -> Iterator[str]:
        """The name of who asks, while the request is answered. Refused without a key, or beyond what it allows; what is
        only looked up, by GET, is not counted."""
        key = self._key(request)
        if request.method == "GET":
            yield key.name
            return
        asked, now = self._asked[key.name], self.clock()
        while asked.times and now - asked.times[0] >= MINUTE:
            asked.times.popleft()
        if key.requests_per_minute is not None and len(asked.times) >= key.requests_per_minute:
            wait = math.ceil(MINUTE - (now - asked.times[0]))
            raise Refused(
                429, f"{key.requests_per_minute} requests a minute are the limit; come again in {wait} s",
                "rate_limit_exceeded", after=wait,
            )  # fmt: skip
        if key.at_once is not None and asked.now >= key.at_once:
            raise Refused(
                429, f"{key.at_once} requests at once are the limit; wait until one is answered", "rate_limit_exceeded"
            )
        if key.requests_per_minute is not None:
            asked.times.append(now)
        asked.now += 1
        try:
            yield key.name
        finally:
            asked.now -= 1

    def _key(self, request: Request) -> Key:
        """The key that was given; each comparison takes as long whatever is wrong with it."""
        if not self.keys:
            return self.open_to
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        right = [one for one in self.keys if hmac.compare_digest(given.encode(), one.key.encode())]
        if kind.lower() != "bearer" or not right:
            raise Refused(401, "give one of the server's keys as `Authorization: Bearer KEY`", "invalid_api_key")
        return right[0]

    async def body(self, request: Request) -> bytes:
        """The body of a request, no more of it than allowed."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # of other kinds a web page could send one to a server on this machine
            raise Refused(415, "send the body as `Content-Type: application/json`", "content_type")
        try:
            return await asyncio.wait_for(self._read(request), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise Refused(408, f"the body did not come within {BODY_SECONDS:.0f} s", "timeout") from None
        except ClientDisconnect:
            raise Refused(499, "the client has gone", "client_gone") from None

    async def _read(self, request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.most_bytes:
                raise Refused(413, f"the body has more than {self.most_bytes} bytes", "body_too_large")
            parts.append(part)
        return b"".join(parts)
