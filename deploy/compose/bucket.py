#!/usr/bin/env python3
"""Makes the bucket of the compose stack's object store, whose data are on disk before a write counts; again is fine.

It speaks to SeaweedFS's filer, which listens for the store's own container alone: a bucket is a folder there.
"""

import json
import sys
import time
import urllib.error
import urllib.request

FILER = "http://127.0.0.1:8888"
BUCKET = "/buckets/kaai/"
SETTINGS = {"version": 1, "locations": [{"locationPrefix": BUCKET, "fsync": True}]}
# In seconds; a disk that is busy makes it slow to start.
PATIENCE = 120


def main():
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            ask("PUT", "/etc/seaweedfs/filer.conf", json.dumps(SETTINGS).encode())
            ask("POST", BUCKET, None)
            print(f"the bucket {BUCKET.split('/')[-2]} is there")
            return
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"the bucket could not be made within {PATIENCE} s: {error}\n→ see `docker compose logs objects`")
            time.sleep(0.5)


def ask(method, path, body):
    request = urllib.request.Request(FILER + path, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        # A folder that is there already.
        if error.code != 409:
            raise


if __name__ == "__main__":
    main()
