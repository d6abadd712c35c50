"""Serves one replica: the application of azureml-inference-server-http behind a unix socket.

Run by kaai's deployer with the interpreter of the service's own environment, Python 3.6 or newer.
The order is one line of JSON: `socket`, `status` and `heartbeat` (paths), `workers`, `timeout` (seconds without a sign of life),
and `mode` (who may use the socket; this user alone when it is null). It is in the file that the one argument names, or else it comes
on standard input. Standard input that ends without a line means that whoever started this process is gone: so are we.

Each step is written to the status file as one line of JSON, stamped with the monotonic clock.
The socket is bound at once and listened on when every worker has finished `init()`: until then a connection is refused.
A worker that ends unasked ends the whole replica, after the other workers have answered what they have in hand.
"""

import json
import os
import signal
import sys
import time
import traceback

FAILED = 3  # what gunicorn and azmlinfsrv end with when the script cannot be served
DETAIL_LINES = 50
DETAIL_CHARS = 500


class Status:
    """The status file; a line is written at once, so lines of several workers do not mix."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def say(self, event, **facts):
        line = json.dumps(dict(facts, event=event, at=time.monotonic(), pid=os.getpid()))
        os.write(self.file, line.encode() + b"\n")


def main():
    if len(sys.argv) > 1:
        with open(sys.argv[1]) as file:
            line = file.readline()
    else:
        line = sys.stdin.readline()
    if not line:
        return 0
    order = json.loads(line)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    # As gunicorn does it for azmlinfsrv: the working folder, which is the app root, comes first.
    sys.path[0] = os.getcwd()
    status = Status(order["status"])
    status.say("started")
    listener = bind(order["socket"], order.get("mode"))
    if order["workers"] == 1:
        return serve(order, status, listener, lone=True, when_loaded=lambda: listen(listener, status))
    return Workers(order, status, listener).run()


def bind(path, mode):
    import socket

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o077 if mode is None else 0o777 & ~mode)
    listener.bind(path)
    os.umask(before)
    return listener


def listen(listener, status):
    listener.listen(2048)
    status.say("serving")


def load(order, status):
    """Imports the server, which imports the script and calls its `init()`; tells how each of these went."""
    ignore_foreign_settings(os.path.dirname(order["status"]))
    try:
        from azureml_inference_server_http import __version__
        from azureml_inference_server_http.server import user_script
    except BaseException as error:
        status.say("failed", phase="server", **describe(error))
        traceback.print_exc()
        sys.exit(FAILED)
    if os.environ.get("SERVER_VERSION_LOG_RESPONSE_ENABLED", "true").lower() == "true":
        os.environ["HTTP_X_MS_SERVER_VERSION"] = "azmlinfsrv/" + __version__
    watch_script(user_script.UserScript, user_script.UserScriptError, status)
    try:
        from azureml_inference_server_http.server.entry import app
    except SystemExit:
        raise
    except BaseException as error:
        status.say("failed", phase="server", **describe(error))
        traceback.print_exc()
        sys.exit(FAILED)
    status.say("loaded")
    return app


def ignore_foreign_settings(folder):
    """The server takes any `config.json` beside the script for settings of its own, and fails if that is no JSON object."""
    if "AZUREML_CONFIG_FILE" in os.environ:
        return
    script = os.path.dirname(os.path.abspath(os.environ.get("AZUREML_ENTRY_SCRIPT", "")))
    for path in (os.path.join(os.getcwd(), "config.json"), os.path.join(script, "config.json")):
        try:
            with open(path) as file:
                usable = isinstance(json.load(file), dict)
        except OSError:
            continue
        except ValueError:
            usable = False
        if not usable:
            empty = os.path.join(folder, "config.json")
            with open(empty, "w") as file:
                file.write("{}")
            os.environ["AZUREML_CONFIG_FILE"] = empty
            return


def watch_script(UserScript, UserScriptError, status):
    load_script, invoke_init = UserScript.load_script, UserScript.invoke_init

    def watched(phase, step):
        def call(self, *arguments):
            status.say(phase)
            try:
                step(self, *arguments)
            except UserScriptError as error:
                status.say("failed", phase=phase, **describe(getattr(error, "user_ex", error)))
                raise

        return call

    UserScript.load_script = watched("import", load_script)
    UserScript.invoke_init = watched("init", invoke_init)


def describe(error):
    """What went wrong, and where in the user's own files."""
    root = os.getcwd() + os.sep
    told = traceback.TracebackException.from_exception(error)
    ours = [frame for frame in told.stack if not is_machinery(frame.filename)]
    own = [frame for frame in ours if frame.filename.startswith(root) and "site-packages" not in frame.filename]
    where = own[-1] if own else None
    file, line = (where.filename, where.lineno) if where else (None, None)
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    told.stack[:] = ours
    text = "".join(told.format()).replace(root, "")
    return {
        "kind": type(error).__name__,
        "message": clip(str(error)),
        "module": error.name if isinstance(error, ImportError) else None,
        "file": file.replace(root, "") if file else None,
        "line": line,
        "traceback": [clip(line) for line in text.splitlines()[-DETAIL_LINES:]],
    }


