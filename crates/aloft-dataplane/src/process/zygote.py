"""The zygote of one Python environment: imports the SDK once and forks a process for each task.

usage: zygote.py SOCKET SCRIPT

SCRIPT is the environment's `a0`. A forked process runs that very script as `__main__`, so that a task cannot tell a warm
start from a cold one; whatever would make a difference is answered with "cold", and the shim then starts the script itself.

A shim connects, sends three file descriptors (its stdin, stdout and stderr for the task) with a frame of JSON
{"args", "env", "cwd"}, and is answered in lines of JSON: {"pid"} once a process is ready to run the task, or {"cold": why}.
After its "G" the task runs, and when it has ended {"exit"} or {"signal"} follows. The ended process is collected only when
the shim closes its connection, so that its number stays its own while the shim may still signal it. A shim that goes away
takes its task with it.

On stdout it says "ready" and the directory of the installed packages, or "refused" and why.
stdin is Aloft's end of a pipe: when it closes, no new tasks are taken, and the zygote ends with its last task.
"""

import atexit
import gc
import json
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import types

# What the interpreter or a C library reads at its start. A task that sets one of these otherwise than it was when this
# process started must have an interpreter of its own.
AT_START_PREFIXES = ("PYTHON", "LD_", "DYLD_", "MALLOC_", "GLIBC_", "LC_", "OPENSSL_", "GODEBUG")
AT_START_NAMES = {"LANG", "LANGUAGE", "HOME"}
# How much others go before tasks: as in system.rs.
NICE = 10
# Read while importing, and put right in each task below.
PUT_RIGHT = {"LOG_LEVEL", "USER_LOG_LEVEL", "TMPDIR", "TEMP", "TMP"}

# What a task imports on its way to user code. What is not there (another version of the SDK) is left out.
MODULES = """
flyte flyte._bin.runtime flyte._utils flyte._utils.asyncify flyte.errors flyte.git flyte._initialize
flyte.storage flyte.storage._storage flyte.io flyte.report flyte.remote flyte.types flyte.extend
flyte._internal.controllers flyte._internal.controllers.remote flyte._internal.controllers.remote._controller
flyte._internal.controllers.remote._core flyte._internal.controllers.remote._informer
flyte._internal.controllers.remote._client flyte._internal.controllers.remote._service_protocol
flyte._internal.image_cache flyte._internal.resolvers.default flyte._code_bundle flyte._code_bundle.bundle
flyte._internal.runtime.entrypoints flyte._internal.runtime.taskrunner flyte._internal.runtime.convert
flyte._internal.runtime.io flyte._internal.runtime.task_serde flyte._internal.runtime.types_serde
flyte._internal.runtime.resources_serde flyte._internal.runtime.reuse
flyte.remote._client.controlplane flyte.remote._client.auth._session flyte.remote._client.auth._keyring
flyte.remote._client.auth._interceptors.default_metadata flyte.remote._client.auth._interceptors.retry
flyte.remote._client.auth._authenticators.factory flyte.remote._client.auth._authenticators.external_command
flyteidl2.actions.actions_service_connect flyteidl2.workflow.queue_service_connect
flyteidl2.workflow.state_service_connect
obstore obstore.store obstore.fsspec fsspec.implementations.local pyqwest._glue
httpx httpcore httpcore._async httpcore._sync httpcore._backends.auto httpcore._backends.anyio h11 anyio certifi
opentelemetry.trace opentelemetry.propagate opentelemetry.metrics opentelemetry.baggage
docstring_parser flyte._docstring flyte.storage._parallel_reader aiofiles.os
html.parser faulthandler tarfile fcntl importlib.readers importlib.resources.readers asyncio.subprocess
""".split()


class Watched(os._Environ):
    """Remembers which environment variables are read."""

    reads = set()

    def __getitem__(self, key):
        Watched.reads.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        Watched.reads.add(key)
        return super().__contains__(key)


class Refused(Exception):
    """This environment cannot be forked."""


class Task:
    def __init__(self, connection):
        self.connection = connection
        self.buffer = b""
        self.fds = []
        self.pid = None
        self.go = None
        self.ended = False

    def send(self, message):
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # the shim is gone, which its end of file will say


