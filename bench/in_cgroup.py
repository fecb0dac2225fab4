"""Run a command in a fresh memory cgroup: a small machine inside a large one.

    python bench/in_cgroup.py --memory 600MB -- penjing run MODEL.gguf "Name three rivers."
    python bench/in_cgroup.py --memory 600MB --drop MODEL.gguf -- penjing run --allow-disk MODEL.gguf "Hi"

Prints the peak usage on stderr and returns the command's exit code (128 + signal when a signal ended it).
All that the command started is killed at the end, and the group is removed, on Ctrl-C too. There is no swap.

A page of a file is charged to the group that reads it first, and is free for all others while it is cached.
`--drop FILE` throws a file out of the page cache beforehand, so that its pages count.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from msgspec import Struct

from penjing.errors import BadFile, Unavailable, UserError
from penjing.units import parse_size, show_bytes

REMOVAL_SECONDS = 10.0  # how long killed processes may take to leave their group

# `$1` is the file of the group's members: the shell joins, then becomes the command.
JOIN_AND_RUN = 'echo $$ > "$1" && shift && exec "$@"'


class Outcome(Struct, frozen=True):
    """How a command ended.

    Units:
        exit_code: as in `subprocess`: -9 if signal 9 ended it; 127 if there is no such command.
        peak_bytes: the most that was charged to the group, page cache included; None if nobody counted.
        killed_by_limit: processes that the kernel killed because the group was full.
        stdout, stderr: None unless `subprocess.PIPE` was asked for.
    """

    exit_code: int
    peak_bytes: int | None
    killed_by_limit: int
    stdout: bytes | str | None = None
    stderr: bytes | str | None = None


class Version(Struct, frozen=True):
    """How one version of cgroups names its control files.

    Units:
        limits: file → what to write, in multiples of the memory limit. Version 1 limits the sum of memory
            and swap, version 2 swap by itself; both leave none.
    """

    limits: dict[str, int]
    peak: str
    events: str


V1 = Version(
    limits={"memory.limit_in_bytes": 1, "memory.memsw.limit_in_bytes": 1},
    peak="memory.max_usage_in_bytes",
    events="memory.oom_control",
)
V2 = Version(limits={"memory.max": 1, "memory.swap.max": 0}, peak="memory.peak", events="memory.events")


class Group:
    """A memory cgroup of our own and what was started in it; `limited` makes one and removes it."""

    def __init__(self, path: Path, version: Version) -> None:
        self.path = path
        self._version = version
        self._started: list[subprocess.Popen[Any]] = []

    def start(self, command: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
        """Start `command` in the group; `popen` goes to `subprocess.Popen` (no `shell`, no `executable`)."""
        join = ["/bin/sh", "-c", JOIN_AND_RUN, "in_cgroup", str(self.path / "cgroup.procs")]
        process = subprocess.Popen([*join, *command], **popen)
        self._started.append(process)
        return process

    def peak_bytes(self) -> int | None:
        """The most that was charged so far, page cache included; None with version 2 before Linux 5.19."""
        peak = self.path / self._version.peak
        return int(peak.read_text()) if peak.exists() else None

    def killed_by_limit(self) -> int:
        """How many processes the kernel has killed because the group was full."""
        lines = (self.path / self._version.events).read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def _limit(self, memory_bytes: int) -> None:
        for name, multiple in self._version.limits.items():
            file = self.path / name
            if file.exists():  # a kernel that does not account for swap has no file for it
                file.write_text(str(memory_bytes * multiple))

    def _remove(self) -> None:
        """Kill every process in the group and take the group away."""
        for process in self._started:
            process.kill()  # here too, for it may be on its way into the group
            process.wait()
        deadline = time.monotonic() + REMOVAL_SECONDS
        while not self._is_removed(last_try=time.monotonic() > deadline):
            time.sleep(0.01)

    def _is_removed(self, last_try: bool) -> bool:
        for pid in (self.path / "cgroup.procs").read_text().split():
            if pid != "0":  # a process that our pid namespace does not know; to kill 0 is to kill ourselves
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            self.path.rmdir()
        except OSError:  # busy until the last one has left
            if last_try:
                raise
            return False
        return True


@contextlib.contextmanager
def limited(memory_bytes: int) -> Iterator[Group]:
    """A group that holds `memory_bytes` and no swap; at the end of the block its processes are killed.

    Raises:
        Unavailable: this system has no memory cgroups, or we may not make one.
    """
    parent, version = find_parent(Path("/proc/mounts").read_text(), Path("/proc/self/cgroup").read_text())
    try:
        group = Group(Path(tempfile.mkdtemp(prefix="penjing-", dir=parent)), version)
    except OSError as error:
        raise _unavailable(f"cannot make a memory cgroup in `{parent}`: {error.strerror}") from error
    try:
        group._limit(memory_bytes)
        yield group
    finally:
        group._remove()


def find_parent(mounts: str, own_groups: str) -> tuple[Path, Version]:
    """The folder in which to make groups, from the text of `/proc/mounts` and `/proc/self/cgroup`.

    With version 2 it is the nearest group above our own that hands memory limits on to its children: a group
    with processes in it, as our own, may not. Limits from further up stay in force.

    Raises:
        Unavailable: no such folder.
    """
    points = [line.split()[1:4] for line in mounts.splitlines()]
    for point, kind, options in points:
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(point), V1
    own = next((line[len("0::/") :] for line in own_groups.splitlines() if line.startswith("0::/")), "")
    for root in (Path(point) for point, kind, _ in points if kind == "cgroup2"):
        above = [folder for folder in (root / own).parents if folder.is_relative_to(root)]
        for folder in above or [root]:
            if _hands_memory_on(folder):
                return folder, V2
    raise _unavailable("no memory cgroup can be made here")


def _hands_memory_on(folder: Path) -> bool:
    controllers = (folder / "cgroup.subtree_control").read_text().split()
    return "memory" in controllers and os.access(folder / "cgroup.procs", os.W_OK)


def _unavailable(problem: str) -> Unavailable:
    return Unavailable(problem, hint="run it as root on Linux, in a container with `docker run --privileged`")


def run(command: Sequence[str], memory_bytes: int, **popen: Any) -> Outcome:
    """Run `command` to its end with `memory_bytes` for it and all its children.

    `popen` goes to `subprocess.Popen` (no `shell`, no `executable`).

    Raises:
        Unavailable: this system has no memory cgroups, or we may not make one.
    """
    with limited(memory_bytes) as group:
        process = group.start(command, **popen)
        stdout, stderr = process.communicate()
        return Outcome(process.returncode, group.peak_bytes(), group.killed_by_limit(), stdout, stderr)


def drop_cache(path: Path) -> None:
    """Throw the pages of a file out of the page cache, so that the next group to read them is charged.

    Pages that a living process has mapped stay.

    Raises:
        BadFile: the file cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BadFile(f"cannot read `{path}`: {error.strerror}", hint=f"`ls -l {path}`") from error
    try:
        os.fsync(handle)  # a page that is not on the disk yet is not dropped
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def main(argv: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, _leave)
    try:
        return _run_and_report(argv)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except UserError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 2


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _run_and_report(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", required=True, metavar="SIZE", help="the limit: `600MB`, `2GiB`")
    parser.add_argument("--drop", default=[], action="append", type=Path, metavar="FILE", help="see above")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after `--`, with its arguments")
    args = parser.parse_args(argv)
    memory_bytes = parse_size(args.memory)
    for path in args.drop:
        drop_cache(path)
    outcome = run(args.command, memory_bytes)
    print(_report(outcome, memory_bytes), file=sys.stderr)
    return outcome.exit_code if outcome.exit_code >= 0 else 128 - outcome.exit_code


def _report(outcome: Outcome, memory_bytes: int) -> str:
    peak = "unknown" if outcome.peak_bytes is None else show_bytes(outcome.peak_bytes)
    killed = f", {outcome.killed_by_limit} killed by the limit" if outcome.killed_by_limit else ""
    return f"peak memory {peak} of {show_bytes(memory_bytes)}{killed}"


if __name__ == "__main__":
    sys.exit(main())
