"""Rates of the engine's kernels: timed by the real engine, kept, shown and drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from msgspec.structs import replace

from commands import penjing, refusal
from penjing import kernel_rates
from penjing.cli.roofline import svg
from penjing.engines.fake import FakeEngine, FakeKernels
from penjing.engines.llamacpp.kernels import KernelTimer
from penjing.errors import EngineDied
from penjing.formats import BY_NAME
from penjing.kernel_rates import MatrixShape, all_kinds, kernels_of, measured, operations
from penjing.machine import Cache, Cores, Machine
from penjing.rates import Kernel, KernelTiming

MACHINE = Machine(
    name="test",
    cores=Cores(2, 2, 2),
    isa=(),
    memory_total_bytes=2**33,
    memory_available_bytes=2**33,
    memory_limit_bytes=None,
    tiers=(),
    caches=(Cache(3, "unified", 2**20, 1),),
)
TRAITS = FakeEngine().traits(())
SHAPE = MatrixShape(64, 256)
BATCHES = (1, 2, 4, 16, 64, 512)


def test_the_engine_times_every_type_and_layout():
    """Whatever type, layout and batch, also a stack of experts: as many times as there were rounds."""
    with KernelTimer() as timer:
        for kind in all_kinds():
            kernels = [Kernel(kind, 64, 256, batch, 1) for batch in (1, 4)]
            found = timer.time(kernels, 2, 2**16)
            assert [t.kernel for t in found] == kernels
            assert all(len(t.seconds) == len(t.cpu_seconds) == 2 and min(t.seconds) > 0 for t in found)
        for kernel in (
            Kernel("q4_0", 64, 256, 4, 2, repack=True),
            Kernel("q4_K", 64, 256, 4, 1, False, 8, 2),
        ):
            assert timer.time([kernel], 1, 2**16)[0].kernel == kernel


def test_more_work_takes_longer():
    """Sixteen times the tokens, and sixteen times the rows, cost more each."""
    with KernelTimer() as timer:
        small, wide = timer.time([Kernel("q8_0", 256, 1024, batch, 1) for batch in (4, 64)], 3, 2**20)
        (tall,) = timer.time([Kernel("q8_0", 4096, 1024, 4, 1)], 3, 2**20)

    least = [min(timing.cpu_seconds) for timing in (small, wide, tall)]
    assert least[1] > 2 * least[0] and least[2] > 2 * least[0]


def test_a_killed_timer_is_one_error():
    with KernelTimer() as timer:
        timer._child.process.kill()
        with pytest.raises(EngineDied, match="SIGKILL"):
            timer.time([Kernel("q8_0", 64, 256, 1, 1)], 1, 0)


def test_only_what_the_engine_has_is_timed():
    """Blocks of 256 need such rows; a repacked layout is for some types, eight rows at a time."""
    narrow = {k.type for k in kernels_of([MatrixShape(64, 96)], all_kinds(), TRAITS, [1], BATCHES)}
    odd = kernels_of([MatrixShape(12, 256)], all_kinds(), TRAITS, [1], BATCHES)
    full = kernels_of([SHAPE], all_kinds(), TRAITS, [1, 2, 2], BATCHES)

    assert narrow == {k for k in all_kinds() if 96 % BY_NAME[k].block_weights == 0}
    assert not any(k.repack for k in odd)
    assert {k.type for k in full if k.repack} == TRAITS.repacked_types
    assert len(full) == len(set(full)) == 2 * len(BATCHES) * (len(all_kinds()) + 2)


class Counting(FakeEngine):
    """Counts what it is asked to time; every other round is disturbed."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Kernel] = []
        self.builds: list[str] = []

    def kernels(self, build: str = "wheel") -> FakeKernels:
        self.builds.append(build)
        engine = self

        class Timer(FakeKernels):
            def time(self, kernels, rounds, cold_bytes):
                engine.asked += kernels
                found = super().time(kernels, rounds, cold_bytes)
                return [_half_disturbed(t) for t in found]

        return Timer()


def _half_disturbed(timing: KernelTiming) -> KernelTiming:
    return replace(timing, seconds=tuple(s * (1 + 9 * (n % 2)) for n, s in enumerate(timing.seconds)))