class Zygote:
    def __init__(self, path, script):
        self.path = path
        self.script = script
        self.tasks = {}
        self.orphans = set()
        self.loops = []

    def preload(self):
        import importlib

        sys.path[0] = os.path.dirname(self.script)
        with open(self.script, "rb") as f:
            self.code = compile(f.read(), self.script, "exec")
        # A thread does not survive a fork, so none is started here; each task starts them anew.
        threads = []
        start = threading.Thread.start
        threading.Thread.start = lambda thread: threads.append(thread)
        os.environ.__class__ = Watched
        try:
            for name in MODULES:
                try:
                    importlib.import_module(name)
                except ImportError:
                    if name == "flyte._bin.runtime":
                        raise
            self.prepare()
        finally:
            os.environ.__class__ = os._Environ
            threading.Thread.start = start
        for thread in threads:
            owner = getattr(getattr(thread, "_target", None), "__self__", None)
            if type(owner).__name__ != "_BackgroundLoop" or not hasattr(owner, "loop") or owner.thread is not thread:
                raise Refused(f"importing the SDK starts the thread {thread.name!r}, which is not known here")
            owner.loop.close()
            self.loops.append(owner)
        if len(os.listdir("/proc/self/task")) != 1:
            raise Refused("importing the SDK starts threads")
        from flyte import _logging

        self.can_set_levels = hasattr(_logging, "_create_flyte_logger") and hasattr(_logging, "_create_user_logger")
        self.env = dict(os.environ)

    def prepare(self):
        """What every task computes on its way to user code, with the same result in each."""
        try:
            from flyte.remote._client.auth import _session

            _session._supports_system_certs()
        except (ImportError, AttributeError):
            pass  # another version of the SDK
        try:
            import docstring_parser

            # Its parsers compile their expressions when they are first used, which every task with a docstring does.
            docstring_parser.parse("What it does.")
        except Exception:
            pass
        try:
            from httpx._transports import default as transport

            create = transport.create_ssl_context
            # Reading the certificates of all authorities takes 20 ms, and the SDK makes two such clients before user code
            # runs. Each is handed out once, so no two clients share one.
            ready = [create(verify=True, cert=None, trust_env=True) for _ in range(3)]
        except Exception:
            return

        def take(*args, **kwargs):
            if ready and not args and kwargs == {"verify": True, "cert": None, "trust_env": True}:
                return ready.pop()
            return create(*args, **kwargs)

        transport.create_ssl_context = take

    def serve(self):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(1024)
        self.listener.setblocking(False)
        wake_r, wake_w = os.pipe()
        os.set_blocking(wake_r, False)
        os.set_blocking(wake_w, False)
        self.wake = (wake_r, wake_w)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        # Aloft's Ctrl-C and a closed terminal are for Aloft; its end reaches this process through the pipe.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, "listener")
        self.selector.register(wake_r, selectors.EVENT_READ, "wake")
        self.selector.register(0, selectors.EVENT_READ, "control")
        gc.collect()
        gc.freeze()
        gc.disable()
        import sysconfig

        os.write(1, f"ready {sysconfig.get_paths()['purelib']}\n".encode())
        os.dup2(2, 1)
        self.open = True
        while self.open or self.tasks or self.orphans:
            for key, _ in self.selector.select():
                if key.data == "listener":
                    self.accept()
                elif key.data == "wake":
                    self.collect()
                elif key.data == "control":
                    if not os.read(0, 4096):
                        self.close()
                else:
                    run = self.receive(key.data)
                    if run:
                        return run
        return None

    def close(self):
        self.open = False
        self.selector.unregister(0)
        self.selector.unregister(self.listener)
        self.listener.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass

    def accept(self):
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        task = Task(connection)
        self.tasks[connection.fileno()] = task
        self.selector.register(connection, selectors.EVENT_READ, task)

    def receive(self, task):
        try:
            if task.pid is None:
                data, fds, _, _ = socket.recv_fds(task.connection, 1 << 16, 4)
                task.fds += fds
            else:
                data = task.connection.recv(16)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self.drop(task)
            return None
        if task.pid is not None:
            if task.go is not None:
                os.write(task.go, b"G")
                os.close(task.go)
                task.go = None
            return None
        task.buffer += data
        if len(task.buffer) < 4 or len(task.buffer) < 4 + struct.unpack_from(">I", task.buffer)[0]:
            return None
        try:
            request = json.loads(task.buffer[4:])
            why = self.difference(request)
            if why is None and len(task.fds) != 3:
                why = "three file descriptors were expected"
            if why is None:
                return self.fork(task, request)
        except Exception as e:
            why = f"{type(e).__name__}: {e}"
        task.send({"cold": why})
        return None

    def difference(self, request):
        """Why a task with this environment would notice that its interpreter was not started for it."""
        env = request["env"]
        for name in env.keys() | self.env.keys():
            if env.get(name) == self.env.get(name) or name in PUT_RIGHT:
                continue
            if name in Watched.reads or name in AT_START_NAMES or name.startswith(AT_START_PREFIXES):
                return f"it sets {name}, which is read while the interpreter starts"
        for name in ("LOG_LEVEL", "USER_LOG_LEVEL"):
            value = env.get(name, "warning").lower()
            if not self.can_set_levels and name in env:
                return f"this version of the SDK takes {name} only while it is imported"
            # At this level the SDK wraps its functions while they are imported.
            if value == "debug" or (value.isdigit() and int(value) <= 10):
                return f"{name} asks for debug output"
        return None

    def fork(self, task, request):
        go_r, go_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go_w)
            try:
                return self.become(task, request, go_r)
            except BaseException as e:
                # Nothing of the task has run yet, so it can still be started cold.
                task.send({"cold": f"{type(e).__name__}: {e}"})
                os._exit(1)
        os.close(go_r)
        for fd in task.fds:
            os.close(fd)
        task.fds = []
        task.buffer = b""
        task.pid = pid
        task.go = go_w
        return None

    def collect(self):
        try:
            while len(os.read(self.wake[0], 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        for task in list(self.tasks.values()):
            if task.pid is None or task.ended:
                continue
            seen = os.waitid(os.P_PID, task.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if seen is not None:
                task.ended = True
                task.send({"exit" if seen.si_code == os.CLD_EXITED else "signal": seen.si_status})
        for pid in list(self.orphans):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.orphans.discard(pid)

    def drop(self, task):
        """The shim has closed its connection: it has seen the end, or is dead and its task must die with it."""
        self.selector.unregister(task.connection)
        del self.tasks[task.connection.fileno()]
        task.connection.close()
        for fd in task.fds:
            os.close(fd)
        if task.go is not None:
            os.close(task.go)
        if task.pid is None:
            return
        if task.ended:
            os.waitpid(task.pid, 0)
            return
        for kill in (os.killpg, os.kill):
            try:
                kill(task.pid, signal.SIGKILL)
            except OSError:
                pass
        self.orphans.add(task.pid)

    def become(self, task, request, go_r):
        """In the forked process: become what a fresh interpreter would be."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        fds = task.fds
        self.selector.close()
        self.listener.close()
        for fd in self.wake:
            os.close(fd)
        for other in self.tasks.values():
            if other is not task:
                other.connection.close()
                for fd in other.fds:
                    os.close(fd)
            if other.go is not None:
                os.close(other.go)
        for wanted, fd in enumerate(fds):
            os.dup2(fd, wanted)
            os.close(fd)
        # As a task that is started cold does: `give_way` and its like in system.rs.
        os.nice(NICE)
        marks = (
            ("/proc/self/oom_score_adj", "500"),
            ("/proc/self/autogroup", str(NICE)),
            ("/proc/self/comm", os.path.basename(self.script)),
        )
        for path, text in marks:
            try:
                with open(path, "w") as f:
                    f.write(text)
            except OSError:
                pass
        os.chdir(request["cwd"])
        env = request["env"]
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        if "tempfile" in sys.modules:
            sys.modules["tempfile"].tempdir = None
        if any(name.startswith("FSSPEC_") for name in env):
            from fsspec import config

            config.set_conf_env(config.conf)
        if any(env.get(name) != self.env.get(name) for name in ("LOG_LEVEL", "USER_LOG_LEVEL")):
            self.set_levels()
        if self.loops:
            import asyncio

            for owner in self.loops:
                owner.loop = asyncio.new_event_loop()
                owner.thread.start()
        gc.enable()
        task.send({"pid": os.getpid()})
        task.connection.close()
        if not os.read(go_r, 1):
            os._exit(0)
        os.close(go_r)
        sys.argv = [self.script, *request["args"]]
        sys.orig_argv = [sys.executable, *sys.argv]
        return self.run

    def set_levels(self):
        import logging

        from flyte import _logging

        for name, create in (("flyte", "_create_flyte_logger"), ("flyte.user", "_create_user_logger")):
            logging.getLogger(name).handlers.clear()
            getattr(_logging, create)()

    def run(self):
        import builtins

        main = types.ModuleType("__main__")
        main.__dict__.update(__file__=self.script, __builtins__=builtins, __cached__=None)
        sys.modules["__main__"] = main
        exec(self.code, main.__dict__)


def finish(run):
    """Runs a task and ends the process as the interpreter would, but without taking every module apart."""
    code = 0
    try:
        run()
    except SystemExit as e:
        code = e.code
        if code is None:
            code = 0
        elif not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as e:
        trace = e.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        e.__traceback__ = trace
        try:
            sys.excepthook(type(e), e, trace)
        except BaseException:
            traceback.print_exc()
        code = 1
        if isinstance(e, KeyboardInterrupt):
            code = -signal.SIGINT
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            code = code or 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def start():
    # What Aloft was started with and handed down unknowingly.
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    zygote = Zygote(sys.argv[1], sys.argv[2])
    try:
        zygote.preload()
        run = zygote.serve()
    except BaseException as e:
        traceback.print_exc()
        try:
            os.write(1, f"refused {type(e).__name__}: {e}\n".encode())
        except OSError:
            pass
        os._exit(1)
    if run is None:
        os._exit(0)
    return run


if __name__ == "__main__":
    finish(start())
