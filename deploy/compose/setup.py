#!/usr/bin/env python3
"""Prepares the volumes of the compose stack, before anything else of it starts; again is fine, and changes nothing.

It makes the passwords of the bus and the keys of the object store once, each readable by the one component that it is for, and gives
each volume to its user.

    setup.py                 # as the service `setup` does
    setup.py show USER       # writes a password to standard output: `cli` is the one for the command line
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BUS = Path("/etc/kaai")
PASSWORDS = BUS / "passwords"

# The users of compose.yaml. Builder and deployer have the engine's socket, and so are root there in any case.
OWNERS = {"packager": 10011, "builder": 0, "deployer": 0, "router": 10014, "scaler": 10015, "cli": 0}
NATS = 10010
OBJECTS = 10017

# What each may do with the bucket of compose.s3.yaml.
BUCKET = {
    "packager": ["Read:kaai", "Write:kaai", "List:kaai"],
    "builder": ["Read:kaai", "Write:kaai", "List:kaai"],
    "deployer": ["Read:kaai", "List:kaai"],
}

# Folder -> user, group, mode.
FOLDERS = {
    "/var/lib/kaai/nats": (NATS, NATS, 0o700),
    "/var/lib/registry": (10016, 10016, 0o700),
    # Written by the packager, and by the builder in its group; what is made in it keeps the group.
    "/var/lib/kaai/store": (10011, 10000, 0o2775),
    "/var/lib/kaai/packager": (10011, 10000, 0o700),
    "/var/lib/kaai/builder": (0, 0, 0o700),
    "/var/lib/kaai/builder/tmp": (0, 0, 0o700),
    # Routers reach through it to the sockets of replicas.
    "/var/lib/kaai/deployer": (0, 0, 0o711),
    # Only where there is compose.s3.yaml.
    "/data": (OBJECTS, OBJECTS, 0o700),
    # The holder makes its socket here, and routers open it.
    "/run/kaai": (10013, 10001, 0o750),
}


def main():
    if sys.argv[1:2] == ["show"] and len(sys.argv) == 3 and sys.argv[2] in OWNERS:
        print((PASSWORDS / sys.argv[2]).read_text().strip())
        return
    if len(sys.argv) > 1:
        sys.exit(f"write `show` and one of {', '.join(OWNERS)}, or nothing")
    os.umask(0o077)
    subprocess.run([sys.executable, HERE / "make-passwords.py", BUS], check=True)
    for user, owner in OWNERS.items():
        own(PASSWORDS / user, owner, 0, 0o400)
    for name in ("nats-server.conf", "users.conf"):
        shutil.copyfile(HERE / name, BUS / name)
        own(BUS / name, NATS, NATS, 0o400)
    own(BUS / "passwords.conf", NATS, NATS, 0o400)
    store_keys()
    own(PASSWORDS, 0, 0, 0o711)
    # Bus and object store find their own files in it; each may read no other's.
    own(BUS, 0, 0, 0o711)
    for folder, (user, group, mode) in FOLDERS.items():
        if folder == "/data" and not Path(folder).exists():
            continue
        Path(folder).mkdir(exist_ok=True)
        own(folder, user, group, mode)
    print("the volumes are ready")


def store_keys():
    """A key of the object store for each component that uses it, and the list of them for the store itself."""
    identities = []
    for user, actions in BUCKET.items():
        path = PASSWORDS / f"store-{user}"
        if not path.exists():
            path.write_text(f"aws_access_key_id={user}\naws_secret_access_key={secrets.token_hex(32)}\n")
        secret = path.read_text().split("aws_secret_access_key=")[1].strip()
        identities.append({"name": user, "credentials": [{"accessKey": user, "secretKey": secret}], "actions": actions})
        own(path, OWNERS[user], 0, 0o400)
    (BUS / "objects.json").write_text(json.dumps({"identities": identities}))
    own(BUS / "objects.json", OBJECTS, OBJECTS, 0o400)


def own(path, user, group, mode):
    os.chown(path, user, group)
    os.chmod(path, mode)


if __name__ == "__main__":
    main()
