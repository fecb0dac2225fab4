"""Readers of vendors' tools, on captured text: `pytest tests/test_probe_accelerators.py`."""

from __future__ import annotations

import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.machine import Accelerator
from penjing.probe import accelerators, text
from penjing.units import GIB, MIB
from probe_trees import captured

READERS = [reader for reader, _ in accelerators.TOOLS]


def test_nvidia():
    """Name, memory in bytes and driver of each GPU."""
    expected = (
        Accelerator("NVIDIA GeForce RTX 4090", "NVIDIA", 24564 * MIB, "550.54.14"),
        Accelerator("NVIDIA A100-SXM4-80GB", "NVIDIA", 80 * GIB, "550.54.14"),
    )
    assert accelerators.parse_nvidia_smi(captured("nvidia_smi_two.csv")) == expected


def test_nvidia_without_memory_of_its_own():
    """A GPU that shares the main memory has None, not 0."""
    (found,) = accelerators.parse_nvidia_smi(captured("nvidia_smi_gb10.csv"))

    assert found == Accelerator("NVIDIA GB10", "NVIDIA", None, "580.95.05")


def test_nvidia_without_driver():
    """The words of a tool that found no driver are no GPU."""
    assert accelerators.parse_nvidia_smi(captured("nvidia_smi_failed.txt")) == ()
    assert accelerators.parse_nvidia_smi("No devices were found\n") == ()


def test_rocm():
    """Warnings before the JSON are passed over; a card without a series goes by its device name."""
    expected = (
        Accelerator("Radeon RX 7900 XT", "AMD", 21458059264, "6.8.5"),
        Accelerator("Raphael", "AMD", 512 * MIB, "6.8.5"),
    )
    assert accelerators.parse_rocm_smi(captured("rocm_smi_new.txt")) == expected


def test_rocm_older_keys():
    """Older versions spell the keys otherwise and may leave out the driver."""
    expected = (Accelerator("Arcturus GL-XL [AMD Instinct MI100]", "AMD", 34342961152, None),)
    assert accelerators.parse_rocm_smi(captured("rocm_smi_old.json")) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("npu_smi_910b.txt", [("910B4-1", 64 * GIB, "25.2.0")] * 2),
        ("npu_smi_two_chips.txt", [("Ascend910", 64 * GIB, "25.3.rc1")] * 2),
        ("npu_smi_310p.txt", [("310P3", 21534 * MIB, "22.0.2")]),
    ],
)
def test_ascend(name, expected):
    """Each chip counts, with its HBM or its only memory; rows of processes are no chips."""
    found = accelerators.parse_npu_smi(captured(name))

    assert [(a.name, a.memory_bytes, a.driver) for a in found] == expected
    assert {a.vendor for a in found} == {"Huawei"}


def test_apple():
    """The GPU of Apple silicon has no memory of its own; a display is no GPU."""
    expected = (Accelerator("Apple M4", "Apple", None),)
    assert accelerators.parse_system_profiler(captured("system_profiler_m4.json")) == expected


def test_intel_mac():
    """Memory lent by the system is not the GPU's own; a card's memory is."""
    expected = (
        Accelerator("Intel UHD Graphics 630", "Intel", None),
        Accelerator("AMD Radeon Pro 5500M", "AMD", 8 * GIB),
    )
    assert accelerators.parse_system_profiler(captured("system_profiler_intel.json")) == expected


@pytest.mark.parametrize("reader", READERS)
@settings(deadline=None)
@given(text=st.text() | st.recursive(st.text(), lambda inner: st.lists(inner).map(str)))
def test_readers_survive_any_text(reader, text):
    """No text makes a reader raise."""
    assert isinstance(reader(text), tuple)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "odd", ["", "[]", "{}", "null", '{"card0": 3}', '{"SPDisplaysDataType": {}}', "[" * 100_000]
)
def test_readers_of_odd_json(reader, odd):
    """JSON of another shape, or nested without end, is no accelerator."""
    assert reader(odd) == ()


def fake_tool(folder, name, script):
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def only_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_tools_on_path_are_asked(only_path):
    """What a tool on PATH prints is found."""
    fake_tool(only_path, "nvidia-smi", "print('NVIDIA L4, 23034, 550.90.07')")

    assert accelerators.find() == (Accelerator("NVIDIA L4", "NVIDIA", 23034 * MIB, "550.90.07"),)


def test_missing_and_failing_tools(only_path):
    """No tool, or one that fails, or one that is not a program: no accelerators and no error."""
    assert accelerators.find() == ()
    fake_tool(only_path, "nvidia-smi", "print('NVIDIA L4, 23034, 550.90.07'); raise SystemExit(9)")
    (only_path / "npu-smi").write_bytes(b"\0\1\2")
    (only_path / "npu-smi").chmod(0o755)

    assert accelerators.find() == ()


def test_slow_tool_is_left(only_path):
    """A tool that does not answer in time is killed and says nothing."""
    fake_tool(only_path, "npu-smi", "import time; time.sleep(60)")
    began = time.monotonic()

    assert text.run("npu-smi", "info", seconds=0.3) == ""
    assert time.monotonic() - began < 5
