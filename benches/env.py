#!/usr/bin/env python3
"""The identity of environments, and how fast a registry is asked for them.

141 conda files are made up, hashed, written again in another spelling (order, comments, quotes, spaces, case, equal ways to write
a version) and hashed again: equal meaning, equal hash, and no two files the same. Then a local registry gets an image under each
hash, and they are looked up by the builder's own code for some seconds with 256 lookups at a time, while the connections to the
registry are counted. The peer is the registry itself, asked for the same manifests by as many plain HTTP clients as there are
connections, without anything around it: the limit on this machine.

    python3 benches/env.py                    # $KAAI or target/release/kaai, and target/release/examples/lookups
"""

import argparse
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build import BASE, REPOSITORY, Registry  # noqa: E402

FILES = 141
CONNECTIONS = 32
NAMES = "numpy pandas scipy scikit-learn joblib requests pyyaml Pillow lightgbm xgboost onnxruntime flask-cors dateparser".split()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    parser.add_argument("--seconds", type=int, default=3, help="seconds a round and side (default 3)")
    args = parser.parse_args()
    program = Path(os.environ.get("KAAI", REPOSITORY / "target" / "release" / "kaai")).resolve()
    lookups = program.parent / "examples" / "lookups"
    for missing in [path for path in (program, lookups, BASE) if not path.exists()]:
        sys.exit(f"{missing} is not there: run this with `make bench-env`")
    print(f"machine   {os.cpu_count()} cores; docker-registry, file storage")
    with tempfile.TemporaryDirectory(prefix="kaai-bench-") as folder:
        same, hashes, milliseconds = identities(program, Path(folder))
        print(f"\n{FILES} environment files, hashed twice in two spellings: {same} the same, {len(hashes)} different")
        print(f"`kaai env show` of one: median {milliseconds:.1f} ms, the start of the program with it")
        with Registry(Path(folder)) as registry:
            tag(registry, hashes)
            rounds = [(ours(lookups, registry, hashes, args), plain(registry, hashes, args)) for _ in range(args.rounds)]
    print(report(same, rounds))


def identities(program, folder):
    """How many hashes stayed, all hashes, and how long one takes."""
    chance, seconds, first, second = random.Random(141), [], [], []
    for number in range(FILES):
        pins = {name: f"{chance.randint(0, 9)}.{chance.randint(0, 20)}" for name in chance.sample(NAMES, chance.randint(1, 8))}
        python, channels = chance.choice(["3.9", "3.10", "3.11"]), chance.sample(["conda-forge", "defaults"], chance.randint(0, 2))
        # No two are the same, whatever chance says.
        pins["kaai-bench-file"] = str(number)
        for spelling, hashes in ((plainly, first), (otherwise, second)):
            project = folder / f"project-{number}-{spelling.__name__}"
            project.mkdir()
            (project / "score.py").write_text("def init(): pass\ndef run(data): return data\n")
            (project / "environment.yml").write_text(spelling(chance, pins, python, channels))
            began = time.perf_counter()
            said = subprocess.run([program, "env", "show", project, "--output", "json"], capture_output=True, text=True, check=False)
            seconds.append(time.perf_counter() - began)
            if said.returncode != 0:
                sys.exit(f"kaai env show {project} ended with {said.returncode}: {said.stderr}")
            hashes.append(json.loads(said.stdout)["hash"])
    same = sum(one == other for one, other in zip(first, second))
    return same, sorted(set(first)), statistics.median(seconds) * 1000


def plainly(_, pins, python, channels):
    lines = ["channels:", *(f"  - {channel}" for channel in channels)] if channels else []
    lines += ["dependencies:", f"  - python={python}", "  - pip:", *(f"    - {name}=={version}" for name, version in pins.items())]
    return "\n".join(lines) + "\n"


def otherwise(chance, pins, python, channels):
    """The same, as somebody else would write it."""
    names = list(pins)
    chance.shuffle(names)
    lines = ["# Made by hand.", "name: another", "dependencies:", "- pip:"]
    for name in names:
        spelled = chance.choice([name.upper(), name.replace("-", "_"), name])
        space, zero = chance.choice(["", " "]), chance.choice(["", ".0"])
        lines.append(f'  - "{spelled}{space}=={space}{pins[name]}{zero}"  # wanted')
    lines.append(f"- 'python = {python}'" if chance.random() < 0.5 else f"- python={python}.*")
    lines += ["channels: [" + ", ".join(channels) + "]"] if channels else []
    return "\n".join(lines) + "\n"


def tag(registry, hashes):
    """The base image under each hash, as if it had been made."""
    storage = registry.root / "docker" / "registry" / "v2" / "repositories"
    manifest = json.loads((BASE / "index.json").read_text())["manifests"][0]["digest"].removeprefix("sha256:")
    ours = storage / "kaai" / "environments"
    ours.parent.mkdir(parents=True)
    subprocess.run(["cp", "-r", storage / "python", ours], check=True)
    for digest in hashes:
        kept = ours / "_manifests" / "tags" / digest
        registry.link(kept / "current", manifest)
        registry.link(kept / "index" / "sha256" / manifest, manifest)


def ours(program, registry, hashes, args):
    """Lookups a second by the builder's code, and the most connections at a time."""
    command = [program, f"{registry.host}/kaai", "--seconds", str(args.seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write("\n".join(hashes))
    process.stdin.close()
    most = 0
    while process.poll() is None:
        most = max(most, connections(registry.port))
        time.sleep(0.02)
    said = json.loads(process.stdout.read())
    if said["found"] != said["lookups"]:
        sys.exit(f"{said['lookups'] - said['found']} of {said['lookups']} lookups found nothing")
    return said["lookups"] / said["seconds"], most


def plain(registry, hashes, args):
    """Manifests a second by plain clients, a connection each, in a process of their own so that nothing else takes its time."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parent)!r}); import env;"
        f"env.hammer({registry.port}, {hashes!r}, {args.seconds})"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(said.stdout)


def hammer(port, hashes, seconds):
    counts, end = [0] * CONNECTIONS, time.monotonic() + seconds

    def client(which):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.monotonic() < end:
            digest = hashes[(which + CONNECTIONS * counts[which]) % len(hashes)]
            headers = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
            connection.request("GET", f"/v2/kaai/environments/manifests/{digest}", headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            counts[which] += 1

    threads = [threading.Thread(target=client, args=(which,)) for which in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counts) / seconds)


def connections(port):
    """Established connections to a port of this machine, seen from the caller's side."""
    wanted = f":{port:04X} 01"
    return sum(bool(re.search(rf"[0-9A-F]{{8}}{wanted} ", line)) for line in Path("/proc/net/tcp").read_text().splitlines())


def report(same, rounds):
    def row(name, values):
        print(f"{name:46}{statistics.median(values):10.0f}{f'{min(values):.0f}–{max(values):.0f}':>16}")

    rates, limits = [mine for (mine, _), _ in rounds], [limit for _, limit in rounds]
    most = max(open_ for (_, open_), _ in rounds)
    print(f"\nlookups a second, {len(rounds)} rounds\n{'':46}{'median':>10}{'range':>16}")
    row(f"kaai-builder, at most {most} connections", rates)
    row(f"the registry, {CONNECTIONS} plain clients (Python)", limits)
    ratio = statistics.median(mine / limit for mine, limit in zip(rates, limits))
    return f"bench env: same={same} lookups_per_second={statistics.median(rates):.0f} ratio={ratio:.2f} connections={most}"


if __name__ == "__main__":
    main()
