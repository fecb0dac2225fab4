"""The options of every command."""

from __future__ import annotations

import argparse

from penjing.cli import groups

MODEL = "a GGUF file, a Hugging Face folder or repository; left out: the model that ships"


def run(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing run "Name three rivers."
  penjing run model.gguf "Why is the sky blue?" --max-tokens 200
  penjing run bartowski/SmolLM2-360M-Instruct-GGUF:Q4_K_M "Hello"
  cat letter.txt | penjing run model.gguf          the prompt from a pipe
  penjing run model.gguf                           a conversation, Ctrl-D ends it
  penjing run big.gguf "Hello" --memory 4GiB --allow-disk
"""
    parser.add_argument("words", nargs="*", metavar="[MODEL] [PROMPT]", help=MODEL)
    parser.add_argument(
        "--max-tokens",
        type=groups.whole("--max-tokens"),
        default=256,
        metavar="N",
        help="longest answer (256)",
    )
    parser.add_argument("--system", metavar="TEXT", help="instructions before the conversation")
    parser.add_argument(
        "--raw", action="store_true", help="send the prompt as it is, without the chat template"
    )
    parser.add_argument(
        "--temperature",
        type=groups.number("--temperature", "0.8"),
        default=0.8,
        metavar="T",
        help="0 always takes the likeliest token (0.8)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="draw the same tokens again")
    groups.limits(parser)
    groups.drafting(parser)
    groups.fresh(parser)


def plan(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing plan                                     the model that ships, on this machine
  penjing plan model.gguf --prompt 2000 --answer 50
  penjing plan model.gguf --memory 6GiB --context 8192
  penjing plan Qwen3-8B --on "RTX 4090"            shapes and datasheets, nothing is loaded
  penjing plan DeepSeek-V3 --on "8x H20 memory_bandwidth=8TB/s" --users 16
  penjing plan Qwen3-32B --on all --users 8 --price-per-hour 2
  penjing plan model.gguf --json | jq .chosen.estimate
  penjing plan model-f16.gguf --max-kld 0.06 --sensitivity model.sensitivity     types and settings together
"""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=f"{MODEL}; or a name from `penjing models`")
    parser.add_argument(
        "--on",
        metavar="MACHINE",
        help="a name from `penjing machines` or a file, like `8x H20` or `RTX 4090 + 128GB DDR5`, or `all` of them; "
        "left out: this computer",
    )
    parser.add_argument(
        "--sensitivity",
        metavar="FILE",
        help="of an F16 model whose types are open; left out: a prior is assumed",
    )
    parser.add_argument(
        "--picture",
        metavar="FILE.svg",
        help="with --on: draw roofline, throughput against latency, and memory",
    )
    groups.far(parser)
    groups.workload(parser)
    groups.limits(parser)
    groups.drafting(parser)
    groups.fresh(parser)


