"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from penjing.errors import UsageError
from penjing.units import parse_size

N = TypeVar("N", int, float)


def one_limit(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limit (exactly one)")
    group.add_argument("--size", type=parse_size, metavar="SIZE", help="of the whole file, like 4GiB")
    group.add_argument(
        "--bpw", type=number("--bpw", "4.5"), metavar="X", help="bits per weight, the mean over all matrices"
    )
    group.add_argument(
        "--max-kld", type=number("--max-kld", "0.05"), metavar="X",
        help="KL divergence against the source, measured, in nats per token; the smallest file within it",
    )  # fmt: skip
    group.add_argument(
        "--min-decode", type=number("--min-decode", "10"), metavar="T",
        help="decode speed in tokens per second, by the read rate of this machine's memory",
    )  # fmt: skip
    group.add_argument(
        "--plan", metavar="FILE", help="the types of a plan, as `penjing plan --max-kld X --json` prints it"
    )


def text(parser: argparse.ArgumentParser, what: str, n_tokens: int, tokens_help: str) -> None:
    parser.add_argument("--text", metavar="FILE", help=f"{what}, UTF-8; left out: the text that ships for it")
    parser.add_argument(
        "--tokens", type=whole("--tokens"), default=n_tokens, metavar="N", help=f"{tokens_help} ({n_tokens})"
    )


def workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what it is for")
    group.add_argument(
        "--prompt", type=whole("--prompt"), default=512, metavar="N", help="tokens in a prompt (512)"
    )
    group.add_argument(
        "--answer", type=whole("--answer"), default=128, metavar="N", help="tokens in an answer (128)"
    )
    group.add_argument(
        "--users", type=whole("--users"), default=1, metavar="N", help="requests at the same time (1)"
    )


def far(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("hardware that is not here")
    group.add_argument(
        "--format",
        metavar="F",
        help="of the weights, like FP8 or Q4_K_M; left out: the best of 4 bits or more",
    )
    group.add_argument(
        "--runs", metavar="TABLE",
        help="what you have measured there, in the columns of `penjing validate`: predictions for it are corrected",
    )  # fmt: skip
    group.add_argument(
        "--price-per-hour",
        type=number("--price-per-hour", "2"),
        metavar="X",
        help="of one device, in any money",
    )
    group.add_argument(
        "--price-per-kwh",
        type=number("--price-per-kwh", "0.2"),
        metavar="X",
        help="of energy, in the same money",
    )
    group.add_argument(
        "--class",
        dest="device_class",
        metavar="C",
        help="with all devices: only those of this class of the rule",
    )
    group.add_argument(
        "--rules", default="3A090-2023", metavar="R", help="the export rule, by name or file (%(default)s)"
    )


def limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--context",
        type=whole("--context"),
        metavar="N",
        help="tokens that a user's cache holds; left out: as many as needed",
    )
    group.add_argument(
        "--memory",
        type=parse_size,
        metavar="SIZE",
        help="hard limit for weights + cache + buffers, like 8GiB",
    )
    group.add_argument(
        "--allow-disk",
        action="store_true",
        help="read weights from disk again and again if they exceed the memory",
    )
    group.add_argument(
        "--max-kld",
        type=number("--max-kld", "0.01"),
        metavar="X",
        help="KL divergence that may be spent for speed, in nats per token",
    )
    group.add_argument(
        "--min-decode",
        type=number("--min-decode", "10"),
        metavar="T",
        help="least decode speed in tokens per second",
    )
    group.add_argument(
        "--per-token",
        type=number("--per-token", "0.05"),
        metavar="S",
        help="longest time between two tokens in seconds: the same limit, said the other way",
    )
    group.add_argument(
        "--first-token",
        type=number("--first-token", "2"),
        metavar="S",
        help="longest wait for the first token in seconds",
    )


def drafting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draft", choices=("auto", "off"), default="auto",
        help="guess tokens ahead where `penjing draft`, or a plan of formats, finds that it pays (auto)",
    )  # fmt: skip


def fresh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fresh", action="store_true", help="measure again instead of using what was measured before"
    )


def whole(option: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        return _positive(option, text, int, "a whole number of at least 1")

    return read


def number(option: str, example: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        if option == "--temperature" and text.strip() in ("0", "0.0"):
            return 0.0
        return _positive(option, text, float, "a number above 0", example)

    return read


def _positive(option: str, text: str, kind: Callable[[str], N], wanted: str, example: str = "8") -> N:
    try:
        value = kind(text)
    except ValueError:
        value = kind("0")
    if not 0 < value < 2**53:
        raise UsageError(
            f"{option} is `{text}`, but it must be {wanted}", hint=f"for example: {option} {example}"
        )
    return value


def seed(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**63):
        raise UsageError(f"--seed is `{text}`, but it must be a whole number of at least 0", hint="--seed 7")
    return int(text)


def port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65536):
        raise UsageError(f"--port is `{text}`, but it must be a number from 0 to 65535", hint="--port 8080")
    return int(text)
