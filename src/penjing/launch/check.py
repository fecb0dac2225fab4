"""How far a launch file was checked: by the list of flags that ships, and by the parser of the engine, if it is here.

The engine is asked in a child process, with a limit of time: importing one takes 10 to 30 seconds, and may fail in
many ways. `asker.py` is what the child runs, in the Python of the environment that holds the engine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from penjing.deployment import Deployment
from penjing.errors import BadFile, EngineDied, EngineError, EngineTimeout
from penjing.launch import known
from penjing.launch.arguments import arguments, known_for, variables

Level = Literal["syntax", "flags", "parser", "config"]

_LIMIT_SECONDS = 180.0
_ASKER = Path(__file__).with_name("asker.py")


class Validation(Struct, frozen=True):
    """What a launch file passed. engine: the version that judged it. why: what keeps it from more."""

    level: Level
    engine: str
    why: str = ""

    @property
    def words(self) -> str:
        if self.level == "syntax":
            return f"syntax only: no list of flags of {self.engine} ships"
        if self.level == "flags":
            return f"flags known to {self.engine} (list that ships)"
        if self.level == "parser":
            return f"accepted by the parser of {self.engine} installed here"
        return f"accepted by the parser of {self.engine} installed here, config checked"


class Verdict(Struct, frozen=True):
    """What an engine said of one command: the level it passed, and its words where it refused."""

    level: Level | None
    error: str = ""
    why: str = ""


def by_list(deployment: Deployment) -> Validation:
    """The level that needs no engine.

    Raises:
        EngineError: the list knows better.
    """
    if (deployment.engine, deployment.engine_version) not in known.engines():
        return Validation("syntax", f"{deployment.engine} {deployment.engine_version}")
    found = known_for(deployment)
    for node in range(deployment.nodes):
        if problem := known.fault(found, arguments(deployment, node)):
            raise EngineError(problem, hint="penjing launch --help")
    return Validation("flags", found.title)


def by_engine(deployment: Deployment, place: str | None = None) -> Validation:
    """The level that the engine grants: its own parser, and its config check where the model's config is here.

    `place` is the Python of its environment (or the `llama-server`); None looks in this one and on the path.

    Raises:
        EngineError: it refuses the command, in its own words. BadFile: there is nothing at `place`.
    """
    reached = by_list(deployment)
    found = where(deployment.engine, place)
    if found is None:
        return Validation(reached.level, reached.engine, f"{deployment.engine} is not installed here")
    commands = [checkable(deployment, node) for node in range(deployment.nodes)]
    config = not deployment.plugin  # without the plugin the engine would refuse what only it knows
    version, verdicts = ask(deployment.engine, found, commands, config=config)
    for verdict in verdicts:
        if verdict.level is None:
            raise EngineError(
                f"{deployment.engine} {version} refuses the command: {verdict.error}",
                hint=f"the files are written for {deployment.engine_version}: is another version installed?",
            )
    levels = [verdict.level for verdict in verdicts if verdict.level]
    lowest: Level = "config" if all(level == "config" for level in levels) else "parser"
    return Validation(lowest, f"{deployment.engine} {version}", verdicts[0].why)


def where(engine: str, place: str | None = None) -> str | None:
    """The program that can judge commands for an engine; None if there is none here."""
    if place is not None:
        found = shutil.which(place)
        if found is None:
            raise BadFile(f"there is no program `{place}`", hint="--engine-path /path/of/venv/bin/python")
        return found
    if engine == "llama.cpp":
        return shutil.which("llama-server")
    module = util.find_spec(engine)  # a mere folder of that name has no origin
    return sys.executable if module and module.origin else None


def checkable(deployment: Deployment, node: int = 0) -> list[str]:
    """The words of a command, with something that can be parsed in place of each variable."""
    words = list(arguments(deployment, node))
    for name in variables(deployment):
        words = [word.replace(f"${name}", "127.0.0.1") for word in words]
    return words


def ask(
    engine: str,
    program: str,
    commands: Sequence[Sequence[str]],
    limit_seconds: float = _LIMIT_SECONDS,
    *,
    config: bool = True,
) -> tuple[str, list[Verdict]]:
    """The engine's version, and its verdict on each command, with `config` checked where a model's is here.

    Raises:
        EngineTimeout, EngineDied: it gave none.
    """
    if engine == "llama.cpp":
        return _ask_server(program, commands, limit_seconds)
    question = json.dumps({"engine": engine, "config": config, "commands": [list(w) for w in commands]})
    done = _run([program, str(_ASKER)], question, limit_seconds * (1 + len(commands) / 20))
    last = done.stdout.strip().rpartition("\n")[2]
    try:
        answer: dict[str, Any] = json.loads(last)
        return answer["version"], msgspec.convert(answer["verdicts"], list[Verdict])
    except (ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        words = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise EngineDied(
            f"{engine} could not be asked: {words[:200]}", hint=f"{program} -c 'import {engine}'"
        ) from error


def _ask_server(
    program: str, commands: Sequence[Sequence[str]], limit_seconds: float
) -> tuple[str, list[Verdict]]:
    """llama-server reads its words in turn, and ends at `--version` if all before it were right."""
    version = _run([program, "--version"], "", limit_seconds)
    lines = (version.stderr + version.stdout).splitlines()
    told = (line.removeprefix("version: ") for line in lines if line.startswith("version: "))
    verdicts = []
    for words in commands:
        done = _run([program, *words, "--version"], "", limit_seconds)
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        verdicts.append(Verdict("parser") if done.returncode == 0 else Verdict(None, said[:300]))
    return next(told, "of unknown version"), verdicts


def _run(command: list[str], given: str, limit_seconds: float) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_TARGET_DEVICE": "cpu",
           "VLLM_NO_USAGE_STATS": "1"}  # fmt: skip
    try:
        return subprocess.run(
            command, input=given, capture_output=True, text=True, errors="replace", timeout=limit_seconds, env=env,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EngineTimeout(f"`{command[0]}` gave no answer within {limit_seconds:.0f} s") from error
    except OSError as error:
        raise EngineDied(f"`{command[0]}` cannot be started: {error.strerror}") from error
