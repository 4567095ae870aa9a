"""Processes forked from a server that has imported everything: each starts in an instant."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

import pytest


@cache
def server() -> ForkServerContext:
    """What starts processes, by forking a server that has imported `preloaded`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:  # the server's own path is not that of this process
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


def fork(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start ``work(*arguments)`` in a process that ends with this one, if not before."""
    process = server().Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def _main(
    work: Callable[..., int],
    arguments: Sequence[str],
    cwd: Path,
    environment: dict[str, str],
    streams: Sequence[Connection],
    file_bytes: int | None,
) -> None:
    """As if an interpreter had just been started for this."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    code = work(*arguments)
    sys.stdout.flush()
    os._exit(code)


class Child:
    """``work(*arguments)`` in a process of its own; used like `subprocess.Popen`.

    Parameters
    ----------
    work : callable
        Of a module, with words as arguments; its result is the exit code.
    cwd : Path
        Its working folder.
    stream : int, optional
        A file, such as a terminal, for its input and both outputs, which are pipes otherwise.
    file_bytes : int, optional
        No file can be larger than this.
    """

    def __init__(
        self,
        work: Callable[..., int],
        *arguments: object,
        cwd: Path,
        stream: int | None = None,
        file_bytes: int | None = None,
    ) -> None:
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        if stream is None:
            ours, theirs = zip(os.pipe(), os.pipe(), strict=True)
            self.stdout, self.stderr = (os.fdopen(end) for end in ours)
            streams = [os.open(os.devnull, os.O_RDONLY), *theirs]
        else:
            streams = [os.dup(stream) for _ in range(3)]
        ends = [Connection(end) for end in streams]  # which is what can be sent to the server
        words = [str(word) for word in arguments]
        self._process = fork(_main, work, words, cwd, dict(os.environ), ends, file_bytes)
        for end in ends:
            end.close()
        assert self._process.pid
        self.pid = self._process.pid

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: Any) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or the negative number of the signal that ended it."""
        self._process.join(timeout)
        assert self.returncode is not None, f"it still runs after {timeout} s"
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it writes until it ends."""
        assert self.stdout
        assert self.stderr
        with ThreadPoolExecutor(2) as readers:
            reading = [readers.submit(stream.read) for stream in (self.stdout, self.stderr)]
            out, err = (one.result(timeout) for one in reading)
        self.wait(timeout)
        self.stdout.close()
        self.stderr.close()
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
