#!/usr/bin/env python3
"""Runs every test of the workspace, and says at the end what was left out for want of what.

A test that cannot run on this machine says `LEFT OUT <test>: <reason>`; with KAAI_REQUIRE_ALL=1 (CI) it fails instead.
Cargo shows what a passing test printed only if it is asked to, so it is asked, and all but those lines is left out here.
Arguments are handed on to cargo: `python3 tools/run_tests.py --package scaler`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import build_conda

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    environment = dict(os.environ)
    # What tests install stays in the project's folder, and is there the next time.
    environment.setdefault("UV_CACHE_DIR", str(ROOT / ".tools" / "uv-cache"))
    if sys.stdout.isatty():
        environment.setdefault("CARGO_TERM_COLOR", "always")
    which = sys.argv[1:] or ["--workspace"]
    # Tests of images, of the compose stack, of object stores and of conda packages stand on them; where they cannot be had the tests say
    # that they are left out.
    for tool in ("base_image.py", "compose.py", "stores.py", "conda_channel.py"):
        subprocess.run([sys.executable, str(ROOT / "tools" / tool)], check=False)
    # An old program would be tested; one that was never built is left out.
    if (build_conda.BIN / build_conda.NAME).exists() and (built := build_conda.main()):
        return built
    # Some tests start the programs themselves: they must not be older than what is tested.
    if built := subprocess.run(["cargo", "build", "--workspace", "--bins"], cwd=ROOT, env=environment, check=False).returncode:
        return built
    status, (passed, failed, left_out) = tests(which, environment)
    if not sys.argv[1:]:
        more, counts = conda(environment)
        status = status or more
        passed, failed, left_out = passed + counts[0], failed + counts[1], left_out + counts[2]
    print(f"\ntests        {passed} passed, {failed} failed, {len(left_out)} left out", flush=True)
    for reason in left_out:
        print(f"  {reason}")
    return status


def conda(environment: dict):
    """The tests of kaai-conda itself, which is built only by whoever wants it."""
    if (build_conda.BIN / build_conda.NAME).exists():
        return tests(build_conda.CARGO, environment)
    reason = "LEFT OUT the tests of kaai-conda: it was not built; run `make conda`"
    return int(environment.get("KAAI_REQUIRE_ALL") == "1"), (0, 0, [reason])


def tests(which: list, environment: dict):
    """Runs tests and shows what fails: the status of cargo, and how many passed, failed and were left out."""
    run = subprocess.Popen(
        ["cargo", "test", "--no-fail-fast", *which, "--", "--show-output"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    passed = failed = 0
    left_out, shown = [], True
    for line in run.stdout:
        left_out += re.findall(r"LEFT OUT .*", line)
        if line.rstrip() == "successes:":
            shown = False
        elif line.rstrip() == "failures:" or line.startswith("test result:"):
            shown = True
        if shown:
            print(line, end="", flush=True)
        if counts := re.match(r"test result: .*?(\d+) passed; (\d+) failed", line):
            passed, failed = passed + int(counts[1]), failed + int(counts[2])
    return run.wait(), (passed, failed, left_out)


if __name__ == "__main__":
    sys.exit(main())