def is_machinery(path):
    return path.startswith("<frozen ") or "azureml_inference_server_http" in path or path == os.path.abspath(__file__)


def clip(text):
    return text[:DETAIL_CHARS]


def serve(order, status, listener, lone, when_loaded):
    """Loads the application and answers requests one at a time on the main thread, where a scoring timeout works."""
    try:
        from gunicorn.app.base import BaseApplication
        from gunicorn.workers.sync import SyncWorker
    except ImportError as error:
        status.say("failed", phase="server", **describe(error))
        raise
    heartbeat = os.open(order["heartbeat"], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    class Application(BaseApplication):
        def load_config(self):
            self.cfg.set("timeout", order["timeout"])
            self.cfg.set("post_worker_init", lambda worker: when_loaded())

        def load(self):
            return preloaded or load(order, status)

    class Worker(SyncWorker):
        def notify(self):
            # Monotonic, as gunicorn's own heartbeat: a machine that slept has not lost its workers.
            now = time.monotonic()
            os.utime(heartbeat, (now, now))

        def is_parent_alive(self):
            # A lone worker outlives a deployer that is killed; the next one adopts it.
            return lone or super().is_parent_alive()

    application = Application()
    log = application.cfg.logger_class(application.cfg)
    worker = Worker(1, os.getppid(), [listener], application, order["timeout"] / 2.0, application.cfg, log)
    worker.pid = os.getpid()
    worker.init_process()
    return 0


preloaded = None


class Workers:
    """Several workers on one socket, and nothing else: no worker is started anew in the place of one that ended."""

    def __init__(self, order, status, listener):
        self.order, self.status, self.listener = order, status, listener
        self.pids, self.stopping = set(), False
        # What the workers wait for the end of, once each has loaded.
        self.go = None

    def run(self):
        global preloaded
        if os.environ.get("WORKER_PRELOAD", "").lower() == "true":
            preloaded = load(self.order, self.status)
        loaded, tell_loaded = os.pipe()
        go, self.go = os.pipe()
        for number in range(self.order["workers"]):
            pid = os.fork()
            if pid == 0:
                os.close(loaded)
                os.close(self.go)
                return self.work(number, tell_loaded, go)
            self.pids.add(pid)
        os.close(tell_loaded)
        os.close(go)
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A pipe that ends before each has written means that one has ended.
        if all(os.read(loaded, 1) for _ in range(self.order["workers"])):
            listen(self.listener, self.status)
            self.let_go()
        return self.wait()

    def let_go(self):
        """Sends the workers on: to serve, or, when they have been told to stop, to their end."""
        if self.go is not None:
            os.close(self.go)
            self.go = None

    def work(self, number, tell_loaded, go):
        order = dict(self.order, heartbeat="%s.%d" % (self.order["heartbeat"], number))

        def when_loaded():
            os.write(tell_loaded, b".")
            os.close(tell_loaded)
            os.read(go, 1)

        return serve(order, self.status, self.listener, lone=False, when_loaded=when_loaded)

    def wait(self):
        """Waits for all; the first to end unasked decides with what code the replica ends."""
        code = 0
        while self.pids:
            pid, status = os.wait()
            if pid not in self.pids:
                continue
            self.pids.discard(pid)
            if not self.stopping:
                code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status) or 1
                self.status.say("ending", code=code)
                self.refuse()
                self.stop()
        return code

    def refuse(self):
        """Lets nobody connect any more."""
        try:
            os.unlink(self.order["socket"])
        except OSError:
            # The folder is not ours to write in. The socket is: it is shut for all workers, which are about to end.
            self.listener.shutdown(2)

    def stop(self):
        self.stopping = True
        for pid in self.pids:
            os.kill(pid, signal.SIGTERM)
        # One that waits for the others would not look at the signal before it goes on.
        self.let_go()


if __name__ == "__main__":
    sys.exit(main())
