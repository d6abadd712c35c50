#!/usr/bin/env python3
"""An environment that becomes an image in a registry: kaai's two builders beside `docker build` and `docker push`.

Every side makes an image with the same packages on the same base image and pushes it to the same registry, which has the base
image already. Cold: no package is in any cache. Warm: all packages but one are, since another environment with them was made
before; the image itself is new in both cases, as it is when somebody adds a package. The sides are measured in turn within a
round; a figure is a median with its range, and ratios are paired within a round.

CPU-seconds are those of the whole machine (/proc/stat), because an engine works in processes of its own: run this on a quiet
machine. Bytes pushed are what the registry's storage grew by; the size is that of all layers, compressed.

    python3 benches/build.py                    # $KAAI_BUILDER or target/release/kaai-builder
    DOCKER=/usr/bin/docker python3 benches/build.py --rounds 3
"""

import argparse
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BASE = REPOSITORY / ".tools" / "base-image" / "python3.11"
EXAMPLE = json.loads((REPOSITORY / "proto" / "examples" / "project.packaged.v1.json").read_text())
DOCKER = os.environ.get("DOCKER", "docker")
ENGINE = Path("/var/run/docker.sock")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PATIENCE = 900.0

# What a service of Azure ML v1 has: the scoring server, which kaai adds by itself, and a model's libraries.
SERVER = "azureml-inference-server-http==1.5.1"
PACKAGES = ["scikit-learn==1.8.0", "pandas==2.3.3", "joblib==1.5.2"]
# One more makes it another environment.
MORE = ["toolz==1.0.0"]
# An engine remembers the steps of every run before this one.
RUN = secrets.token_hex(4)

