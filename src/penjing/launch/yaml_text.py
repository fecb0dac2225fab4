"""YAML as people write it, by PyYAML: keys in their own order, lists indented, words unfolded."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 (its signature)
        super().increase_indent(flow, False)


def yaml_text(document: dict[str, Any]) -> str:
    """One document, to be read by any YAML parser, and by people."""
    dumped: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    return dumped


def dns_name(name: str) -> str:
    """A name that Kubernetes and compose take: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "model"
