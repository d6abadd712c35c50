#!/usr/bin/env python3
"""Makes a small base image with Python 3.11 out of Debian's packages, without a registry, a daemon or root.

It is written as an OCI image layout: .tools/base-image/python3.11. It has Python and what its extension modules link to; no shell, no pip.
Equal packages make an equal image, byte for byte. Running this again costs a few milliseconds and changes nothing.
Only apt-get and dpkg-deb (Debian 12) are needed; where they are missing, it says so and ends with status 3.
"""

import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYOUT = ROOT / ".tools" / "base-image" / "python3.11"
# A change of what is made below counts this up.
EDITION = 1

PACKAGES = """
base-files netbase libc6 libc-bin libgcc-s1 libstdc++6 libgomp1 zlib1g libbz2-1.0 liblzma5 libexpat1 libffi8 libssl3
libsqlite3-0 libuuid1 libcrypt1 libnsl2 libtirpc3 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libcom-err2 libkrb5support0
libkeyutils1 libdb5.3 libreadline8 libtinfo6 libncursesw6 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib
tzdata media-types
""".split()

# What no service needs, and what would weigh.
LEFT_OUT = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "usr/share/bug/")


class Trouble(Exception):
    """Something the user has to know, in words."""


def main() -> int:
    began = time.monotonic()
    LAYOUT.parent.mkdir(parents=True, exist_ok=True)
    with open(LAYOUT.parent / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if edition() != EDITION:
            make()
    print(f"{'base image':<12} {str(LAYOUT.relative_to(ROOT)):<58} {time.monotonic() - began:>7.1f} s", flush=True)
    return 0


def edition():
    try:
        return json.loads((LAYOUT / "edition.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def make() -> None:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Trouble(f"there is no {program}: a base image is made from Debian's packages")
    with tempfile.TemporaryDirectory(dir=LAYOUT.parent) as folder:
        root, layout = Path(folder) / "root", Path(folder) / "layout"
        debs = download(Path(folder))
        root.mkdir()
        for deb in debs:
            subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)
        finish(root)
        (layout / "blobs" / "sha256").mkdir(parents=True)
        write(layout, pack(root))
        (layout / "edition.json").write_text(json.dumps(EDITION), encoding="utf-8")
        if LAYOUT.exists():
            shutil.rmtree(LAYOUT)
        layout.rename(LAYOUT)


def download(folder: Path) -> list:
    run = subprocess.run(
        ["apt-get", "download", "--quiet", *PACKAGES],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    debs = sorted(folder.glob("*.deb"))
    if run.returncode != 0 or len(debs) != len(PACKAGES):
        raise Trouble(f"{run.stdout.strip()}\n\nDebian's packages could not be fetched; run `apt-get update` as root first")
    return debs


def finish(root: Path) -> None:
    """Does what the packages' own scripts would have done, and merges the folders of old into /usr."""
    for name in ("bin", "sbin", "lib", "lib64"):
        old, new = root / name, root / "usr" / name
        new.mkdir(parents=True, exist_ok=True)
        if old.is_dir() and not old.is_symlink():
            shutil.copytree(old, new, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(old)
        if not old.is_symlink():
            old.symlink_to(f"usr/{name}")
    python = root / "usr" / "bin" / "python3"
    if not python.is_symlink():
        python.symlink_to("python3.11")
    for name in ("tmp", "proc", "sys", "dev", "root", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    etc = root / "etc"
    (etc / "passwd").write_text("root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534::/nonexistent:/sbin/nologin\n")
    (etc / "group").write_text("root:x:0:\nnogroup:x:65534:\n")


def pack(root: Path) -> bytes:
    """The tree as a tar that depends on its content alone."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if name.startswith(LEFT_OUT):
                continue
            entry = tar.gettarinfo(str(path), name)
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            if name in ("tmp", "var/tmp"):
                entry.mode = 0o1777
            if entry.islnk():
                # A second name of a file is written as a file of its own.
                entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", os.stat(path).st_size
            if entry.isreg():
                with open(path, "rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    return buffer.getvalue()


def write(layout: Path, layer: bytes) -> None:
    compressed = gzip.compress(layer, 6, mtime=0)
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created_by": "tools/base_image.py"}],
    }
    layers = [blob(layout, "application/vnd.oci.image.layer.v1.tar+gzip", compressed)]
    described = blob(layout, "application/vnd.oci.image.config.v1+json", encode(config))
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": manifest_type, "config": described, "layers": layers}
    index = {"schemaVersion": 2, "manifests": [blob(layout, manifest_type, encode(manifest))]}
    (layout / "index.json").write_bytes(encode(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")


def encode(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def blob(layout: Path, media_type: str, content: bytes) -> dict:
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        print(f"base image   {trouble}", file=sys.stderr)
        sys.exit(3)