SIDES = {
    "assemble": "kaai, assembled",
    "engine": "kaai, by the engine (Dockerfile, uv, caches)",
    "pip": "docker build with pip, push",
    "uv": "docker build with uv and a cache mount, push",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    args = parser.parse_args()
    builder = Path(os.environ.get("KAAI_BUILDER", REPOSITORY / "target" / "release" / "kaai-builder")).resolve()
    for missing in [path for path in (builder, BASE, ENGINE) if not path.exists()]:
        sys.exit(f"{missing} is not there: run this with `make bench-build`, where a Docker engine runs")
    for program in ("uv", "nats-server", "docker-registry", DOCKER):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not on PATH: run this with `make bench-build`")
    folder = Path(tempfile.mkdtemp(prefix="kaai-bench-"))
    try:
        with Bus(folder) as bus:
            print_versions(builder)
            rounds = [one_round(number, folder, bus, builder) for number in range(1, args.rounds + 1)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(report(rounds))


def one_round(number, folder, bus, builder):
    """Each side cold and then warm, then what is there already is asked for again; all with a registry that has the base image alone."""
    measured, folder = {}, folder / f"round-{number}"
    folder.mkdir()
    with Registry(folder) as registry, Builder(folder / "builder", registry, bus, builder) as kaai:
        peers = Peers(folder, registry)
        ways = {
            "assemble": lambda packages, cold: kaai.make(packages),
            "engine": lambda packages, cold: kaai.make(None, peers.dockerfile("uv", packages, f"engine-{number}", cold)),
            "pip": lambda packages, cold: peers.build("pip", packages, f"pip-{number}", cold),
            "uv": lambda packages, cold: peers.build("uv", packages, f"uv-{number}", cold),
        }
        for side, make in ways.items():
            for kind, packages in (("cold", PACKAGES), ("warm", PACKAGES + MORE)):
                measured[side, kind] = registry.measured(lambda: make(packages, kind == "cold"))
        measured["found"] = [kaai.make(PACKAGES, expect="cached").seconds for _ in range(20)]
        before = registry.bytes()
        source_only = kaai.make(PACKAGES, expect="cached")
        assert registry.bytes() == before and source_only.reference, "a change of source pushes nothing"
        peers.forget()
    line = ", ".join(f"{side} {measured[side, 'cold'].seconds:.1f}/{measured[side, 'warm'].seconds:.1f}" for side in SIDES)
    print(f"round {number}   seconds cold/warm: {line}", flush=True)
    return measured


class Made:
    """An image that was made, and what that cost."""

    def __init__(self, reference, seconds):
        self.reference, self.seconds, self.cpu, self.pushed, self.size = reference, seconds, 0.0, 0, 0


class Registry:
    """A registry of this run's own."""

    def __init__(self, folder):
        self.root, self.port = folder / "registry", free_port()
        self.host = f"127.0.0.1:{self.port}"
        config = folder / "registry.yml"
        config.write_text(
            f"version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {self.root} }} }}\n"
            f"http: {{ addr: '{self.host}' }}\n"
        )
        self.command, self.log = ["docker-registry", "serve", str(config)], open(folder / "registry.log", "wb")

    def __enter__(self):
        self.seed()
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        until(lambda: listens(self.port), "the registry listens")
        return self

    def __exit__(self, *_):
        end(self.process)

    def seed(self):
        """The base image, put straight into the storage."""
        index = json.loads((BASE / "index.json").read_text())
        manifest = index["manifests"][0]["digest"].removeprefix("sha256:")
        storage = self.root / "docker" / "registry" / "v2"
        for blob in (BASE / "blobs" / "sha256").iterdir():
            kept = storage / "blobs" / "sha256" / blob.name[:2] / blob.name
            kept.mkdir(parents=True)
            shutil.copy(blob, kept / "data")
            kind = ("_manifests", "revisions") if blob.name == manifest else ("_layers",)
            self.link(storage / "repositories" / "python" / Path(*kind) / "sha256" / blob.name, blob.name)
        tag = storage / "repositories" / "python" / "_manifests" / "tags" / "3.11"
        self.link(tag / "current", manifest)
        self.link(tag / "index" / "sha256" / manifest, manifest)

    @staticmethod
    def link(folder, name):
        folder.mkdir(parents=True)
        (folder / "link").write_text(f"sha256:{name}")

    def bytes(self):
        return sum(path.stat().st_size for path in self.root.rglob("data"))

    def size(self, reference):
        host, rest = reference.split("/", 1)
        repository, version = rest.split("@") if "@" in rest else rest.rsplit(":", 1)
        kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
        request = urllib.request.Request(f"http://{host}/v2/{repository}/manifests/{version}", headers={"Accept": kinds})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return sum(layer["size"] for layer in json.load(answer)["layers"])

    def measured(self, make):
        pushed, cpu = self.bytes(), busy()
        made = make()
        made.cpu, made.pushed, made.size = busy() - cpu, self.bytes() - pushed, self.size(made.reference)
        return made


class Bus:
    """A nats-server of this run's own."""

    def __init__(self, folder):
        self.port = free_port()
        config = folder / "nats.conf"
        config.write_text(
            f"host: 127.0.0.1\nport: {self.port}\njetstream {{ store_dir: '{folder / 'bus'}', sync_interval: always }}\n"
        )
        self.command, self.log = ["nats-server", "-c", str(config)], open(folder / "nats.log", "wb")

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        until(lambda: listens(self.port), "the bus listens")
        return self

    def __exit__(self, *_):
        end(self.process)


class Builder:
    """A kaai-builder with empty caches, spoken to as `nats pub` and `nats sub` would."""

    generation = 0

    def __init__(self, folder, registry, bus, program):
        self.port, self.bus = free_port(), bus
        folder.mkdir()
        self.log = open(folder / "builder.log", "wb")
        self.environment = {**os.environ, "UV_CACHE_DIR": str(folder / "uv-cache")}
        self.command = [
            program, "--bus", f"nats://127.0.0.1:{bus.port}", "--store", folder / "store",
            "--environments", folder / "environments", "--registry", f"{registry.host}/kaai",
            "--base-image", f"3.11={registry.host}/python:3.11", "--build-engine", f"unix://{ENGINE}",
            "--admin-address", f"127.0.0.1:{self.port}",
        ]  # fmt: skip
        if CERTIFICATES.exists():
            self.command += ["--build-ca", CERTIFICATES]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, env=self.environment, stdout=self.log, stderr=self.log)
        until(self.ready, f"the builder is ready (see {self.log.name})")
        self.stream = socket.create_connection(("127.0.0.1", self.bus.port), timeout=PATIENCE)
        self.lines = self.stream.makefile("rb")
        self.send("CONNECT {\"verbose\":false,\"headers\":true}", "SUB kaai.v1.default.image.resolved.* 1")
        self.send("SUB kaai.v1.default.deployment.failed.* 1", "PING")
        return self

    def __exit__(self, *_):
        self.stream.close()
        end(self.process)

    def ready(self):
        if self.process.poll() is not None:
            sys.exit(f"the builder ended: see {self.log.name}\n{Path(self.log.name).read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def send(self, *lines):
        self.stream.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def make(self, packages, dockerfile=None, expect="built"):
        Builder.generation += 1
        event = json.loads(json.dumps(EXAMPLE))
        event["generation"] = Builder.generation
        conda = {"file": "environment.yml", "dependencies": ["python=3.11"], "pip": packages}
        event["spec"]["environment"] = {"dockerfile": dockerfile} if dockerfile else {"conda": conda}
        body = json.dumps(event)
        began = time.perf_counter()
        self.send(f"PUB kaai.v1.default.project.packaged.bench {len(body.encode())}", body)
        answer = self.answer()
        seconds = time.perf_counter() - began
        if "image" not in answer:
            sys.exit(f"the builder failed: {json.dumps(answer, indent=2)[:3000]}")
        assert answer["lookup"] == expect, f"{answer['lookup']}, not {expect}"
        return Made(answer["image"]["container"]["reference"], seconds)

    def answer(self):
        """The next event about the generation that was asked for last."""
        while True:
            words = self.lines.readline().split()
            if words[:1] == [b"PING"]:
                self.send("PONG")
            if words[:1] not in ([b"MSG"], [b"HMSG"]):
                continue
            head = int(words[-2]) if words[0] == b"HMSG" else 0
            body = self.lines.read(int(words[-1]) + 2)[head:]
            event = json.loads(body)
            if event["generation"] == Builder.generation:
                return event


class Peers:
    """`docker build` and `docker push`, on the same base image with pip and uv in it."""

    def __init__(self, folder, registry):
        self.folder, self.registry, self.tags = folder / "peers", registry, []
        self.folder.mkdir()
        self.base = f"{registry.host}/python-with-pip:3.11"
        subprocess.run(["uv", "pip", "install", "-q", "--python", "3.11", "--target", self.folder / "pip", "pip==25.3"], check=True)
        shutil.copy(shutil.which("uv"), self.folder / "uv")
        text = f"FROM {registry.host}/python:3.11\nCOPY pip /usr/lib/python3/dist-packages\nCOPY uv /usr/local/bin/uv\n"
        self.docker_build(text, self.base)

    def docker_build(self, text, tag):
        (self.folder / "Dockerfile").write_text(text)
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        secret = ["--secret", f"id=ca,src={CERTIFICATES}"] if CERTIFICATES.exists() else []
        log = open(self.folder / "docker.log", "wb")
        for command in ([DOCKER, "build", "-q", *secret, "-t", tag, str(self.folder)], [DOCKER, "push", tag]):
            if subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode != 0:
                sys.exit(f"{' '.join(command)} failed:\n{(self.folder / 'docker.log').read_text()[-3000:]}")
        self.tags.append(tag)

    def dockerfile(self, way, packages, mark, cold):
        """As one writes it who wants speed: nothing but the cache mount is left out of the image."""
        install = [SERVER, *packages]
        if way == "pip":
            words = ["/usr/bin/python3.11", "-m", "pip", "install", "-q", "--no-cache-dir", "--target", "/srv/packages", *install]
        else:
            words = ["/usr/local/bin/uv", "pip", "install", "-q", "--python", "/usr/bin/python3.11", "--compile-bytecode"]
            words += ["--link-mode=copy", *(["--no-cache"] if cold and mark.startswith("engine") else [])]
            words += ["--target", "/srv/packages", *install]
        # A line of its own makes it a step that the engine has not run before.
        return f"FROM {self.base}\nENV BENCH={RUN}-{mark}-{len(packages)}\nRUN {json.dumps(words)}\n"

    def build(self, way, packages, mark, cold):
        text = self.dockerfile(way, packages, mark, cold)
        mounts = "--mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt " if CERTIFICATES.exists() else ""
        if way == "uv":
            # A cache of this round's own: empty when it is cold, filled by that when it is warm.
            mounts += f"--mount=type=cache,id=kaai-bench-{RUN}-{mark},target=/root/.cache/uv "
        certificates = "ARG SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt\nARG PIP_CERT=/etc/ssl/certs/ca-certificates.crt\n"
        text = text.replace("RUN ", f"{certificates}RUN {mounts}")
        tag = f"{self.registry.host}/bench/{mark}:{len(packages)}"
        began = time.perf_counter()
        self.docker_build(text, tag)
        return Made(tag, time.perf_counter() - began)

    def forget(self):
        subprocess.run([DOCKER, "rmi", "-f", *self.tags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def busy():
    """CPU-seconds that this machine has worked."""
    user, nice, system, _, _, interrupts, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(holds, what):
    deadline = time.perf_counter() + 60
    while not holds():
        if time.perf_counter() > deadline:
            sys.exit(f"not within 60 s: {what}")
        time.sleep(0.02)


def end(process):
    process.terminate()
    process.wait(timeout=60)


def print_versions(builder):
    def said(*command):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().splitlines()[0]

    engine = said(DOCKER, "version", "--format", "engine {{.Server.Version}}, client {{.Client.Version}}")
    print(f"machine   {os.cpu_count()} cores, {said('uname', '-sr')}")
    print(f"kaai      {said(builder, '--version')}, {said('uv', '--version')}")
    print(f"docker    {engine}, BuildKit; pip 25.3, the same uv")


def report(rounds):
    for kind in ("cold", "warm"):
        print(f"\n{kind}, {len(rounds)} rounds\n{'':46}{'median s':>9}{'range s':>14}{'CPU s':>8}{'pushed MB':>11}{'image MB':>10}")
        for side, name in SIDES.items():
            made = [measured[side, kind] for measured in rounds]
            seconds = [one.seconds for one in made]
            middle = {field: statistics.median(getattr(one, field) for one in made) for field in ("cpu", "pushed", "size")}
            print(
                f"{name:46}{statistics.median(seconds):9.1f}{f'{min(seconds):.1f}–{max(seconds):.1f}':>14}"
                f"{middle['cpu']:8.1f}{middle['pushed'] / 1e6:11.1f}{middle['size'] / 1e6:10.1f}"
            )
    found = [seconds * 1000 for measured in rounds for seconds in measured["found"]]
    print(f"\nan equal environment found again: median {statistics.median(found):.1f} ms, {min(found):.1f}–{max(found):.1f}")

    def ratio(kind):
        best = lambda measured: min(measured["pip", kind].seconds, measured["uv", kind].seconds)  # noqa: E731
        return statistics.median(measured["assemble", kind].seconds / best(measured) for measured in rounds)

    return f"bench build: warm_ratio={ratio('warm'):.2f} cold_ratio={ratio('cold'):.2f} found_ms={statistics.median(found):.1f}"


if __name__ == "__main__":
    main()
