#!/usr/bin/env python3
"""Makes a small conda channel for tests, out of the Python of the small base image and packages of its own.

It is written to .tools/conda-channel/tests; the prefix that its packages were built for is a placeholder, as in real ones.
Running this again costs a few milliseconds and changes nothing. Without the base image it says so and ends with status 3.
"""

import bz2
import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYOUT = ROOT / ".tools" / "base-image" / "python3.11"
CHANNEL = ROOT / ".tools" / "conda-channel" / "tests"
# A change of what is made below counts this up.
EDITION = 1

PLACEHOLDER = "/opt/kaai_placeholder" + "_placehold" * 20
PLATFORM = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}.get(os.uname().machine, "linux-64")

# Debian keeps packages elsewhere than everybody else, and its Python in the system's hands: neither holds in a prefix.
UNDONE = {"sysconfig.py": [('    if sys.base_prefix != sys.prefix or hasattr(sys, "real_prefix"):', "    if True:")]}
LEFT_OUT = ("EXTERNALLY-MANAGED", "sitecustomize.py", "_distutils_system_mod.py")


class Trouble(Exception):
    """Something the user has to know, in words."""


def main() -> int:
    began = time.monotonic()
    if not (LAYOUT / "edition.json").exists():
        raise Trouble("there is no base image to take Python from (tools/base_image.py)")
    CHANNEL.parent.mkdir(parents=True, exist_ok=True)
    edition = [EDITION, (LAYOUT / "index.json").read_text(encoding="utf-8")]
    with open(CHANNEL.parent / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mark = CHANNEL / "edition.json"
        if not mark.exists() or json.loads(mark.read_text(encoding="utf-8")) != edition:
            make(edition)
    print(f"{'conda':<12} {str(CHANNEL.relative_to(ROOT)):<58} {time.monotonic() - began:>7.1f} s", flush=True)
    return 0


def make(edition: list) -> None:
    with tempfile.TemporaryDirectory(dir=CHANNEL.parent) as folder:
        channel = Channel(Path(folder) / "tests")
        channel.put("python", "3.11.2", PLATFORM, python(), ["__glibc >=2.17"])
        needs = ["python >=3.11,<3.12.0a0", "kaai-arrays >=1.0"]
        for version, glibc in (("1.0", "2.17"), ("2.0", "99")):
            channel.put("hello-conda", version, PLATFORM, hello(version), [*needs, f"__glibc >={glibc}"])
        for version in ("1.0", "1.5", "2.0"):
            channel.put("kaai-arrays", version, "noarch", library("kaai_arrays", version), ["python >=3.8"])
        channel.put("kaai-stats", "1.1", "noarch", library("kaai_stats", "1.1"), ["python >=3.8", "kaai-arrays >=1.0,<2"])
        channel.put("kaai-clash", "1.0", "noarch", library("kaai_clash", "1.0"), ["kaai-arrays >=2"])
        channel.put("kaai-damaged", "1.0", "noarch", library("kaai_damaged", "1.0"), ["python"])
        channel.damage("kaai-damaged-1.0-0.tar.bz2")
        channel.close()
        (channel.folder / "edition.json").write_text(json.dumps(edition), encoding="utf-8")
        if CHANNEL.exists():
            shutil.rmtree(CHANNEL)
        channel.folder.rename(CHANNEL)


def python() -> dict:
    """The base image's Python as a conda package has it: path -> content, link or (content, mode of the placeholder)."""
    index = json.loads((LAYOUT / "index.json").read_text(encoding="utf-8"))
    blob = lambda digest: LAYOUT / "blobs" / "sha256" / digest.removeprefix("sha256:")
    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_bytes())
    files = {}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob(manifest["layers"][0]["digest"]).read_bytes()))) as tar:
        for entry in tar:
            name = entry.name.removeprefix("usr/")
            inside = name.removeprefix("lib/python3.11/")
            if name == entry.name or not (name == "bin/python3.11" or name.startswith("lib/python3.11/")) or inside in LEFT_OUT:
                continue
            if entry.issym():
                files[name] = entry.linkname
            elif entry.isfile():
                content = tar.extractfile(entry).read()
                for before, after in UNDONE.get(inside, []):
                    if before.encode() not in content:
                        raise Trouble(f"Debian's {inside} is another one than expected; look at UNDONE in {Path(__file__).name}")
                    content = content.replace(before.encode(), after.encode())
                files[name] = content
    # The module that says where packages are looked for is part of the program: it gets the folder that it looks for.
    files.update({"bin/python": "python3.11", "bin/python3": "python3.11", "lib/python3.11/dist-packages": "site-packages"})
    return files


