"""The binary: where it is, how it is run, and what its errors become."""

from __future__ import annotations

import collections
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

log = logging.getLogger("loam")

# How long the binary may take to put things in order once it is told to end.
END_SECONDS = 10.0

# Lines of what the binary says that are kept for an error.
SAID_MAX = 200


class LoamError(Exception):
    """Something that loam refused or could not do. Its text says what and, where there is one, the remedy.

    exit_code is the binary's: 1 where something failed, 2 where it did not understand the command line, which a binary of
    another version may not; None where it was not the binary that refused. command is what was run.
    """

    def __init__(self, message: str, *, exit_code: int | None = None, command: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.command = tuple(command)


class BinaryNotFoundError(LoamError):
    """There is no binary to run."""


def find(given: str | os.PathLike[str] | None) -> Path:
    """Finds the binary: the one given, else that of LOAM_BINARY, else `loam` on PATH."""
    for where, path in (("binary", given), ("LOAM_BINARY", os.environ.get("LOAM_BINARY"))):
        if path:
            found = shutil.which(os.path.abspath(os.path.expanduser(path)))
            if found is None:
                raise BinaryNotFoundError(f"{where} names {os.fspath(path)}, and there is no program; {REMEDY}")
            return Path(found)
    found = shutil.which("loam")
    if found is None:
        raise BinaryNotFoundError(f"there is no binary `loam` on PATH; {REMEDY}")
    return Path(found).absolute()


REMEDY = "build it with `make build` in loam's repository, then set LOAM_BINARY to its bin/loam or put that folder on PATH"


def run(binary: Path, arguments: Sequence[str]) -> bytes:
    """Runs the binary and returns what it printed. What it says meanwhile goes to the logger `loam`.

    Whatever ends the wait, such as KeyboardInterrupt, ends the binary too: it is told to end, and killed only if it doesn't.
    """
    command = [str(binary), *arguments]
    log.debug("run %s", command)
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="loam") as threads:
        # Begun in a thread, since an interrupt comes to the main one: none can be between the start and who knows of it.
        begun = threads.submit(_begin, command)
        try:
            child = begun.result()
            said = threads.submit(_listen, child.stderr)
            printed: bytes = threads.submit(child.stdout.read).result()
            code = child.wait()
        except OSError as e:
            raise BinaryNotFoundError(f"run {binary}: {e.strerror}; {REMEDY}") from e
        except BaseException:
            _end(begun.result())
            raise
        lines = said.result()
    child.stdout.close()
    child.stderr.close()
    if code != 0:
        raise LoamError(_message(lines, code), exit_code=code, command=command)
    return printed


class _Child(subprocess.Popen[bytes]):
    """The binary, both of whose outputs are read."""

    stdout: IO[bytes]
    stderr: IO[bytes]


def _begin(command: list[str]) -> _Child:
    # In a session of its own: an interrupt from the terminal would reach it beside ours, and a second one ends it at once.
    pipe = subprocess.PIPE
    return _Child(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True)


def _listen(stream: IO[bytes]) -> list[str]:
    """Logs what the binary says, and returns the last lines of it."""
    said: collections.deque[str] = collections.deque(maxlen=SAID_MAX)
    for line in stream:
        text = line.decode(errors="replace").rstrip()
        said.append(text)
        log.info("%s", text)
    return list(said)


def _end(child: _Child) -> None:
    child.terminate()
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _message(lines: list[str], code: int) -> str:
    """The error among what the binary said: from the last line that begins as its errors do, without the usage."""
    for first in range(len(lines) - 1, -1, -1):
        if lines[first].startswith("loam: "):
            error = [lines[first].removeprefix("loam: "), *lines[first + 1 :]]
            return "\n".join(line for line in error if not line.startswith("usage: "))
    if code < 0:
        return f"the binary was ended by signal {-code}"
    return "\n".join(lines) or f"the binary ended with {code} and said nothing"
