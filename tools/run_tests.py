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

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    environment = dict(os.environ)
    # What tests install stays in the project's folder, and is there the next time.
    environment.setdefault("UV_CACHE_DIR", str(ROOT / ".tools" / "uv-cache"))
    if sys.stdout.isatty():
        environment.setdefault("CARGO_TERM_COLOR", "always")
    which = sys.argv[1:] or ["--workspace"]
    # Tests of images, of the compose stack and of object stores stand on them; where they cannot be had the tests say that they are left out.
    for tool in ("base_image.py", "compose.py", "stores.py"):
        subprocess.run([sys.executable, str(ROOT / "tools" / tool)], check=False)
    # Some tests start the programs themselves: they must not be older than what is tested.
    if built := subprocess.run(["cargo", "build", "--workspace", "--bins"], cwd=ROOT, env=environment, check=False).returncode:
        return built
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
    status = run.wait()
    print(f"\ntests        {passed} passed, {failed} failed, {len(left_out)} left out", flush=True)
    for reason in left_out:
        print(f"  {reason}")
    return status


if __name__ == "__main__":
    sys.exit(main())
