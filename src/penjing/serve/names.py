"""The names by which a server may be called."""

from __future__ import annotations

import ipaddress


def name_of(host: str) -> str:
    """`localhost` of `localhost:8080`, `::1` of `[::1]:8080`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def own_names(host: str) -> frozenset[str] | None:
    """The names by which a server that listens on `host` may be called; None: by any."""
    return frozenset({"localhost", "127.0.0.1", "::1", host}) if is_local(host) else None


def is_local(host: str) -> bool:
    """Whether nobody outside this computer can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
