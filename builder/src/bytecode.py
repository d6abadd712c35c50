"""Compiles the modules of an environment with the environment's own Python, on all cores.

    PYTHONHASHSEED=0 python -S -W ignore -c "$(cat bytecode.py)" FOLDER HOME [KEPT]

FOLDER is compiled for running at HOME. With KEPT, a folder, the result depends on the sources alone, and what was compiled before is
taken from there; without, a module whose source changes is compiled again, as Python does by itself. Prints a line for each of its
processes: how many modules were compiled, taken, and left as they are because this Python cannot compile them.
"""

import hashlib
import importlib.util
import marshal
import os
import py_compile
import sys

# Half of a large package, and nobody imports them but whoever develops it.
TESTS = {"test", "tests"}
# For another version of Python, or a template: whoever imports it hears of it. All else is no affair of the module.
NOT_COMPILED = (SyntaxError, ValueError, RecursionError, OverflowError, py_compile.PyCompileError)
MOST_PROCESSES = 8


def modules(folder):
    """All modules of a folder but packages' own tests, the largest first: it would hold up the others at the end."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in TESTS and name != "__pycache__"]
        for path in (os.path.join(parent, name) for name in files if name.endswith(".py")):
            # A link may lead to anywhere.
            if not os.path.islink(path):
                found.append((-os.path.getsize(path), path))
    return [path for _, path in sorted(found)]


def compile_or_take(path, name, kept):
    """Whether it was taken."""
    with open(path, "rb") as file:
        source = file.read()
    # Two releases of one minor may compile differently.
    key = hashlib.sha256(b"\0".join([sys.version.encode(), name.encode(), source])).hexdigest()
    target, known = importlib.util.cache_from_source(path), os.path.join(kept, key[:2], key + ".pyc")
    if os.path.lexists(target):
        os.unlink(target)  # The package has brought it, compiled for a place and a time of its own.
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(known, target)
        taken = True
    except OSError:
        taken = False
    if taken:
        try:
            os.utime(known)  # What is used stays: the oldest are taken away.
        except OSError:
            pass
        return True
    code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
    # As PEP 552 has it: its flags say that it has a hash, which nobody need check.
    content = importlib.util.MAGIC_NUMBER + b"\1\0\0\0" + importlib.util.source_hash(source) + code
    # Whole or not at all: a half is imported as well, and fails there.
    new = "%s.%d" % (target, os.getpid())
    with open(new, "wb") as file:
        file.write(content)
    os.replace(new, target)
    try:
        os.makedirs(os.path.dirname(known), exist_ok=True)
        os.link(target, known)
    except OSError:
        pass  # It is compiled again the next time.
    return False


def work(paths, folder, home, kept):
    compiled = taken = left = 0
    for path in paths:
        name = os.path.join(home, os.path.relpath(path, folder))
        cache = os.path.join(os.path.dirname(path), "__pycache__")
        if os.path.islink(cache):
            os.unlink(cache)  # It may lead to anywhere.
        try:
            if kept is None:
                py_compile.compile(path, dfile=name, doraise=True)
            elif compile_or_take(path, name, kept):
                taken += 1
                continue
            compiled += 1
        except NOT_COMPILED:
            left += 1
    os.write(1, b"%d %d %d\n" % (compiled, taken, left))


def main(folder, home, kept=None):
    if kept is not None and sys.version_info < (3, 7):
        print("Python 3.6 has no bytecode that names no time", file=sys.stderr)
        return 0
    paths, count = modules(folder), min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    children = []
    for part in range(count):
        child = os.fork()
        if child == 0:
            try:
                work(paths[part::count], folder, home, kept)
                os._exit(0)
            except Exception as error:
                print("%s: %s" % (type(error).__name__, error), file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        children.append(child)
    return max(os.waitpid(child, 0)[1] for child in children) and 1


sys.exit(main(*sys.argv[1:]))
