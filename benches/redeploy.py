#!/usr/bin/env python3
"""A changed source line until it answers: `kaai deploy` beside the same change by hand.

One line of a copy of examples/ridge-diabetes is changed in every round, with nothing else: packages and models stay.
With kaai the time runs from the start of `kaai deploy` to the first answer of the new code through the router, while the
old code goes on answering. By hand it runs from the end of the old server (SIGTERM) to the first answer of the new one,
started with `uv run`; between the two nothing answers. Both sides are warmed up once (packages, compiled files) and then
measured in turn, so that what the machine does meanwhile meets both. A figure is a median with its range; the ratio is
paired within a round. The parts come from the events that kaai stores, so they add up to the total.

    python3 benches/redeploy.py                # $KAAI or target/release/kaai
    python3 benches/redeploy.py --rounds 3 --keep
"""

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLE = REPOSITORY / "examples" / "ridge-diabetes"
SERVICE = "bench-redeploy"
ASK_EVERY = 0.01
PATIENCE = 300.0

# The line that is changed, and what it becomes in round N: the answer then begins with N.
LINE = "    return model.predict(data).round(1).tolist()\n"
CHANGED = "    return [{number}, *model.predict(data).round(1).tolist()]\n"

# Part: how it is called. The project lies on the same machine, so packaging ends with the archive in the store: there is no upload.
PARTS = {
    "cli": "kaai deploy reads and asks",
    "package": "package and store",
    "resolve": "resolve the environment",
    "fetch": "unpack for the replica",
    "interpreter": "start the interpreter",
    "init": "import the script, init()",
    "route": "probe, route, first answer",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds after the warm-up (default 7)")
    parser.add_argument("--keep", action="store_true", help="leave the projects, the state and the logs, and say where")
    args = parser.parse_args()
    program = Path(os.environ.get("KAAI", REPOSITORY / "target" / "release" / "kaai")).resolve()
    if not program.exists():
        sys.exit(f"{program} is not there: build it first (make build), or name it in $KAAI")
    if shutil.which("uv") is None:
        sys.exit("uv is not on PATH: run this with `make bench-redeploy`")
    folder = Path(tempfile.mkdtemp(prefix="kaai-bench-"))
    try:
        with Kaai(program, folder) as kaai, ByHand(folder) as by_hand:
            print_versions(program)
            rounds = [(kaai.round(number), by_hand.round(number)) for number in range(1, args.rounds + 2)]
    finally:
        if args.keep:
            print(f"left in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(report(rounds[1:]))


class Project:
    """A copy of the example with one replica, whose changed line says the round."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copytree(EXAMPLE, folder)
        config = json.loads((folder / "deploymentconfig.json").read_text())
        # Requests of this benchmark are to be answered, not to make the scaler start a second replica meanwhile.
        config.pop("autoScaler", None)
        config["numReplicas"] = 1
        (folder / "deploymentconfig.json").write_text(json.dumps(config, indent=2))
        self.script = (folder / "score.py").read_text()
        if LINE not in self.script:
            sys.exit(f"score.py of the example has another last line now: change LINE in {__file__}")
        self.request = (EXAMPLE / "sample-request.json").read_bytes()

    def change(self, number):
        (self.folder / "score.py").write_text(self.script.replace(LINE, CHANGED.format(number=number)))


class Kaai:
    """A kaai of its own, with its own bus, ports and state."""

    def __init__(self, program, folder):
        self.program, self.home = program, folder / "kaai"
        self.project = Project(folder / "project-kaai" / SERVICE)
        self.log = open(folder / "kaai-up.log", "wb")
        self.environment = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config"), "KAAI_HOME": str(self.home)}
        self.since = 0

    def __enter__(self):
        self.process = subprocess.Popen(
            [self.program, "up", "--bus-port", "0", "--router-address", "127.0.0.1:0", "--output", "json"],
            env=self.environment, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        said = self.process.stdout.readline()
        if not said:
            sys.exit(f"kaai up ended with {self.process.wait()}: see {self.log.name}")
        self.router = json.loads(said)["router"]
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=60)
        self.log.close()

    def say(self, *arguments):
        command = [self.program, *arguments]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, stderr=self.log, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def round(self, number):
        self.project.change(number)
        path, headers = f"/api/v1/service/{SERVICE}/score", {"Content-Type": "application/json"}
        if self.since:
            headers["Authorization"] = f"Bearer {self.key}"
        began, wall = time.perf_counter(), time.time()
        command = [self.program, "deploy", str(self.project.folder), "--name", SERVICE, "--output", "json"]
        deploying = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=self.log, text=True)
        if not self.since:
            # Before the first deployment there is no key to ask with.
            self.finish(deploying)
            self.key = self.say("keys", "show", SERVICE, "--only", "primary").strip()
            headers["Authorization"] = f"Bearer {self.key}"
        total = wait_for(number, self.router, path, self.project.request, headers) - began
        self.finish(deploying)
        return {"total": total, "parts": self.parts(wall, total)}

    def finish(self, deploying):
        if deploying.stdout.closed:
            return
        said, _ = deploying.communicate()
        if deploying.returncode != 0:
            sys.exit(f"kaai deploy ended with {deploying.returncode}:\n{said}")

    def parts(self, wall, total):
        """Seconds of each part; `route` is what is left of the total."""
        lines = self.say("events", "--service", SERVICE, "--since", str(self.since + 1), "--output", "json").splitlines()
        events = [json.loads(line) for line in lines]
        self.since = max(event["sequence"] for event in events)
        newest = {event["type"]: event for event in events}
        at = {name: seconds_of(event["time"]) for name, event in newest.items()}
        start = newest["deployment.ready"]["data"]["start"]
        parts = {
            "cli": at["deployment.requested"] - wall,
            "package": at["project.packaged"] - at["deployment.requested"],
            "resolve": at["image.resolved"] - at["project.packaged"],
            "fetch": start["fetchMs"] / 1000,
            "interpreter": start["interpreterMs"] / 1000,
            "init": start["initMs"] / 1000,
        }
        return {**parts, "route": total - sum(parts.values())}


class ByHand:
    """The same project served by azmlinfsrv, as Azure ML v1 served it, in an environment that uv keeps."""

    def __init__(self, folder):
        self.project = Project(folder / "project-by-hand")
        self.log = open(folder / "by-hand.log", "wb")
        self.process = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        lines = (EXAMPLE / "environment.yml").read_text().splitlines()
        self.packages = [line.strip()[2:] for line in lines if re.match(r"\s+- \S+==", line)]
        # The first round compiles the packages, as kaai's builder does: without that each start takes twice as long.
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.log.close()

    def round(self, number):
        self.project.change(number)
        began = time.perf_counter()
        self.stop()
        command = ["uv", "run", "--no-project", "--python", "3.11"]
        if number > 1:
            command += ["--offline"]  # all is cached: asking the index again is no part of a restart
        for package in self.packages:
            command += ["--with", package]
        command += ["azmlinfsrv", "--entry_script", "score.py", "--model_dir", "models", "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, cwd=self.project.folder, env=self.environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        headers = {"Content-Type": "application/json"}
        return wait_for(number, f"http://127.0.0.1:{self.port}", "/score", self.project.request, headers) - began

    def stop(self):
        if self.process:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()
            # uv may end before the server that it runs has closed its port.
            until(lambda: not listens(self.port), "the old server's port is closed")


def wait_for(number, base, path, body, headers):
    """The moment of the first answer that begins with the round's number."""
    host = base.split("//")[1]
    answered = None

    def ask():
        nonlocal answered
        connection = http.client.HTTPConnection(host, timeout=10)
        try:
            connection.request("POST", path, body, headers)
            answer = json.loads(connection.getresponse().read())
            answered = time.perf_counter()
            return isinstance(answer, list) and answer[0] == number
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False
        finally:
            connection.close()

    until(ask, f"{base}{path} answers {number}")
    return answered


def until(holds, what):
    deadline = time.perf_counter() + PATIENCE
    while not holds():
        if time.perf_counter() > deadline:
            sys.exit(f"not within {PATIENCE:.0f} s: {what}")
        time.sleep(ASK_EVERY)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def seconds_of(text):
    """Unix seconds of an RFC 3339 time with any number of decimals, in UTC."""
    moment, fraction = re.match(r"(.{19})(?:\.(\d+))?", text).groups()
    whole = datetime.strptime(moment.replace(" ", "T"), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    return whole + float(f"0.{fraction or 0}")


def print_versions(program):
    def first_line(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]

    print(f"machine   {os.cpu_count()} cores, {first_line('uname', '-sr')}")
    print(f"kaai      {first_line(program, '--version')}: deploy FOLDER, asked through the router")
    print(f"by hand   {first_line('uv', '--version')}: uv run azmlinfsrv, stopped and started again, asked directly")


def report(rounds):
    ours, hand = [kaai["total"] for kaai, _ in rounds], [seconds for _, seconds in rounds]
    own = [kaai["total"] - kaai["parts"]["interpreter"] - kaai["parts"]["init"] for kaai, _ in rounds]
    ratio = statistics.median(our / its for our, its in zip(ours, hand))
    print(f"\none changed line until it answers, {len(rounds)} rounds\n{'':44}{'median ms':>10}{'range ms':>16}")
    for part, name in PARTS.items():
        row(f"  {name}", [kaai["parts"][part] for kaai, _ in rounds])
    row("kaai deploy", ours)
    row("  of it our own: without interpreter and init()", own)
    row("by hand", hand)
    return f"bench redeploy: own_ms={statistics.median(own) * 1000:.0f} ratio={ratio:.2f}"


def row(name, seconds):
    median, least, most = (value * 1000 for value in (statistics.median(seconds), min(seconds), max(seconds)))
    print(f"{name:44}{median:10.0f}{f'{least:.0f}–{most:.0f}':>16}")


if __name__ == "__main__":
    main()