def hello(version: str) -> dict:
    """A program with the prefix in its first line, in a text and in a binary file."""
    binary = b"\x7fKAAI\0" + f"{PLACEHOLDER}/share/hello".encode() + b"\0end\0"
    script = f"#!{PLACEHOLDER}/bin/python\nimport kaai_arrays, sys\nprint('hello', '{version}', sys.prefix)\n"
    return {
        "bin/hello-conda": (script.encode(), "text"),
        "etc/hello.conf": (f"data = {PLACEHOLDER}/share/hello\n".encode(), "text"),
        "lib/hello.bin": (binary, "binary"),
        "share/hello/data.txt": b"data\n",
    }


def library(module: str, version: str) -> dict:
    """A package of pure Python as conda's noarch packages have it, known to pip as well."""
    name = module.replace("_", "-")
    info = f"site-packages/{module}-{version}.dist-info"
    record = f"{module}/__init__.py,,\n{module}-{version}.dist-info/METADATA,,\n{module}-{version}.dist-info/RECORD,,\n"
    return {
        f"site-packages/{module}/__init__.py": f"__version__ = '{version}'\n".encode(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/INSTALLER": b"conda\n",
        f"{info}/RECORD": record.encode(),
    }


class Channel:
    """Packages in folders, with the list of each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lists = {PLATFORM: {}, "noarch": {}}
        for subdir in self.lists:
            (folder / subdir).mkdir(parents=True)

    def put(self, name: str, version: str, subdir: str, files: dict, depends: list) -> None:
        index = {"name": name, "version": version, "build": "0", "build_number": 0, "subdir": subdir, "depends": depends}
        if subdir == "noarch":
            index["noarch"] = "python"
        else:
            index["platform"], index["arch"] = "linux", os.uname().machine
        archive = pack(files, index)
        file = f"{name}-{version}-0.tar.bz2"
        (self.folder / subdir / file).write_bytes(archive)
        hashes = {"md5": hashlib.md5(archive).hexdigest(), "sha256": hashlib.sha256(archive).hexdigest()}
        self.lists[subdir][file] = {**index, **hashes, "size": len(archive), "timestamp": 1700000000000}

    def damage(self, file: str) -> None:
        """Changes a package after its hash was noted."""
        path = self.folder / "noarch" / file
        with tarfile.open(path) as tar:
            content = tar.extractfile("info/index.json").read()
        path.write_bytes(pack({"evil.txt": b"evil\n"}, json.loads(content)))

    def close(self) -> None:
        for subdir, packages in self.lists.items():
            text = json.dumps({"info": {"subdir": subdir}, "packages": packages, "packages.conda": {}, "repodata_version": 1})
            (self.folder / subdir / "repodata.json").write_text(text, encoding="utf-8")


def pack(files: dict, index: dict) -> bytes:
    buffer, paths = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def add(name: str, content: bytes, mode: int) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), mode, 1700000000
            tar.addfile(entry, io.BytesIO(content))

        for name, what in sorted(files.items()):
            if isinstance(what, str):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, what
                tar.addfile(entry)
                paths.append({"_path": name, "path_type": "softlink"})
                continue
            content, kind = what if isinstance(what, tuple) else (what, None)
            add(name, content, 0o755 if name.startswith("bin/") else 0o644)
            path = {"_path": name, "path_type": "hardlink", "sha256": hashlib.sha256(content).hexdigest(), "size_in_bytes": len(content)}
            if kind:
                path.update(file_mode=kind, prefix_placeholder=PLACEHOLDER)
            paths.append(path)
        add("info/index.json", json.dumps(index).encode(), 0o644)
        add("info/paths.json", json.dumps({"paths": paths, "paths_version": 1}).encode(), 0o644)
        if index.get("noarch") == "python":
            link = {"noarch": {"type": "python", "entry_points": []}, "package_metadata_version": 1}
            add("info/link.json", json.dumps(link).encode(), 0o644)
    return bz2.compress(buffer.getvalue(), 1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        print(f"conda        {trouble}", file=sys.stderr)
        sys.exit(3)
