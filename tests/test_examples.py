"""The examples: what they say is understood by what they are for."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import started
from penjing.cli import make_parser

EXAMPLES = Path(__file__).parents[1] / "examples"
PARAMETERS = {"num_ctx", "num_thread", "num_batch", "temperature", "top_k", "top_p", "min_p", "seed", "stop"}


@pytest.fixture(scope="module")
def served(measured: Path, tiny: Path) -> Iterator[dict[str, Any]]:
    with started(
        "serve", str(tiny), "--port", "0", "--json", env={"PENJING_CACHE": str(measured)}
    ) as command:
        yield command.document()


def understood(words: list[str]) -> None:
    assert Path(words[0]).name == "penjing"
    make_parser().parse_args(words[1:])


def test_the_unit_runs_a_command_that_there_is():
    """systemd's own checker agrees, where it is installed."""
    unit = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EXAMPLES / "penjing.service")
    understood(shlex.split(unit["Service"]["ExecStart"]))
    assert "-HUP" in unit["Service"]["ExecReload"]
    if shutil.which("systemd-analyze"):
        words = ["systemd-analyze", "verify", "--man=no", str(EXAMPLES / "penjing.service")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert not re.search("Unknown|Failed to parse", done.stderr), done.stderr


def test_the_container_runs_a_command_that_there_is():
    """Every line is an instruction, and the last one a command of ours."""
    lines = [
        line for line in (EXAMPLES / "Containerfile").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    instructions = {"FROM", "RUN", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "CMD"}

    assert {line.split()[0] for line in lines} <= instructions
    understood(json.loads(lines[-1].removeprefix("CMD ")))


def test_the_modelfile_names_a_file_and_known_parameters():
    lines = [
        line.split()
        for line in (EXAMPLES / "Modelfile").read_text().splitlines()
        if line[:1] not in ("", "#")
    ]

    assert [words for words in lines if words[0] == "FROM"] == [["FROM", "./small.gguf"]]
    assert all(words[0] in ("FROM", "PARAMETER") for words in lines)
    assert {words[1] for words in lines if words[0] == "PARAMETER"} <= PARAMETERS


def test_the_client_prints_an_answer(served: dict[str, Any]):
    """Run as it stands, against a real server."""
    words = [sys.executable, str(EXAMPLES / "client.py"), served["url"]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip()


def test_llm_is_configured(served: dict[str, Any], tmp_path: Path):
    """The keys are those that the `llm` command reads, and it answers."""
    (model,) = yaml.safe_load((EXAMPLES / "extra-openai-models.yaml").read_text())
    assert {"model_id", "model_name", "api_base", "api_key_name"} == set(model)
    configured = [{**model, "api_base": served["url"], "model_name": served["model"]}]
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump(configured))
    (tmp_path / "keys.json").write_text(json.dumps({"penjing": "none"}))
    words = [sys.executable, "-m", "llm", "-m", "penjing", "--no-stream", "-o", "max_tokens", "8", "Hi"]
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
