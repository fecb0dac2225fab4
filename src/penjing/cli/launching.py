"""The options of `penjing launch`."""

from __future__ import annotations

import argparse

from penjing.cli.groups import port, whole


def launch(parser: argparse.ArgumentParser) -> None:
    """Model, machine, the layout that may be given, and the form of the file."""
    parser.epilog = """examples:
  penjing launch Qwen3-8B --on "RTX 4090"
  penjing launch Qwen3-235B-A22B --on H20 --count 8 --users 32 --context 16384
  penjing launch DeepSeek-V3 --on H200 --count 8 --engine sglang --ep --as compose --out deepseek.yaml
  penjing launch Qwen3-32B --on "Ascend 910B2" --count 4 --as kubernetes
  penjing launch Qwen3-8B --on L40S --format awq --repository Qwen/Qwen3-8B-AWQ
  penjing launch model.gguf --on "RTX 4090" --count 2 --engine llama.cpp
  penjing launch Qwen3-8B --on H20 --check --engine-path ~/vllm/bin/python
"""
    parser.add_argument(
        "model", metavar="MODEL", help="a name from `penjing models`, a Hugging Face folder, a GGUF file"
    )
    parser.add_argument(
        "--on", required=True, metavar="MACHINE", help="a name from `penjing machines`, or a file"
    )
    parser.add_argument(
        "--count", type=whole("--count"), default=1, metavar="N", help="how many of it there are (1)"
    )
    parser.add_argument(
        "--per-node", type=whole("--per-node"), metavar="N", help="how many of it one server has (8)"
    )
    parser.add_argument(
        "--users", type=whole("--users"), default=16, metavar="N", help="requests at once (16)"
    )
    parser.add_argument(
        "--context", type=whole("--context"), metavar="N",
        help="tokens of one request, prompt and answer (8192, or what the model takes)",
    )  # fmt: skip
    _layout(parser)
    _form(parser)


def _layout(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how (left out: the fewest devices that hold it)")
    group.add_argument(
        "--engine",
        metavar="ENGINE",
        help="vllm, sglang or llama.cpp; left out: the first that runs on the device",
    )
    group.add_argument(
        "--tp", type=whole("--tp"), metavar="N", help="tensor parallel: every layer over N devices"
    )
    group.add_argument("--pp", type=whole("--pp"), metavar="N", help="pipeline parallel: N groups of layers")
    group.add_argument(
        "--dp", type=whole("--dp"), metavar="N", help="replicas, or ranks of attention with --ep"
    )
    group.add_argument("--ep", action="store_true", help="expert parallel: experts whole, over all devices")
    group.add_argument(
        "--format",
        metavar="F",
        help="of the weights: bf16, fp16, fp8, int8, awq, gptq, int4, mxfp4, nvfp4, gguf",
    )
    group.add_argument(
        "--repository",
        metavar="NAME",
        help="repository or folder with weights in that format; left out: its makers'",
    )
    group.add_argument(
        "--cache", choices=("auto", "fp8", "q8_0"), default="auto", help="type of the KV cache (auto)"
    )


def _form(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the file")
    group.add_argument(
        "--as", dest="form", choices=("command", "compose", "kubernetes"), default="command", help="(command)"
    )
    group.add_argument("--out", metavar="FILE", help="write it there instead of to stdout")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where it listens (127.0.0.1)")
    group.add_argument("--port", type=port, default=8000, metavar="N", help="(8000)")
    group.add_argument(
        "--check", action="store_true", help="ask the engine's own parser, where it is installed (10 to 30 s)"
    )
    group.add_argument(
        "--engine-path",
        metavar="PATH",
        help="Python of the environment with vLLM or SGLang, or the llama-server",
    )
