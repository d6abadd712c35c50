#!/usr/bin/env python3
"""Puts Docker Compose 2 into .tools/cli-plugins: the plugin of Debian 13's package, pinned by version and hash.

    DOCKER_CONFIG=.tools docker compose version

It serves the tests on Debian 12, whose own package is Compose 1.29. Running this again costs a few milliseconds and changes nothing.
Only apt-get and dpkg-deb are needed; apt's settings (mirror, proxy) hold, and nothing of the system's own package lists is touched.
Where it cannot be had, it says so and ends with status 3.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from fetch import Trouble, line

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / ".tools" / "cli-plugins" / "docker-compose"
SUITE, PACKAGE, VERSION = "trixie", "docker-compose", "2.26.1-4"
MIRROR = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Architecture -> the hash of the package file.
PACKAGES = {
    "amd64": "47681197cb2b1ab88206b42a1a92fc75f50d9530a6322d03494a473eed0408ea",
    "arm64": "bbafaa666f3e7fa00ad36f2a8bab889f1c791ca8743d674e7267a3d07203869c",
}
MEMBER = "./usr/libexec/docker/cli-plugins/docker-compose"


def main() -> int:
    began = time.monotonic()
    PLUGIN.parent.mkdir(parents=True, exist_ok=True)
    stamp = PLUGIN.with_suffix(".edition")
    with open(PLUGIN.parent / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not PLUGIN.is_file() or not stamp.is_file() or stamp.read_text(encoding="utf-8") != VERSION:
            fetch()
            stamp.write_text(VERSION, encoding="utf-8")
    line("compose", f"docker-compose {VERSION} (checked)", time.monotonic() - began)
    return 0


def fetch() -> None:
    for program in ("apt-get", "dpkg-deb", "dpkg"):
        if shutil.which(program) is None:
            raise Trouble(f"there is no {program}: Compose is taken from Debian's package")
    architecture = run(["dpkg", "--print-architecture"]).strip()
    if architecture not in PACKAGES:
        raise Trouble(f"no package of Compose is pinned for {architecture}; put a docker-compose of version 2 at {PLUGIN} yourself")
    with tempfile.TemporaryDirectory(dir=PLUGIN.parent) as folder:
        package = download(Path(folder))
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        if digest != PACKAGES[architecture]:
            raise Trouble(f"{package.name} has the SHA-256 {digest}, and {PACKAGES[architecture]} is pinned in tools/compose.py")
        program = Path(folder) / "docker-compose"
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacked:
            with tarfile.open(fileobj=unpacked.stdout, mode="r|") as tar:
                for entry in tar:
                    if entry.name == MEMBER:
                        with tar.extractfile(entry) as source, open(program, "wb") as target:
                            shutil.copyfileobj(source, target, 1 << 20)
        if not program.is_file():
            raise Trouble(f"{package.name} has no {MEMBER}")
        program.chmod(0o755)
        program.replace(PLUGIN)


def download(folder: Path) -> Path:
    """The package, found by a list of packages that is this tool's alone."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={KEYS}] {MIRROR} {SUITE} main\n", encoding="utf-8")
    options = [
        f"Dir::Etc::SourceList={sources}",
        "Dir::Etc::SourceParts=-",
        f"Dir::State::Lists={folder / 'lists'}",
        f"Dir::Cache={folder / 'cache'}",
        # Nothing but the list of packages is wanted: no translations, no contents.
        "Acquire::Languages=none",
        "APT::Sandbox::User=root" if os.geteuid() == 0 else "APT::Sandbox::User=",
    ]
    apt = ["apt-get", "--quiet", *(word for option in options for word in ("-o", option))]
    run([*apt, "update"], folder)
    run([*apt, "download", f"{PACKAGE}={VERSION}"], folder)
    return next(folder.glob("*.deb"))


def run(command: list, folder: Path = ROOT) -> str:
    ran = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ran.returncode != 0:
        raise Trouble(f"{' '.join(command[:1])} failed:\n{ran.stdout.strip()}")
    return ran.stdout


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        print(f"compose      {trouble}", file=sys.stderr)
        sys.exit(3)
