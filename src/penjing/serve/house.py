"""A running server: the listener, the engine behind it, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import resource
import signal
import socket
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from msgspec.structs import replace

from penjing import store
from penjing.engines.base import Engine
from penjing.errors import Unavailable
from penjing.plan import Plan
from penjing.serve import sight
from penjing.serve.app import application
from penjing.serve.armour import Armour, Patient
from penjing.serve.desk import Desk
from penjing.serve.gate import Gate
from penjing.serve.journal import flush, log
from penjing.serve.keeper import Keeper, Start
from penjing.serve.keys import Ring
from penjing.serve.metrics import Metrics
from penjing.serve.names import own_names
from penjing.serve.problems import Problem
from penjing.serve.relay import Relay
from penjing.serve.requests import Limits
from penjing.serve.spec import SOCKET, SPEC, Spec, check_plan, stall_seconds

MOST_CONNECTIONS = 1024
_KEEP_SECONDS = 30  # an idle connection is kept for its next request
_FILES = 4096  # connections, those to the engine, and some more
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 128 * 2**10  # <malloc.h>, and what the C library begins with


def run(spec: Spec, folder: Path, engine: Engine, announce: Callable[[str], None]) -> None:
    """Serve until a signal ends it; `folder` is private, holds spec and socket, and is removed with them at the end.

    Raises:
        EngineError: the engine cannot be started.
        Unavailable: the port is taken.
    """

    async def live() -> None:
        await _House(spec, folder, engine).live(announce)

    keep_heap_small()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _FILES)), hard))
    try:
        asyncio.run(live())
    finally:
        for name in (SPEC, SOCKET):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
        flush()


def keep_heap_small() -> None:
    """Have the C library give large blocks back to the system, as it does until the first of them is freed.

    asyncio reads into a block of 256 KiB and cuts it to what came. Once such blocks come from the heap, every request
    touches pages that none did before it: 3 MB more in 9000 requests (docs/log.md).
    """
    with contextlib.suppress(AttributeError, OSError):  # other C libraries have no such knob
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


class _Listener(uvicorn.Server):
    """uvicorn without its own handling of signals: ours lets answers end before it stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _House:
    """The parts of one server, and what is done with all of them."""

    def __init__(self, spec: Spec, folder: Path, engine: Engine) -> None:
        self._spec, self._engine = spec, engine
        self._socket = str(folder / SOCKET)
        self._name, self._started = uuid.uuid4().hex[:8], time.monotonic()
        self._stopping = asyncio.Event()
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._relay = Relay(self._socket)
        keys_file = Path(spec.keys_file) if spec.keys_file else None
        self._keeper = Keeper(self._start(spec), self._relay.alive, spec.stall_seconds, log)
        self._desk = Desk(
            spec.limits, spec.usual_tokens, Gate(spec.rules), self._keeper, self._relay, Ring(keys_file),
            Metrics(spec.plan),
        )  # fmt: skip

    async def live(self, announce: Callable[[str], None]) -> None:
        """From the first signal that could come to the last thing that has to be closed."""
        self._on_signals()
        try:
            with _listen(self._spec.host, self._spec.port) as listening:
                async with self._changing:  # a reload has to wait for the first start
                    begun = await self._unless_stopped(self._keeper.begin())
                if begun:
                    self._desk.limits = await self._limits()
                    await self._listen_on(listening, announce)
        finally:
            await self._end()
            await self._relay.close()

    async def _end(self) -> None:
        """Nothing is begun any more, a reload under way least of all; then the engine goes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._keeper.stop()

    async def _listen_on(self, listening: socket.socket, announce: Callable[[str], None]) -> None:
        server = self._server()
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        announce(_url(self._spec.host, listening.getsockname()[1]))
        await self._unless_stopped(asyncio.shield(serving))
        await self._end()  # what is still answered ends with an error in words
        await self._desk.gate.empty(2)
        server.should_exit = True
        await serving

    async def _unless_stopped(self, work: Any) -> bool:
        """Whether `work` came to its end before a signal ended everything."""
        task, stopping = asyncio.ensure_future(work), asyncio.create_task(self._stopping.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return False

    def _server(self) -> _Listener:
        def still() -> dict[str, Any]:
            return sight.still(self._spec)

        def live() -> dict[str, Any]:
            return sight.live(self._desk, self._name, self._started)

        guarded = Armour(
            application(self._desk, still, live),
            self._desk.ring,
            own_names(self._spec.host),
            self._turned_away,
        )
        return _Listener(
            uvicorn.Config(
                guarded, http=Patient, ws="none", lifespan="off", log_config=None, access_log=False,
                server_header=False, date_header=False, proxy_headers=False,
                limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=_KEEP_SECONDS,
                timeout_graceful_shutdown=2,
            )
        )  # fmt: skip

    def _turned_away(self, problem: Problem) -> None:
        self._desk.metrics.request("", problem.status, None)
        log("turned_away", status=problem.status, code=problem.code)

    def _start(self, spec: Spec) -> Start:
        return functools.partial(
            self._engine.serve, Path(spec.path), spec.plan.chosen.settings, host=self._socket, port=0,
            alias=spec.model.name, embeds=spec.model.embeds, start_seconds=spec.start_seconds,
        )  # fmt: skip

    async def _limits(self) -> Limits:
        """Of the plan; whether the model knows tools is asked of the engine, and taken for granted if it is away."""
        with contextlib.suppress(OSError):
            return replace(self._spec.limits, tools=await self._relay.knows_tools())
        return self._spec.limits

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: self._soon(self._stop()))
        loop.add_signal_handler(signal.SIGHUP, lambda: self._soon(self._reload()))

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        """The first signal lets answers end; a second one does not."""
        gate, limit = self._desk.gate, self._spec.drain_seconds
        if not gate.ended:
            log("stopping", in_flight=gate.in_flight, waiting=gate.waiting, at_most_seconds=limit)
            gate.end()
            await gate.empty(limit)
        self._stopping.set()

    async def _reload(self) -> None:
        """Read the plan again, and serve by it; without a plan file the engine is started anew. One at a time."""
        gate = self._desk.gate
        async with self._changing:
            before = self._spec
            try:
                self._spec = _renewed(before)
                log("reload", plan=self._spec.plan_file)
                gate.close()
                await gate.empty(self._spec.drain_seconds)
                if not gate.ended:
                    await self._keeper.replace(self._start(self._spec), self._spec.stall_seconds)
            except Exception as error:  # whatever it is: the gate must not stay closed
                self._spec = before
                log("reload_failed", why=str(error), hint=getattr(error, "hint", ""))
            self._desk.limits, self._desk.usual_tokens = await self._limits(), self._spec.usual_tokens
            self._desk.metrics.plan(self._spec.plan)
            self._desk.plans += 1
            if not gate.ended:
                gate.open(self._spec.rules)


def _renewed(spec: Spec) -> Spec:
    """The spec with the plan as its file has it now. Raises UserError where that is none for the model served."""
    if spec.plan_file is None:
        return spec
    plan = store.read_json(Path(spec.plan_file), Plan)
    check_plan(plan, spec.plan_file, spec.model, spec.path)
    return replace(spec, plan=plan, stall_seconds=max(spec.stall_seconds, stall_seconds(plan)))


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Unavailable where the port is taken meanwhile."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="`--port 0` takes a free one"
        ) from error


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
