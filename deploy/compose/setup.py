#!/usr/bin/env python3
"""Prepares the volumes of the compose stack, before anything else of it starts; again is fine, and changes nothing.

It makes the passwords of the bus and the keys to the object store once, each readable by the one component that it is for, and gives each
volume to its user.

    setup.py                 # as the service `setup` does
    setup.py show USER       # writes a password to standard output: `cli` is the one for the command line
"""

import fcntl
import json
import os
import secrets
import shutil
import struct
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BUS = Path("/etc/kaai")
PASSWORDS = BUS / "passwords"

# Who may read which password. The builder is root without the right to read others' files; the deployer has it, and an owner that is
# nobody, as the command line has.
OWNERS = {"packager": 10011, "builder": 0, "deployer": 10012, "router": 10014, "scaler": 10015, "cli": 10018}
NATS = 10010
OBJECTS = 10017
# What each may do with the objects in the bucket `kaai`.
KEYS = {
    "packager": ["Read:kaai", "Write:kaai", "List:kaai"],
    "builder": ["Read:kaai", "Write:kaai", "List:kaai"],
    "deployer": ["Read:kaai", "List:kaai"],
}

# Folder -> user, group, mode.
FOLDERS = {
    "/var/lib/kaai/nats": (NATS, NATS, 0o700),
    "/var/lib/registry": (10016, 10016, 0o700),
    "/var/lib/objects": (OBJECTS, OBJECTS, 0o700),
    "/var/lib/kaai/packager": (10011, 10011, 0o700),
    "/var/lib/kaai/builder": (0, 0, 0o700),
    "/var/lib/kaai/builder/tmp": (0, 0, 0o700),
    # Routers reach through it to the sockets of replicas.
    "/var/lib/kaai/deployer": (0, 0, 0o711),
    # The holder makes its socket here, and routers open it.
    "/run/kaai": (10013, 10001, 0o750),
}


def main():
    if sys.argv[1:2] == ["show"] and len(sys.argv) == 3 and sys.argv[2] in OWNERS:
        print((PASSWORDS / sys.argv[2]).read_text().strip())
        return
    if len(sys.argv) > 1:
        sys.exit(f"write `show` and one of {', '.join(OWNERS)}, or nothing")
    subprocess.run([sys.executable, HERE / "make-passwords.py", BUS], check=True)
    for user, owner in OWNERS.items():
        own(PASSWORDS / user, owner, 0, 0o400)
    for name in ("nats-server.conf", "users.conf"):
        shutil.copyfile(HERE / name, BUS / name)
        own(BUS / name, NATS, NATS, 0o400)
    make_keys()
    own(BUS / "passwords.conf", NATS, NATS, 0o400)
    own(PASSWORDS, 0, 0, 0o711)
    own(BUS, 0, NATS, 0o750)
    for folder, (user, group, mode) in FOLDERS.items():
        Path(folder).mkdir(exist_ok=True)
        own(folder, user, group, mode)
    write_at_once(Path("/var/lib/objects"))
    print("the volumes are ready")


def make_keys():
    """A key to the object store for each component that has one, and all of them for its server."""
    identities = []
    for component, actions in KEYS.items():
        path = PASSWORDS / f"store-{component}"
        if not path.exists():
            # Whoever is killed in the middle leaves a part that nobody reads.
            part = path.with_suffix(".part")
            part.touch(0o600)
            part.write_text(f"aws_access_key_id=kaai-{component}\naws_secret_access_key={secrets.token_hex(32)}\n")
            part.replace(path)
        own(path, OWNERS[component], 0, 0o400)
        key, secret = (line.split("=", 1)[1] for line in path.read_text().splitlines())
        credentials = [{"accessKey": key, "secretKey": secret}]
        identities.append({"name": component, "credentials": credentials, "actions": actions})
    path = PASSWORDS / "objects"
    path.touch(0o600)
    path.write_text(json.dumps({"identities": identities}))
    own(path, OBJECTS, 0, 0o400)


def write_at_once(folder):
    """Has whatever is written below a folder be on disk when the write returns: SeaweedFS does not wait for its index (chattr +S)."""
    get, put, synchronous = 0x80086601, 0x40086602, 0x8
    handle = os.open(folder, os.O_RDONLY)
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(handle, get, struct.pack("l", 0)))
        fcntl.ioctl(handle, put, struct.pack("l", flags | synchronous))
        print("what the object store writes is on disk at once")
    except OSError as error:
        print(f"the file system of the object store knows no synchronous folders ({error}): a loss of power may cost the last seconds")
    finally:
        os.close(handle)


def own(path, user, group, mode):
    os.chown(path, user, group)
    os.chmod(path, mode)


if __name__ == "__main__":
    main()
