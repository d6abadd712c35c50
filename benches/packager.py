#!/usr/bin/env python3
"""Packaging a folder: kaai beside zip, git archive and Python's shutil.make_archive.

Two trees are made in a temporary folder: 10,000 small files in nested folders, and a few large ones (400 MB).
Every tool packages each tree once to warm up and then once a round, in turn, so that what the machine does
meanwhile meets all of them alike. A figure is a median with its range; a ratio is paired within a round.
Peers run with their own defaults, which for all of them is deflate at zlib's level 6.

    python3 benches/packager.py                    # $KAAI or target/release/kaai
    python3 benches/packager.py --rounds 3 --keep  # quicker, and leaves the trees
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL_FILES = 10_000
SEED = 20260630


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds after the warm-up (default 7)")
    parser.add_argument("--keep", action="store_true", help="leave the trees where they are and say where")
    parser.add_argument("--make", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make_trees(Path(args.make))
    kaai = Path(os.environ.get("KAAI", REPOSITORY / "target" / "release" / "kaai")).resolve()
    if not kaai.exists():
        sys.exit(f"{kaai} is not there: build it first (cargo build --release), or name it in $KAAI")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that the trees go then too
    folder = Path(tempfile.mkdtemp(prefix="kaai-bench-"))
    runner = Runner()
    try:
        subprocess.run([sys.executable, __file__, "--make", str(folder)], check=True)
        print_versions(kaai)
        results = {
            tree: measure(runner, folder, tree, tools(kaai, folder / tree), args.rounds) for tree in ("small", "large")
        }
    finally:
        runner.close()
        if args.keep:
            print(f"trees: {folder}")
        else:
            shutil.rmtree(folder)
    print(summary(results))


# The trees


def make_trees(folder):
    small, large = folder / "small", folder / "large"
    chance = random.Random(SEED)
    words = [bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz_", k=chance.randint(2, 11))) for _ in range(3000)]
    made = set()
    for n in range(SMALL_FILES):
        place = small / f"package{n % 23}" / f"module{n % 211}" / f"part{n % 5}"
        if place not in made:
            place.mkdir(parents=True)
            made.add(place)
        length = int(2 ** chance.uniform(7, 15))  # 128 B to 32 KiB, most of them short
        binary = n % 5 == 0
        content = chance.randbytes(length) if binary else text(chance, words, length)
        (place / f"file{n}{'.bin' if binary else '.py'}").write_bytes(content)
    large.mkdir()
    table = text(chance, words, 4_000_000)
    numbers = b"".join(b"%d,%.4f,%.4f\n" % (n, chance.gauss(0, 1), chance.gauss(5, 2)) for n in range(200_000))
    write_repeated(large / "corpus.txt", table, 120_000_000)
    write_repeated(large / "table.csv", numbers, 100_000_000)
    for n in range(3):
        with open(large / f"weights{n}.bin", "wb") as file:
            for _ in range(60):
                file.write(chance.randbytes(1_000_000))
    for tree in (small, large):
        commit(tree)


def text(chance, words, length):
    """Lines of words, which compress about as source code does."""
    out = bytearray()
    while len(out) < length:
        out += b"    " * chance.randint(0, 3) + b" ".join(chance.choices(words, k=chance.randint(1, 9))) + b"\n"
    return bytes(out[:length])


def write_repeated(path, block, length):
    """Deflate looks back 32 KiB: a block of megabytes may repeat and compresses no better for it."""
    with open(path, "wb") as file:
        while (rest := length - file.tell()) > 0:
            file.write(block[:rest])


def commit(tree):
    """`git archive` reads a commit, not a folder; the other tools are told to leave out `.git`, as they would be."""
    git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.com", "-c", "gc.auto=0"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "tree"]):
        subprocess.run([*git, *command], cwd=tree, check=True)
    (tree / ".git").rename(tree.parent / f"{tree.name}.git")


# The tools


def tools(kaai, tree):
    """Name: (command, output, working folder)."""
    out = tree.parent
    shutil_call = f"import shutil; shutil.make_archive({str(out / 'shutil')!r}, 'zip', {str(tree)!r})"
    repository = ["git", f"--git-dir={tree}.git"]
    command = [str(kaai), "package", "--max-project-size", "1024"]  # v1's limit of 300 MiB is the default
    return {
        "kaai package": ([*command, str(tree), str(out / "kaai.zip")], out / "kaai.zip", out),
        "zip -qr": (["zip", "-qr", str(out / "zip.zip"), "."], out / "zip.zip", tree),
        "git archive": (
            [*repository, "archive", "--format=zip", "-o", str(out / "git.zip"), "HEAD"], out / "git.zip", out,
        ),
        "shutil.make_archive": ([sys.executable, "-c", shutil_call], out / "shutil.zip", out),
    }


def print_versions(kaai):
    def first_line(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        return lines[0] if done.returncode == 0 and lines else "version unknown"

    zip_version = subprocess.run(["zip", "-v"], capture_output=True, text=True).stdout.splitlines()[1]
    print(f"machine   {os.cpu_count()} cores, {first_line('uname', '-sr')}")
    print(f"kaai      {first_line(str(kaai), '--version')}: package --max-project-size 1024 FOLDER ZIP")
    print(f"zip       {zip_version.split('.  ')[0]}: -qr")
    print(f"git       {first_line('git', '--version')}: archive --format=zip, from loose objects")
    print(f"python    {sys.version.split()[0]}: shutil.make_archive(format='zip')")


# The measurement


RUNNER = """
import json, os, sys, time
for line in sys.stdin:
    command, cwd = json.loads(line)
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.chdir(cwd)
        os.execvp(command[0], command)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    print(json.dumps([os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss / 1024]), flush=True)