def test_what_is_known_is_not_timed_again():
    """A second call asks for what is new alone; disturbed rounds are gone, and counted."""
    engine, kernels = Counting(), kernels_of([SHAPE], ["q4_0", "q8_0"], TRAITS, [1], BATCHES)
    first = measured(kernels[:5], MACHINE, engine)
    both = measured(kernels, MACHINE, engine)

    assert engine.asked == kernels
    assert {t.kernel for t in both.timings} == set(kernels) and len(first.timings) == 5
    assert kernel_rates.disturbed(both) == len(kernels) and all(
        len(set(t.seconds)) == 1 for t in both.timings
    )
    other = [replace(kernel, build="native") for kernel in kernels[:2]]
    assert {t.kernel for t in measured([*other, kernels[0]], MACHINE, engine).timings} == {*other, kernels[0]}
    assert engine.builds == ["wheel", "wheel", "native"] and engine.asked[len(kernels) :] == other
    engine.asked = list(kernels)
    assert measured(kernels[:1], MACHINE, engine, fresh=True).timings and engine.asked == [
        *kernels,
        kernels[0],
    ]


def test_few_tokens_are_timed_beside_one():
    """What is compared was timed at one pace: a new size of decode brings those of its matrix again, prompts not."""
    engine = Counting()
    one, four, prompt = (Kernel("q4_0", 64, 256, batch, 1) for batch in (1, 4, 64))
    other = replace(one, type="q8_0")
    measured([one, prompt, other], MACHINE, engine)
    engine.asked = []
    measured([one, four, prompt, other], MACHINE, engine)

    assert engine.asked == [one, four]


def test_the_picture_is_a_picture():
    """A line for each type and layout, with a point for each batch, within the frame."""
    kernels = kernels_of([SHAPE], all_kinds(), TRAITS, [1], (1, 8, 64))
    timings = FakeKernels().time(kernels, 1, 0)
    for rate in (None, 1.0, 5e10, 1e15):
        root = ElementTree.fromstring(svg(timings, rate, "a < b & c"))
        lines = root.findall("{*}polyline")
        places = [p.split(",") for line in lines for p in line.attrib["points"].split()]

        names = {text.text for text in root.findall("{*}text")}
        assert {"q8_0", "q4_0", "q4_0, repacked", "a < b & c"} <= names
        assert all(0 <= float(x) <= 860 and 0 <= float(y) <= 520 for x, y in places)


def test_operations_count_what_tokens_use():
    assert operations(Kernel("q8_0", 3, 5, 7, 1)) == 2 * 3 * 5 * 7
    assert operations(Kernel("q8_0", 3, 5, 7, 1, False, 8, 2)) == 2 * 2 * 3 * 5 * 7


def test_probe_shows_kernels(tmp_path: Path):
    """As a document and as a table; the second call finds them in the cache, the picture is drawn."""
    words = ("probe", "--kernels", "--shape", "64x256")
    picture = tmp_path / "roofline.svg"
    done = penjing(*words, "--json", "--picture", str(picture))
    again = penjing(*words, "--json")
    table = penjing(*words)

    timings = json.loads(done.stdout)["kernels"]["timings"]
    assert json.loads(again.stdout)["kernels"]["timings"] == timings
    assert {t["kernel"]["type"] for t in timings} == set(all_kinds())
    assert re.search(r"q4_K +4.5 +repacked +\S+ G/s +.*/s .*GFLOP/s", table.stdout)
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--kernels", "--shape", "2048"), "`2048` is no shape"),
        (("--kernels", "--shape", "0x256"), "`0x256` is no shape"),
        (("--kernels", "--shape", "99999x99999"), "is no shape of a matrix of at most"),
        (("--picture", "a.svg"), "`--picture` draws what `--kernels` measures"),
        (("--kernels", "--picture", "/nowhere/a.svg"), "the folder `/nowhere` does not exist"),
        (("--kernels", "--picture", "/tmp"), "`/tmp` is a folder, but `--picture` names a file"),
    ],
)
def test_bad_words_are_refused(words: tuple[str, ...], problem: str):
    assert problem in refusal(penjing("probe", *words))[0]
