"""Compiles the kernels, one library per instruction level, with any C++20 compiler. Needs the standard library only.

Run as `python native/build.py` to rebuild in place; the package's build calls `build` and goes on without the kernels
when it fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARIES = HERE.parent / "src" / "headwise" / "kernels" / "native" / "lib"
AVX512 = ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
AVX512BF16 = [*AVX512, "-mavx512bf16", "-mavx512vnni", "-mavx512vbmi"]
LEVELS: dict[str, list[str]] = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS |= {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": AVX512,
        "avx512bf16": AVX512BF16,
        "amx": [*AVX512BF16, "-mamx-tile", "-mamx-bf16"],
    }
# For tests alone, and built only when named: the code of amx with its instructions in plain C++, on any processor.
EMULATED = {"amx_emulated": ["-DHW_EMULATE_TILES", "-Wno-psabi"]}
COMMON = ["-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall"]
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]


def compiler() -> str:
    """The C++ compiler to use: $CXX, else the first of c++, g++, clang++. Raises RuntimeError when there is none."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise RuntimeError(f"no C++ compiler found (looked for {', '.join(names)}); install one or set CXX")
    return found


def lacks(cxx: str, level: str) -> str:
    """Why a compiler cannot make a level's code, in its own words; empty if it can."""
    command = [cxx, *LEVELS.get(level, []), "-fsyntax-only", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip().partition("\n")[0] if done.returncode else ""


def build(out: Path = LIBRARIES, levels: list[str] | None = None, sanitize: bool = False) -> list[Path]:
    """Compile the sources into `out/<level>.so`, each level alone, but for those that the compiler has no flags for.

    Says on stderr which these are. Raises RuntimeError with the first error of any other.
    """
    out.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path) for path in HERE.glob("*.cpp"))
    cxx = compiler()

    def one(level: str) -> Path | None:
        target = out / f"{level}.so"
        if why := lacks(cxx, level):
            print(f"level {level} not built, the next lower one will be used: {cxx}: {why}", file=sys.stderr)
            target.unlink(missing_ok=True)
            return None
        partial = target.with_suffix(f".{os.getpid()}.partial")
        flags = [*COMMON, *(LEVELS | EMULATED)[level], *(SANITIZE if sanitize else [])]
        done = subprocess.run([cxx, *flags, *sources, "-o", str(partial)], capture_output=True, text=True, check=False)
        if done.returncode:
            partial.unlink(missing_ok=True)
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
            raise RuntimeError(f"{cxx} failed for level {level}: {errors[0] if errors else 'no message'}")
        os.replace(partial, target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [path for path in pool.map(one, levels or LEVELS) if path]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the native kernels.")
    parser.add_argument("--out", type=Path, default=LIBRARIES)
    parser.add_argument("--levels", nargs="*", choices=[*LEVELS, *EMULATED])
    parser.add_argument("--sanitize", action="store_true", help="with address and undefined-behaviour sanitizers")
    args = parser.parse_args()
    try:
        for path in build(args.out, args.levels, args.sanitize):
            print(path)
    except RuntimeError as error:
        sys.exit(f"native kernels not built: {error}")


if __name__ == "__main__":
    main()
