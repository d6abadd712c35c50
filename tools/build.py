#!/usr/bin/env python3
"""Builds the release of kaai and says how long that took."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from fetch import line

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    if shutil.which("cargo") is None:
        print("build        there is no cargo\n→ install Rust with rustup (https://rustup.rs), then open a new shell", file=sys.stderr)
        return 3
    began = time.monotonic()
    if subprocess.run(["cargo", "build", "--release", "--package", "cli", "--bin", "kaai"], cwd=ROOT, check=False).returncode:
        print("build        failed; the compiler's words are above", file=sys.stderr)
        return 3
    program = ROOT / "target" / "release" / "kaai"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    line("build", version, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
