#!/usr/bin/env python3
"""Builds kaai-conda, which installs conda packages, into .tools/bin and says how long that took.

It is no part of the workspace: its several hundred crates are built once, into target/conda, and only by whoever needs them.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fetch import BIN, line

ROOT = Path(__file__).resolve().parent.parent
NAME = "kaai-conda"
TARGET = ROOT / "target" / "conda"
# The lists of a real channel are long: a program without optimization takes minutes over them, and half as long to build.
PROFILE = os.environ.get("KAAI_CONDA_PROFILE", "release")
# What cargo is told for this program, here and by the tests.
CARGO = ["--manifest-path", str(ROOT / "conda" / "Cargo.toml"), "--locked", "--profile", PROFILE, "--target-dir", str(TARGET)]


def main() -> int:
    if shutil.which("cargo") is None:
        print("conda        there is no cargo\n→ install Rust with rustup (https://rustup.rs), then open a new shell", file=sys.stderr)
        return 3
    began = time.monotonic()
    if subprocess.run(["cargo", "build", *CARGO], cwd=ROOT, check=False).returncode:
        print("conda        failed; the compiler's words are above", file=sys.stderr)
        return 3
    BIN.mkdir(parents=True, exist_ok=True)
    # One that runs is left alone until it ends.
    temporary = BIN / f".{NAME}.new"
    shutil.copy2(TARGET / {"dev": "debug"}.get(PROFILE, PROFILE) / NAME, temporary)
    temporary.replace(BIN / NAME)
    version = subprocess.run([BIN / NAME, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    line("conda", version, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
