"""Captured texts, and small trees of `/proc` and `/sys` made of them."""

from __future__ import annotations

from pathlib import Path

CAPTURED = Path(__file__).parent / "captured"


def captured(name: str) -> str:
    return (CAPTURED / name).read_text(encoding="utf-8")


def tree(root: Path, files: dict[str, str]) -> Path:
    """`root` with `files` in it, by path from the root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def cpu_files(siblings: dict[int, str], caches: dict[int, list[tuple[int, str, str, str]]]) -> dict[str, str]:
    """`/sys/devices/system/cpu` of processors with their siblings and caches (level, type, size, shared)."""
    top = "sys/devices/system/cpu"
    files = {f"{top}/online": f"{min(siblings)}-{max(siblings)}\n"}
    for cpu, shared in siblings.items():
        files[f"{top}/cpu{cpu}/topology/thread_siblings_list"] = f"{shared}\n"
        for index, cache in enumerate(caches.get(cpu, [])):
            names = ("level", "type", "size", "shared_cpu_list")
            folder = f"{top}/cpu{cpu}/cache/index{index}"
            files |= {f"{folder}/{name}": f"{text}\n" for name, text in zip(names, cache, strict=True)}
    return files
