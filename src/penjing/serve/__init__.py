"""A front server before the engine's own: admission, limits, keys, a watch over the child, and a page.

    client ─→ app (ASGI) ─→ gate ─→ relay ─→ the engine's server, a child process on a private socket
                                      ↑
                                   keeper: starts it, watches it, starts it again

Everything here runs in one process with one event loop; the arithmetic is the child's.
"""
