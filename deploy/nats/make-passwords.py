#!/usr/bin/env python3
"""Makes a password for each user of the bus: passwords/<user> for the components, passwords.conf for nats-server.

Both are readable by their owner alone. Passwords that are there already stay, so this may run again at any time.

    make-passwords.py [FOLDER]      # default: the folder of this script
"""

import os
import secrets
import sys
from pathlib import Path

USERS = ["packager", "builder", "deployer", "router", "scaler", "cli"]


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
    os.umask(0o077)
    (folder / "passwords").mkdir(parents=True, exist_ok=True)
    lines = []
    for user in USERS:
        path = folder / "passwords" / user
        if not path.exists():
            path.write_text(secrets.token_hex(32) + "\n")
        lines.append(f'{user.upper()}_PASSWORD: "{path.read_text().strip()}"\n')
    (folder / "passwords.conf").write_text("".join(lines))
    print(f"{folder / 'passwords.conf'}: {len(USERS)} users")


if __name__ == "__main__":
    main()
