"""`penjing launch` as its users type it, and what it says of engines that are not here, or have another opinion."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml

from penjing.cli import main
from penjing.errors import BadFile, EngineDied, EngineError, EngineTimeout
from penjing.launch import check
from test_launch import deployment

KEYS = {"model", "machine", "deployment", "form", "program", "arguments", "validated", "text"}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert main(["launch", *words]) == 0
    shown = capsys.readouterr()
    return shown.out, shown.err


def stand_in(folder: Path, name: str, body: str) -> str:
    """A program of a few lines in place of an engine's Python."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_command_is_printed(capsys):
    """stdout is a script: comments, then one command."""
    out, err = printed(capsys, "Qwen3-8B", "--on", "RTX 4090")
    body = [line for line in out.splitlines() if not line.startswith("#")]

    assert body[0] == "vllm serve Qwen/Qwen3-8B \\" and err == ""
    assert "# validated: flags known to vLLM 0.32.0 (list that ships)" in out


def test_json_holds_the_deployment_and_every_node(capsys):
    """One document with the keys that scripts rely on."""
    out, _ = printed(capsys, "GLM-4.6", "--on", "A100 SXM 80GB", "--count", "16", "--json")
    document = json.loads(out)

    assert KEYS == document.keys()
    assert (16, 2) == (document["deployment"]["devices"], len(document["arguments"]))
    assert "flags" == document["validated"]["level"]


@pytest.mark.parametrize("form", ["command", "compose", "kubernetes"])
def test_a_file_is_written(form, tmp_path, capsys):
    """`--out` writes what stdout would have had."""
    words = ("Qwen3-8B", "--on", "H20", "--as", form)
    out, _ = printed(capsys, *words)
    silent, err = printed(capsys, *words, "--out", str(tmp_path / "file"))

    assert silent == "" and "wrote" in err
    assert out == (tmp_path / "file").read_text()
    if form != "command":
        assert list(yaml.safe_load_all(out))


def test_a_gguf_file_goes_to_llama_cpp(tiny, capsys):
    """A file of this machine is named by its whole path."""
    out, _ = printed(capsys, str(tiny), "--on", "RTX 4090", "--context", "256")

    assert "llama-server" in out and str(tiny.resolve()) in out


def test_a_repository_of_gguf_files_has_a_type(capsys, refuses):
    """The type tells the size: Llama-3.1-70B in 4 bits fits where 16 bits would not; without it nothing is known."""
    words = ("Llama-3.1-70B", "--on", "M4 Max 128GB", "--format", "gguf", "--repository")
    out, _ = printed(capsys, *words, "o/n-GGUF:Q4_K_M")

    assert "--hf-repo o/n-GGUF:Q4_K_M" in out
    assert "type is needed" in refuses("launch", *words, "o/n-GGUF")[0]


def test_an_engine_that_is_not_here_is_told(capsys):
    """The file is written all the same, with the level that was reached."""
    out, err = printed(capsys, "Qwen3-8B", "--on", "H20", "--check")

    assert "flags known" in out and "vllm is not installed here" in err


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        (("Qwen3-9B", "--on", "H20"), "no model `Qwen3-9B`", "Qwen3-8B"),
        (("Qwen3-8B", "--on", "H21"), "no machine `H21`", "H20"),
        (("Qwen3-8B", "--on", "H20", "--engine", "vlm"), "no engine", "--engine vllm"),
        (("Qwen3-8B", "--on", "H20", "--tp", "0"), "--tp is `0`", "--tp 8"),
        (("Qwen3-8B", "--on", "H20", "--as", "helm"), "invalid choice", "penjing launch --help"),
        (("Qwen3-8B", "--on", "H20", "--context", "50000"), "40960", "--context 40960"),
        (("GLM-4.6", "--on", "RTX 4090"), "`RTX 4090` give 21.6 GiB", "--count 32"),
        (("GPT-1.3B", "--on", "H20"), "which repository holds", "--repository"),
        (("Qwen3-8B", "--on", "H20", "--engine-path", "/no/python"), "no program", "--engine-path"),
        (("Qwen3-8B",), "--on", "penjing launch --help"),
    ],
)
def test_refusals(words, problem, hint, refuses):
    """One line with what is wrong, one with what to type."""
    said, told = refuses("launch", *words)

    assert problem in said and hint in told


# --- asking an engine -------------------------------------------------------------------------------------

ACCEPTS = """cat > /dev/null; echo noise; echo '{"version": "9.9", "verdicts": [{"level": "%s", "why": "because"}]}'"""
REFUSES = (
    """cat > /dev/null; echo '{"version": "9.9", "verdicts": [{"level": null, "error": "no such flag"}]}'"""
)


@pytest.mark.parametrize("level", ["parser", "config"])
def test_the_level_that_an_engine_grants(level, tmp_path):
    """Its version and level stand in the words, whatever else it printed."""
    found = check.by_engine(deployment(), stand_in(tmp_path, "python", ACCEPTS % level))

    assert (level, "vllm 9.9", "because") == (found.level, found.engine, found.why)
    assert "installed here" in found.words and ("config checked" in found.words) == (level == "config")


def test_the_words_of_an_engine_that_refuses(tmp_path):
    """They are the error, and the hint thinks of the version."""
    with pytest.raises(EngineError, match=r"vllm 9\.9 refuses the command: no such flag") as caught:
        check.by_engine(deployment(), stand_in(tmp_path, "python", REFUSES))

    assert "0.32.0" in caught.value.hint


def test_an_engine_that_dies_or_hangs(tmp_path):
    """Its last words, or the limit, are told."""
    dies = stand_in(tmp_path, "dies", "cat > /dev/null; echo 'ImportError: no torch' >&2; exit 1")
    hangs = stand_in(tmp_path, "hangs", "exec sleep 30")

    with pytest.raises(EngineDied, match="ImportError: no torch"):
        check.by_engine(deployment(), dies)
    with pytest.raises(EngineTimeout, match="within"):
        check.ask("vllm", hangs, [["m"]], limit_seconds=0.2)
    with pytest.raises(BadFile, match="no program"):
        check.by_engine(deployment(), str(tmp_path / "nothing"))


def test_llama_server_is_asked_by_its_version(tmp_path):
    """It reads words in turn and ends at `--version`: what is wrong before it is said first."""
    cases = '--version) echo "version: 7 (abc)" >&2; exit 0;; --parallel) exit 1;;'
    body = f'for word in "$@"; do case $word in {cases} esac; done'
    server = stand_in(tmp_path, "llama-server", body)

    version, (good, bad) = check.ask("llama.cpp", server, [["--model", "m"], ["--parallel", "2"]])

    assert ("7 (abc)", "parser", None) == (version, good.level, bad.level)


def test_a_version_without_a_list_has_its_syntax_alone():
    """Nothing is claimed of a version that nobody looked at."""
    found = check.by_list(deployment(engine_version="9.9"))

    assert "syntax only: no list of flags of vllm 9.9 ships" == found.words


def test_a_flag_that_the_list_does_not_know_is_refused():
    """What is wrong is told before anything is written."""
    with pytest.raises(EngineError, match="must be"):
        check.by_list(deployment(kv_cache_type="q8_0"))
