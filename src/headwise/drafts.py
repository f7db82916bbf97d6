"""How a file is replaced: by a draft beside it that takes its place once it is on the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from headwise.errors import FileError

if sys.platform != "win32":
    import fcntl

SLOTS = 64  # drafts of one file that may be written at the same time
SPACE = "free some, or write to another disk"
RIGHTS = "give a path in a folder that you may write to"
FIXES = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EFBIG: SPACE,
    errno.EACCES: RIGHTS,
    errno.EPERM: RIGHTS,
    errno.EROFS: RIGHTS,
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "one of its folders is a file; give another path",
    errno.EEXIST: "one of its folders is a file, or a link that leads nowhere; give another path",
}


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """An empty file, open to be written: it takes the place of `path` once it is on the disk, or goes where anything
    fails.

    It gets the rights of the file that it replaces, else those that the umask leaves. What a killed process left is
    found by its name and removed. FileError names the path and the fix: where it cannot be written, and where `path`
    is a link, as neither the link nor what it leads to may be meant.
    """
    check_target(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft, handle = _new_draft(path)
        with os.fdopen(handle, "wb") as stream:
            try:
                yield stream
                stream.flush()
                if path.exists():
                    os.chmod(draft, stat.S_IMODE(path.stat().st_mode))
                os.fsync(handle)
                os.replace(draft, path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        _sync_folder(path.parent)
    except OSError as problem:
        fix = FIXES.get(problem.errno or 0, "give another path, or free some space")
        raise FileError(f"cannot write {_shown(path)}: {problem.strerror or problem}; {fix}") from None


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """While it lasts, no other process is in this context with the same `lock`, a file that is made and stays.

    what: what is being done, for the FileError where another process is doing it.
    """
    check_target(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as problem:
        fix = FIXES.get(problem.errno or 0, "give another path")
        raise FileError(f"cannot write {_shown(lock)}: {problem.strerror or problem}; {fix}") from None
    with os.fdopen(handle):
        try:
            _lock(handle)
        except BlockingIOError:
            raise FileError(f"another process is {what} ({_shown(lock)} is locked); wait until it is through") from None
        except OSError:  # some network disks have no locks
            pass
        yield


def check_target(path: Path) -> None:
    """Refuse a path that could not be written, before there is anything to write."""
    try:
        os.fsencode(path)
        if "\0" in str(path):
            raise ValueError("its name has a null character")
    except ValueError as problem:
        raise FileError(f"cannot write {_shown(path)}: {problem}; give another name") from None
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as problem:
        fix = FIXES.get(problem.errno or 0, "give another path")
        raise FileError(f"cannot write {_shown(path)}: {problem.strerror}; {fix}") from None
    if stat.S_ISLNK(found.st_mode):
        raise FileError(
            f"cannot write {path}: it is a link to {os.readlink(path)}; give that path itself, or remove the link"
        )
    if stat.S_ISDIR(found.st_mode):
        raise FileError(f"cannot write {path}: it is a folder; give the name of a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"cannot write {path}: it is a device or a pipe; give the name of a file")


def _new_draft(path: Path) -> tuple[Path, int]:
    """A new file beside `path` and an open handle on it, which is locked for as long as it is written."""
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # a long name has no room for more letters
    for slot in range(SLOTS):
        draft = path.with_name(f".{name}-{slot}.part")
        _remove_left_over(draft)
        try:
            handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue  # another process is writing it
        with suppress(OSError):  # some network disks have no locks: what a killed process left then stays
            _lock(handle)
        if _is_still(draft, handle):
            return draft, handle
        os.close(handle)  # taken for a left-over before it was locked
    raise FileError(f"{SLOTS} processes are writing {_shown(path)}; give each a path of its own")


def _remove_left_over(draft: Path) -> None:
    """Remove a draft whose writer is gone: one that nobody locks."""
    with suppress(OSError):
        handle = os.open(draft, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            _lock(handle)
            if _is_still(draft, handle):
                draft.unlink()
        finally:
            os.close(handle)


def _lock(handle: int) -> None:
    """Hold an open file until it is closed; OSError where another process does."""
    if sys.platform != "win32":
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_still(draft: Path, handle: int) -> bool:
    """Whether the name is that of the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.lstat(draft))
    return False


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk as well, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _shown(path: Path) -> str:
    """A path as an error shows it."""
    text = str(path).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"
