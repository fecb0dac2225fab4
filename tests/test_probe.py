"""The whole probe, on this computer: `pytest tests/test_probe.py`."""

from __future__ import annotations

import os
import time

import msgspec
import pytest

import penjing.probe
from penjing.figures import Figure
from penjing.machine import EngineFound, Machine, Tier
from penjing.probe import bandwidth, disk, load_average, probe
from penjing.store import cache_dir, recall, remember
from penjing.units import MIB

ENGINE = EngineFound("fake", "1", usable=True)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A first probe with its duration, and the folder it was kept in."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENJING_CACHE", str(folder))
        began = time.monotonic()
        machine = probe(engines=(ENGINE,))
        return machine, time.monotonic() - began, (folder / "machine.json").read_bytes()


@pytest.fixture(autouse=True)
def kept(first, tmp_path, monkeypatch):
    """Each test finds what the first probe kept, in a cache of its own; measuring again is kept short."""
    monkeypatch.setenv("PENJING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(penjing.probe, "BANDWIDTH_SECONDS", 0.4)
    monkeypatch.setattr(disk, "PASS_SECONDS", 0.1)
    monkeypatch.setattr(disk, "FILE_BYTES", 32 * MIB)
    cache_dir().mkdir()
    (cache_dir() / "machine.json").write_bytes(first[2])
    change_kept(load_average=0.0)  # whatever ran meanwhile, these rates are not to be measured again


def probed(**options):
    """A probe, and what it said it was doing."""
    said = []
    return probe(progress=said.append, **options), said


def test_contract(first):
    """Within 20 seconds, with the keys that others script against, each rate with its source."""
    machine, seconds, _ = first

    document = msgspec.json.decode(msgspec.json.encode(machine))

    assert seconds <= 20
    assert {"cores", "isa", "memory_total_bytes", "memory_limit_bytes", "tiers", "engines"} <= set(document)
    for tier in document["tiers"]:
        assert {"name", "capacity_bytes", "read_bytes_per_s"} <= set(tier)
        assert {"value", "source"} <= set(tier["read_bytes_per_s"])
        assert tier["read_bytes_per_s"]["source"] == "measured"
    assert [tier["name"] for tier in document["tiers"]][-2:] == ["DRAM", "disk"]
    assert document["engines"] == [{"name": "fake", "version": "1", "usable": True, "why": ""}]
    assert machine.captured.endswith("+00:00")


def test_rates_make_sense(first):
    """DRAM was measured from one thread to all usable ones, and is faster than 100 MB/s."""
    machine, _, _ = first
    dram = machine.tier("DRAM")

    assert [dram.by_threads[0].threads, dram.by_threads[-1].threads] == [1, max(1, int(machine.cores.usable))]
    assert dram.read_bytes_per_s.value == max(point.read_bytes_per_s for point in dram.by_threads) > 1e8


def test_usable_memory_is_the_tightest(first):
    """Usable memory never exceeds total or limit."""
    machine, _, _ = first

    assert 0 < machine.usable_memory_bytes <= machine.memory_total_bytes
    limited = msgspec.structs.replace(machine, memory_limit_bytes=2**30)
    assert limited.usable_memory_bytes == min(2**30, machine.memory_total_bytes)


def test_json_round_trip(first):
    """A machine survives its JSON file."""
    machine, _, _ = first

    assert msgspec.json.decode(msgspec.json.encode(machine), type=Machine) == machine


def test_second_call_is_quick_and_the_same(first):
    """A second call measures nothing, takes no time, and still looks at what changes by the minute."""
    began = time.monotonic()
    again, said = probed()

    assert time.monotonic() - began <= 0.1
    assert said == []
    assert [t.read_bytes_per_s for t in again.tiers] == [t.read_bytes_per_s for t in first[0].tiers]
    assert again.captured == first[0].captured
    assert again.engines == ()
    assert again.memory_available_bytes is not None


def test_fresh_measures_again():
    """`fresh` measures although there is something kept, says what it does, and keeps the new."""
    before = (cache_dir() / "machine.json").read_bytes()

    _, said = probed(fresh=True)

    assert any("DRAM" in line for line in said)
    assert (cache_dir() / "machine.json").read_bytes() != before


@pytest.mark.parametrize("damage", [b"", b"\0", b'{"machine": 3}', b'{"machine": {}, "disks": {}}'])
def test_damaged_cache_is_rebuilt(damage):
    """A damaged cache is no error: everything is measured and kept again."""
    (cache_dir() / "machine.json").write_bytes(damage)

    machine, said = probed()

    assert any("DRAM" in line for line in said)
    assert machine.tier("DRAM").by_threads
    assert recall("machine.json", penjing.probe.Kept) is not None


def change_kept(**changes):
    kept = recall("machine.json", penjing.probe.Kept)
    remember(
        "machine.json",
        msgspec.structs.replace(kept, machine=msgspec.structs.replace(kept.machine, **changes)),
    )


@pytest.mark.parametrize("changes", [{"cpu": "another"}, {"memory_total_bytes": 12345}])
def test_cache_of_another_machine_is_ignored(changes):
    """What was kept on another machine does not count here."""
    change_kept(**changes)

    machine, said = probed()

    assert any("DRAM" in line for line in said)
    assert machine.cpu != "another"
    assert machine.memory_total_bytes != 12345


def test_spoilt_rates_are_measured_again_when_calm(first):
    """Rates from a time of heavy load are replaced once the load is gone, and kept as long as it lasts."""
    tiers = [t for t in first[0].tiers if t.name != "disk"]
    spoilt = msgspec.structs.replace(tiers[-1], read_bytes_per_s=Figure(1.0, "measured", bandwidth.DISTURBED))

    change_kept(tiers=(*tiers[:-1], spoilt), load_average=1e6)
    assert probed()[1] != []
    change_kept(tiers=(*tiers[:-1], spoilt), load_average=0.1)
    assert probed()[1] == []


def test_memory_for_measuring_came_free():
    """A DRAM rate that could not be measured for want of memory is measured when there is some."""
    unknown = Tier("DRAM", None, Figure(None, "measured", "too little memory"))
    change_kept(tiers=(unknown,))

    machine, said = probed()

    assert any("DRAM" in line for line in said)
    assert machine.tier("DRAM").read_bytes_per_s.value > 1e8


def test_disk_is_measured_once_for_each_device(tmp_path):
    """Two paths on one device share a measurement; each has its own path and free bytes."""
    (tmp_path / "models").mkdir()

    machine, said = probed(disk_path=tmp_path / "models")

    assert said == []
    assert machine.tier("disk").path == str(tmp_path / "models")
    assert machine.tier("disk").capacity_bytes > 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_fewer_cores_than_were_measured():
    """A process held to one processor is told the rates of one thread."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        machine, said = probed()
    finally:
        os.sched_setaffinity(0, allowed)

    assert said == []
    assert machine.cores.usable <= 1
    assert {point.threads for tier in machine.tiers for point in tier.by_threads} == {1}
    dram = machine.tier("DRAM")
    assert dram.read_bytes_per_s.value == dram.by_threads[0].read_bytes_per_s


def test_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """A cache that cannot be kept does not stop the probe."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PENJING_CACHE", str(tmp_path / "file" / "folder"))

    machine, _ = probed()

    assert machine.tier("DRAM").read_bytes_per_s.value > 1e8


def test_load():
    """The load is a number that is not negative."""
    assert load_average() >= 0
