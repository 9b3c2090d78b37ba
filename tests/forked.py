# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Python commands in processes of their own that begin where the imports are done.

Importing torch and transformers takes five seconds of a core: tests that start twenty processes would do little else.
They are forked from a server that has imported both, and end as every interpreter does.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hf_mae.pretraining.command", "hf_mae.pretraining.run", "torch._dynamo"])


class ForkedPython:
    """`python arguments ...`, with what tests need of `subprocess.Popen`.

    Args:
        *arguments: Path of a script, or `-m` and the name of a module, and what it is given.
        environment: The environment variables. Those that are read when a library is imported have no effect.
        start_new_session: Whether the process leads a process group of its own.
        start_method: How it starts processes itself; default: that of Python.
    """

    def __init__(self, *arguments, environment, start_new_session=False, start_method=None):
        self.printed = [tempfile.NamedTemporaryFile("r", errors="replace") for _ in range(2)]  # noqa: SIM115
        printed = [file.name for file in self.printed]
        arguments = (list(map(str, arguments)), dict(environment), printed, start_new_session, start_method)
        self.process = CONTEXT.Process(target=_become, args=arguments)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def kill(self):
        self.process.kill()

    def send_signal(self, number):
        os.kill(self.pid, number)

    def communicate(self, timeout=None):
        """Waits for the end and returns what was printed to the standard output and to the standard error."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return tuple(file.read() for file in self.printed)


def _become(arguments, environment, printed, start_new_session, start_method):
    for descriptor, path in zip((1, 2), printed, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    if start_new_session:
        os.setsid()
    multiprocessing.set_start_method(start_method, force=True)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments[1:] if arguments[0] == "-m" else arguments
    try:
        if arguments[0] == "-m":
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
