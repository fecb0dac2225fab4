"""What is refused, in which words, and with which way out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

import gguf_files
from gguf_families import FAMILIES
from gguf_files import raw_header
from penjing.errors import BadFile
from penjing.gguf import read_header
from penjing.gguf.header import parse_header

AGAIN = "fetch it again: `hf download OWNER/REPOSITORY m.gguf --force-download`"
CONVERT = "convert the original weights: `python convert_hf_to_gguf.py FOLDER`"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, so that complete error texts hold short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _refusal(path: Path, read: Callable[[Path], object] = read_header) -> tuple[str, str]:
    with pytest.raises(BadFile) as caught:
        read(path)
    return str(caught.value), caught.value.hint


# --- not a GGUF at all -----------------------------------------------------------------------------------

SAFETENSORS = (60).to_bytes(8, "little") + b'{"__metadata__":{"format":"pt"}}' + bytes(40)


@pytest.mark.parametrize(
    ("content", "problem", "hint"),
    [
        (b"", "`m.gguf` is empty (0 bytes)", AGAIN),
        (
            b"PK\x03\x04rest",
            "`m.gguf` is not a GGUF file: it looks like a zip archive (or a PyTorch checkpoint)",
            "unpack it: `unzip m.gguf`",
        ),
        (
            SAFETENSORS,
            "`m.gguf` is not a GGUF file: it looks like safetensors",
            "name its folder instead: `penjing plan .`",
        ),
        (
            b"\n<!DOCTYPE html><html><title>404</title>",
            "`m.gguf` is not a GGUF file: it looks like an HTML page",
            AGAIN,
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n",
            "`m.gguf` is not a GGUF file: it looks like a Git LFS pointer, not the file it points to",
            "git lfs pull --include m.gguf",
        ),
        (
            b"\x80\x02}q\x00",
            "`m.gguf` is not a GGUF file: it looks like a Python pickle (a PyTorch checkpoint)",
            CONVERT,
        ),
        (
            b"tjgg\x03\0\0\0",
            "`m.gguf` is not a GGUF file: it looks like a GGML file from before GGUF",
            CONVERT,
        ),
        (b"\x1f\x8b\x08\0", "`m.gguf` is not a GGUF file: it looks like gzip data", "gunzip m.gguf"),
        (
            bytes(100),
            "`m.gguf` is not a GGUF file: it looks like an unfinished download (it starts with zeros)",
            AGAIN,
        ),
        (
            b'{"model_type": "llama"}',
            "`m.gguf` is not a GGUF file: it looks like JSON text",
            "name the model file or folder beside it: `penjing plan .`",
        ),
        (
            b"hello world",
            "`m.gguf` is not a GGUF file: it looks like something else (its first bytes are 68 65 6c 6c)",
            AGAIN,
        ),
        (b"GG", "`m.gguf` ends too early: it has 2 bytes, but the header reaches to byte 4", AGAIN),
    ],
)
@pytest.mark.usefixtures("here")
def test_other_files(content: bytes, problem: str, hint: str):
    """A file of another kind is called by its name, with the way from it to a model."""
    Path("m.gguf").write_bytes(content)

    assert _refusal(Path("m.gguf")) == (problem, hint)


@pytest.mark.usefixtures("here")
def test_a_missing_file():
    """A path that leads nowhere."""
    assert _refusal(Path("no such.gguf")) == (
        "`no such.gguf` does not exist",
        "`penjing models` lists the models known by name",
    )


def test_a_folder(here: Path):
    """A folder: the hint names a model file in it, if there is one."""
    empty = here / "empty"
    empty.mkdir()
    (here / "b.gguf").touch()

    assert _refusal(Path("empty")) == (
        "`empty` is a folder, not a GGUF file",
        "name a file in it: `penjing plan empty/MODEL.gguf`",
    )
    assert _refusal(Path()) == (
        "`.` is a folder, not a GGUF file",
        "name a file in it: `penjing plan b.gguf`",
    )


@pytest.mark.usefixtures("here")
def test_a_pipe():
    """Opening a pipe would wait for ever; it is refused without."""
    os.mkfifo("m.gguf")

    assert _refusal(Path("m.gguf")) == (
        "`m.gguf` is a device or a pipe, not a file",
        "cat m.gguf > MODEL.gguf",
    )


@pytest.mark.usefixtures("here")
def test_paths_that_cannot_be():
    """A name too long, a file used as a folder, a loop of links, a zero character."""
    Path("file").touch()
    Path("loop").symlink_to("loop")
    long = Path("x" * 300)

    assert _refusal(long) == (f"`{long}` cannot be read: File name too long", f"ls -l {long}")
    assert _refusal(Path("file/m.gguf")) == (
        "`file/m.gguf` cannot be read: Not a directory",
        "ls -l file/m.gguf",
    )
    assert _refusal(Path("loop"))[0] == "`loop` cannot be read: Too many levels of symbolic links"
    assert _refusal(Path("a\0b"))[0] == "`a�b` holds a zero character, which no path can"


def test_no_permission(tmp_path: Path):
    """A file that may not be read; tried as nobody, for root may read everything."""
    path = tmp_path / "my model.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    tries = (
        "import os, sys; from pathlib import Path; from penjing.gguf import read_header\n"
        "os.chdir(sys.argv[1])\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: read_header(Path('my model.gguf'))\n"
        "except Exception as error: print(error, error.hint, sep='\\n')\n"
    )
    tmp_path.chmod(0o755)

    done = subprocess.run([sys.executable, "-c", tries, tmp_path], capture_output=True, text=True, check=True)

    assert done.stdout == "`my model.gguf` may not be read: permission denied\nchmod u+r 'my model.gguf'\n"


# --- versions, byte order, truncation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "problem", "hint"),
    [
        (
            1,
            "`m.gguf` is GGUF version 1, which llama.cpp no longer reads; versions 2 and 3 are",
            "convert the original weights again: `python convert_hf_to_gguf.py FOLDER`",
        ),
        (4, "`m.gguf` is GGUF version 4; versions 2 and 3 are known", "pip install --upgrade penjing"),
        (
            0,
            "`m.gguf` is GGUF version 0, which llama.cpp no longer reads; versions 2 and 3 are",
            "convert the original weights again: `python convert_hf_to_gguf.py FOLDER`",
        ),
    ],
)
@pytest.mark.usefixtures("here")
def test_other_versions(version: int, problem: str, hint: str):
    """Only versions 2 and 3 are read."""
    Path("m.gguf").write_bytes(raw_header(version, 0, 0))

    assert _refusal(Path("m.gguf")) == (problem, hint)


@pytest.mark.usefixtures("here")
def test_big_endian():
    """A file for big-endian machines, as the `gguf` package writes it, is called that."""
    writer = gguf.GGUFWriter("m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    assert _refusal(Path("m.gguf")) == (
        "`m.gguf` is big endian, made for another kind of machine",
        "pip install gguf && gguf-convert-endian m.gguf little",
    )


@pytest.mark.parametrize("twentieth", range(20))
@pytest.mark.usefixtures("here")
def test_truncation(twentieth: int):
    """Cut anywhere, in the header or in the weights, a file is refused with both sizes."""
    whole = gguf_files.write(Path("m.gguf"), FAMILIES["llama"], extra={"general.name": "x"}).read_bytes()
    data = read_header(Path("m.gguf")).tensors[0].offset
    # ten places in the header, ten in the weights
    cut = data * twentieth // 10 if twentieth < 10 else data + (len(whole) - data) * (twentieth - 10) // 10
    Path("m.gguf").write_bytes(whole[:cut])

    problem, hint = _refusal(Path("m.gguf"))

    if cut >= data:
        assert (
            problem
            == f"`m.gguf` ends too early: it has {cut} bytes, but its tensors reach to byte {len(whole)}"
        )
    elif cut:
        assert re.fullmatch(
            rf"`m.gguf` ends too early: (it has {cut} bytes, but .+ reach(es)? to byte \d+"
            rf"|\d+ (keys|tensors) do not fit into its {cut} bytes)",
            problem,
        )
    assert hint == AGAIN


@pytest.mark.parametrize("twentieth", range(20))
def test_truncation_of_the_real_model(twentieth: int):
    """The real model, cut at twenty places, is refused."""
    real = gguf_files.real_model()
    cut = 98_362_432 * twentieth // 20
    with real.open("rb") as stream, pytest.raises(BadFile) as caught:
        parse_header(stream, cut, "m.gguf")

    if cut:
        assert str(caught.value) == (
            f"`m.gguf` ends too early: it has {cut} bytes, but its tensors reach to byte 98362432"
        )
