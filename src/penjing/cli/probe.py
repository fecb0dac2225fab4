"""`penjing probe`: this machine, measured."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from penjing.cli import setting, show
from penjing.errors import BadFile, UsageError
from penjing.machine import Machine
from penjing.store import write_atomically

if TYPE_CHECKING:
    from penjing.plan import Build
    from penjing.rates import KernelRates

_SHAPE = re.compile(r"([1-9]\d{0,6})x([1-9]\d{0,6})")
_BATCHES = (1, 8, 64, 512)
_MOST_WEIGHTS = 2**28  # of a matrix, so that every type fits into memory twice


def command(args: argparse.Namespace) -> int:
    path = Path(args.path).expanduser() if args.path else None
    if path is not None and not path.exists():
        raise BadFile(
            f"there is no `{args.path}`", hint="name a file or folder on the disk to measure: `--path .`"
        )
    if args.picture is not None and not args.kernels:
        raise UsageError(
            "`--picture` draws what `--kernels` measures", hint="penjing probe --kernels --picture FILE.svg"
        )
    rows, columns = _shape(args.shape)
    picture = setting.output(args.picture, (), "--picture") if args.picture is not None else None
    machine = setting.this_machine(path, fresh=args.fresh)
    rates = _kernels(machine, rows, columns, args.build, fresh=args.fresh) if args.kernels else None
    if picture and rates:
        _draw(picture, machine, rates, args.shape)
    if args.json:
        timed = {"kernels": msgspec.to_builtins(rates)} if rates else {}
        show.document(msgspec.to_builtins(machine) | timed)
        return 0
    show.machine(machine)
    if rates:
        show.kernels(rates, machine, args.shape)
    return 0


def _shape(text: str) -> tuple[int, int]:
    found = _SHAPE.fullmatch(text)
    if found is None or int(found[1]) * int(found[2]) > _MOST_WEIGHTS:
        raise UsageError(
            f"`{text}` is no shape of a matrix of at most {_MOST_WEIGHTS} weights", hint="--shape 2048x4096"
        )
    return int(found[1]), int(found[2])


def _kernels(machine: Machine, rows: int, columns: int, build: Build, *, fresh: bool) -> KernelRates:
    from penjing import kernel_rates as kernels
    from penjing.engines.llamacpp import LlamaCpp
    from penjing.search import candidates

    engine = LlamaCpp()
    threads = candidates.thread_counts(machine.cores)[0]
    shape = kernels.MatrixShape(rows, columns)
    traits = engine.traits(machine.isa)
    wanted = kernels.kernels_of([shape], kernels.all_kinds(), traits, [threads], _BATCHES, build)
    if not wanted:
        raise UsageError(f"rows of {columns} weights fit no type", hint="--shape 2048x4096")
    return kernels.measured(wanted, machine, engine, fresh=fresh)


def _draw(picture: Path, machine: Machine, rates: KernelRates, shape: str) -> None:
    from penjing.cli.roofline import svg

    dram = machine.tier("DRAM")
    threads = rates.timings[0].kernel.threads
    title = f"{machine.cpu or machine.name}, {threads} threads, matrix {shape}"
    drawn = svg(rates.timings, dram.read_bytes_per_s.value if dram else None, title)
    write_atomically(picture, drawn.encode())
