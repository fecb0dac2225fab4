"""Every command that is written passes the parser of vLLM or SGLang, and vLLM's config check. `make test-vllm` runs it.

The engines live in an environment of their own, whose Python `VLLM_PYTHON` names; each is asked once for all commands.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from configs import folder
from penjing import catalogue
from penjing.deployment import Deployment, Speculation
from penjing.launch import check, files
from penjing.launch.arrange import arranged
from penjing.launch.asked import Asked
from penjing.launch.formats import published
from penjing.workload import Workload

# model, machine, count, and what is asked besides
CASES = {
    "one device": ("Qwen3-8B", "RTX 4090", 1, {}),
    "eight replicas": ("Qwen3-8B", "H20", 8, {}),
    "16 bits of the other kind": ("Llama-3.1-8B", "A100 SXM 80GB", 1, {"weight_format": "fp16"}),
    "rounded while it is loaded": ("Qwen3-32B", "H20", 1, {"weight_format": "fp8"}),
    "a cache of 8 bits": ("Qwen3-32B", "H20", 2, {"kv_cache_type": "fp8"}),
    "awq": ("Qwen3-8B", "L40S", 1, {"weight_format": "awq", "own_weights": True}),
    "gptq": ("Llama-3.1-70B", "A100 SXM 80GB", 1, {"weight_format": "gptq", "own_weights": True}),
    "int8": ("Llama-3.1-8B", "A100 SXM 80GB", 2, {"weight_format": "int8", "own_weights": True}),
    "KV heads kept twice": ("Qwen3-235B-A22B", "H20", 8, {}),
    "experts whole": ("Qwen3-235B-A22B", "H20", 8, {"expert_parallel": True}),
    "experts over replicas": ("Qwen3-235B-A22B", "H200", 8, {"expert_parallel": True, "data_parallel": 2}),
    "stages in a node": ("Llama-3.1-70B", "RTX 4090", 8, {"tensor_parallel": 2, "pipeline_parallel": 4}),
    "stages over nodes": ("GLM-4.6", "A100 SXM 80GB", 16, {}),
    "latent attention, blocks of 8 bits": ("DeepSeek-V3", "H200", 8, {}),
    "latent attention over nodes": ("DeepSeek-V3", "H800 SXM 80GB", 16, {}),
    "experts of 4 bits": ("gpt-oss-120b", "H20", 1, {}),
    "replicas on AMD": ("Qwen3-32B", "MI300X", 8, {}),
    "replicas over nodes": ("Qwen3-32B", "H20", 16, {"data_parallel": 16}),
    "an Ascend": ("Qwen3-32B", "Ascend 910B2", 8, {}),
}
ONLY_VLLM = {"replicas over nodes"}


@pytest.fixture(scope="session")
def place() -> str:
    found = os.environ.get("VLLM_PYTHON", "")
    assert found, "VLLM_PYTHON names no Python: run `make test-vllm`"
    return found


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def deployment(case: str, models: Path, engine: str) -> Deployment:
    name, machine, count, more = CASES[case]
    model = catalogue.model(name)
    held = published(model)
    stored = str(more.get("weight_format", held)) if more.get("own_weights") else held
    path = folder(models, name, stored if stored not in ("bf16", "fp16") else "")
    asked = Asked(weights=str(path), published=held, engine=engine, count=count, **more)
    return arranged(model, catalogue.machine(machine), Workload(users=32, context_tokens=8192), asked)


def every(models: Path, engine: str) -> dict[str, Deployment]:
    """All deployments of an engine, some with drafted tokens."""
    found = {
        case: deployment(case, models, engine) for case in CASES if engine == "vllm" or case not in ONLY_VLLM
    }
    plain = found["one device"]
    found["looked up"] = replace(plain, speculation=Speculation("ngram", 4))
    found["drafted"] = replace(plain, speculation=Speculation("draft", 3, plain.weights))
    found["in a container"] = files.served(found["KV heads kept twice"], "compose")
    return found


@pytest.mark.parametrize(("engine", "level"), [("vllm", "config"), ("sglang", "parser")])
def test_every_command_passes(engine, level, models, place):
    """Parser and configuration of vLLM, the parser of SGLang, take the commands of all nodes."""
    named = {
        f"{case}, node {node}": check.checkable(one, node)
        for case, one in every(models, engine).items()
        for node in range(one.nodes)
    }

    version, verdicts = check.ask(engine, place, list(named.values()), limit_seconds=600)

    levels = dict(zip(named, (v.level for v in verdicts), strict=True))
    print(
        f"\n{engine} {version}: {len(named)} commands, {list(levels.values()).count(level)} reached `{level}`"
    )
    assert {} == {name: v.error or v.why for name, v in zip(named, verdicts, strict=True) if v.level != level}


WRONG = {
    "a slip in a flag": (["--tensor-paralel-size", "2"], "unrecognized|paralel"),
    "a flag that is gone": (["--swap-space", "4"], "unrecognized|swap"),
    "no such cache": (["--kv-cache-dtype", "fp7"], "invalid choice"),
    "heads that are not divisible": (["--tensor-parallel-size", "5"], "divisible"),
    "no such quantization": (["--quantization", "nosuch"], "nosuch|[Qq]uantization"),
    "more context than the model has": (["--max-model-len", "10000000"], "max_model_len|context|length"),
}


def test_wrong_commands_are_refused(models, place):
    """The check bites: what should be refused is, and what the list of flags lets through is found by the config."""
    model = str(folder(models, "Qwen3-8B"))

    _, verdicts = check.ask(
        "vllm", place, [[model, *words] for words, _ in WRONG.values()], limit_seconds=600
    )

    for (case, (_, pattern)), verdict in zip(WRONG.items(), verdicts, strict=True):
        assert verdict.level is None and re.search(pattern, verdict.error), (case, verdict)