"""


class Runner:
    """Starts the tools from a small process: on Linux a child's peak memory begins with what its parent had in use."""

    def __init__(self):
        command = [sys.executable, "-I", "-S", "-c", RUNNER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, command, output, cwd):
        """Seconds of wall time and peak resident megabytes of one run."""
        output.unlink(missing_ok=True)
        print(json.dumps([command, str(cwd)]), file=self.process.stdin, flush=True)
        code, seconds, peak = json.loads(self.process.stdout.readline())
        if code != 0:
            sys.exit(f"{' '.join(command)} ended with {code}")
        return seconds, peak

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(runner, folder, tree, commands, rounds):
    files = {path.relative_to(folder / tree).as_posix() for path in (folder / tree).rglob("*") if path.is_file()}
    for name, (command, output, cwd) in commands.items():
        runner.run(command, output, cwd)
        found = {entry for entry in zipfile.ZipFile(output).namelist() if not entry.endswith("/")}
        if found != files:
            sys.exit(f"{name} packaged {len(found)} files of {len(files)}")
    samples = {name: [] for name in commands}
    for _ in range(rounds):
        for name, (command, output, cwd) in commands.items():
            samples[name].append(runner.run(command, output, cwd))
    total = sum(path.stat().st_size for path in (folder / tree).rglob("*") if path.is_file())
    print(f"\n{tree}: {len(files)} files, {total / 1e6:.0f} MB, {rounds} rounds")
    print(f"{'':22}{'median s':>10}{'range s':>18}{'peak MB':>10}{'zip MB':>10}{'kaai ÷ it':>12}")
    ours = [seconds for seconds, _ in samples["kaai package"]]
    for name, (_, output, _) in commands.items():
        seconds = [second for second, _ in samples[name]]
        ratio = statistics.median(our / its for our, its in zip(ours, seconds))
        print(
            f"{name:22}{statistics.median(seconds):>10.3f}{min(seconds):>9.3f} –{max(seconds):>7.3f}"
            f"{max(peak for _, peak in samples[name]):>10.1f}{output.stat().st_size / 1e6:>10.1f}{ratio:>12.2f}"
        )
    return samples


def summary(results):
    def ratio(samples):
        ours = [seconds for seconds, _ in samples["kaai package"]]
        medians = {name: statistics.median(s for s, _ in runs) for name, runs in samples.items()}
        peer = min((name for name in samples if name != "kaai package"), key=medians.get)
        return statistics.median(our / its for our, (its, _) in zip(ours, samples[peer]))

    peak = max(peak for samples in results.values() for _, peak in samples["kaai package"])
    small, large = ratio(results["small"]), ratio(results["large"])
    return f"bench packager: small_ratio={small:.2f} large_ratio={large:.2f} peak_mb={peak:.1f}"


if __name__ == "__main__":
    main()