def probe(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing probe
  penjing probe --path /data/models                rates of the disk that holds the models
  penjing probe --json > machine.json              a description for `penjing plan --on machine.json`
  penjing probe --kernels --picture roofline.svg   what each number format costs on this machine
"""
    parser.add_argument(
        "--path", metavar="PATH", help="file or folder whose disk is measured; left out: the cache folder's"
    )
    parser.add_argument(
        "--kernels", action="store_true", help="time the engine's matrix products in every type (about 20 s)"
    )
    parser.add_argument(
        "--shape",
        metavar="ROWSxCOLUMNS",
        default="2048x4096",
        help="of the matrix that is timed (%(default)s)",
    )
    parser.add_argument(
        "--build",
        choices=("wheel", "native"),
        default="wheel",
        help="of the engine, as installed or compiled here",
    )
    parser.add_argument(
        "--picture", metavar="FILE.svg", help="with --kernels: draw the roofline of this machine"
    )
    groups.fresh(parser)


def engine(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing engine list
  penjing engine build                             needs cmake and a C++ compiler; about 7 minutes on two cores
"""
    parser.add_argument(
        "action", choices=("build", "list"), help="compile it for this processor, or say what is there"
    )
    parser.add_argument("--fresh", action="store_true", help="build again what is there already")


def bench(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing bench
  penjing bench model.gguf --prompt 2000 --answer 50 --rounds 5
  penjing plan model.gguf --json > p.json; penjing bench model.gguf --plan p.json
  penjing bench model-f16.gguf --ablate --max-kld 0.06 --sensitivity model.sensitivity
"""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--plan", metavar="FILE", help="a plan as `penjing plan --json` prints it; left out: a new one"
    )
    parser.add_argument(
        "--rounds",
        type=groups.whole("--rounds"),
        default=3,
        metavar="N",
        help="repetitions of each, in turn (3)",
    )
    parser.add_argument(
        "--ablate", action="store_true",
        help="of an F16 model with `--max-kld`: default, best flags, best stock types, one after the other, together",
    )  # fmt: skip
    parser.add_argument(
        "--sensitivity", metavar="FILE", help="for `--ablate`, from `penjing calibrate`; left out: a prior"
    )
    groups.workload(parser)
    groups.limits(parser)
    groups.fresh(parser)


def draft(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing draft model.gguf                         n-grams, on prompts of five kinds that ship
  penjing draft model.gguf --draft-model small.gguf
  penjing draft model.gguf --prompts mine.txt      a line of --- stands between two prompts
  penjing draft model-f16.gguf                     how often guesses are right, for plans that choose formats
"""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--draft-model", metavar="FILE", help="a smaller model with the same tokens, tried as well"
    )
    parser.add_argument("--prompts", metavar="FILE", help="what is asked; left out: prompts of five kinds")
    groups.workload(parser)
    groups.limits(parser)
    groups.fresh(parser)


def calibrate(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing calibrate model-f16.gguf --out model.sensitivity
  penjing calibrate model-f16.gguf --out model.sensitivity --tokens 16384
  penjing calibrate model-f16.gguf --out letters.sensitivity --text letters.txt
"""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    parser.add_argument("--out", required=True, metavar="FILE", help="where the sensitivity goes")
    groups.text(parser, "what the model reads", 8192, "tokens that it reads")
    parser.add_argument(
        "--seed",
        type=groups.seed,
        default=0,
        metavar="N",
        help="draws the pieces of the text and the labels (0)",
    )


def build(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing build model-f16.gguf --out small.gguf --size 4GiB
  penjing build model-f16.gguf --out small.gguf --bpw 4.5 --sensitivity model.sensitivity
  penjing build model-f16.gguf --out small.gguf --max-kld 0.05
  penjing build model-f16.gguf --out small.gguf --min-decode 20 --json
  penjing plan model-f16.gguf --max-kld 0.06 --json > p.json; penjing build model-f16.gguf --out fast.gguf --plan p.json
"""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    groups.one_limit(parser)
    parser.add_argument(
        "--sensitivity", metavar="FILE", help="from `penjing calibrate`; left out: a prior is assumed"
    )
    parser.add_argument(
        "--finalists", type=groups.whole("--finalists"), default=3, metavar="N",
        help="files that are built and measured before one is chosen (3)",
    )  # fmt: skip
    parser.add_argument(
        "--plain", action="store_true", help="round as the engine does, without refining: faster, and worse"
    )


def eval(parser: argparse.ArgumentParser) -> None:  # noqa: A001 (the name of the command)
    parser.epilog = """examples:
  penjing eval small.gguf --against model-f16.gguf
  penjing eval small.gguf --against model-f16.gguf --versus other.gguf
  penjing eval small.gguf --against model-f16.gguf --text letters.txt --json
  penjing eval small.gguf --ppl                    its perplexity alone
"""
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, or a repository")
    parser.add_argument("--against", metavar="SOURCE", help="the file that it was made from")
    parser.add_argument(
        "--versus", metavar="OTHER", help="another file of the same source, compared on the same text"
    )
    groups.text(parser, "what the models read", 8192, "tokens, taken evenly from the text")
    parser.add_argument("--ppl", action="store_true", help="perplexity of the file, without a source")


def need(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing need Qwen3-235B-A22B --users 50 --first-token 2 --per-token 0.05
  penjing need GLM-4.6 --of "H20, Ascend 910B2, RTX 4090" --users 8
  penjing need DeepSeek-V3 --have devices.toml     lines like "H20" = 16: what would do of what is there
"""
    parser.add_argument("model", metavar="MODEL", help="a name from `penjing models`, or a file")
    parser.add_argument(
        "--of", metavar="MACHINES", help="devices, with commas between; left out: all of the catalogue"
    )
    parser.add_argument("--have", metavar="FILE", help="a TOML file of devices and how many there are")
    groups.far(parser)
    groups.workload(parser)
    groups.limits(parser)


def compare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing compare "8x H20" "8x RTX 4090" --model Qwen3-235B-A22B --users 16
  penjing compare "M4 Max 128GB" "RTX 4090 + 128GB DDR5" --model gpt-oss-120b
"""
    parser.add_argument("machines", nargs="+", metavar="MACHINE", help="as for `penjing plan --on`")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="a name from `penjing models`, or a file"
    )
    groups.far(parser)
    groups.workload(parser)
    groups.limits(parser)


def machines(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing machines
  penjing machines --class 3A090.a                  by the numbers of an export rule: not legal advice
  penjing machines --rules case-by-case-2026 --json
  penjing plan Qwen3-8B --on "M4 Max 128GB"
  penjing plan Qwen3-8B --on my-machine.toml        a file of your own; only `name` and `tiers` are needed

my-machine.toml, in bytes, bytes per second and operations per second (a multiply-add is 2):
  name = "my machine"
  [[tiers]]
  name = "VRAM"
  capacity_bytes = 24_000_000_000
  read_bytes_per_s = { value = 1.0e12, source = "datasheet" }
  [[compute]]
  format = "bf16"
  operations_per_s = { value = 165e12, source = "datasheet" }
  [[links]]
  to = "host"
  kind = "PCIe 4.0 x16"
  bytes_per_s = { value = 32e9, source = "datasheet" }
"""
    parser.add_argument(
        "--class", dest="kind_of_class", metavar="CLASS", help="only machines of that class, like 3A090.a"
    )
    parser.add_argument(
        "--rules", metavar="RULES", default="3A090-2023",
        help="3A090-2023 (if left out), case-by-case-2026, or a .toml file: a copy of one of them, edited",
    )  # fmt: skip


def validate(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing validate                         the few rows that ship, with their sources
  penjing validate measured.csv --json     a table of yours, .csv or .csv.gz, with the same columns
"""
    parser.add_argument(
        "table", nargs="?", metavar="TABLE.csv", help="measurements; left out: those that ship"
    )


def models(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose; the examples say what the list is for."""
    parser.epilog = """examples:
  penjing models
  penjing models --json
  penjing plan Qwen3-30B-A3B --on "Desktop DDR5-5600 32GB"
  penjing plan my-model.toml --on "RTX 4090"        a file of your own

my-model.toml, a plain Llama of 32 layers:
  name = "my model"
  architecture = "llama"
  source = "where the numbers are from"
  layers = 32
  width = 4096
  vocabulary = 128256
  context_tokens = 131072
  tied = false
  hidden = 14336
  [grouped]
  heads = 32
  kv_heads = 8
  head_width = 128
"""
