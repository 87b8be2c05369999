"""The process: address, key, HTTP server and its end. A first SIGTERM or Ctrl-C lets accepted requests finish."""

import asyncio
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kava.console import tell
from kava.errors import ConfigError, first_line
from kava.serve.app import create_app
from kava.serve.guard import Guard
from kava.serve.log import log, log_to_stderr
from kava.serve.service import Service

HEADER_TIMEOUT = 10.0  # seconds in which a request's headers arrive


@dataclass(frozen=True)
class Address:
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()


class DrainingServer(uvicorn.Server):
    """While requests are under way after the first signal, new ones get a 503; then, or after `seconds`, it ends."""

    def __init__(self, config: uvicorn.Config, service: Service, guard: Guard, seconds: float):
        super().__init__(config)
        self._service, self._guard, self._seconds = service, guard, seconds
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining or not self.started:
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        self._service.draining = True
        self._loop.call_soon_threadsafe(self._begin_to_drain)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for sock in sockets or ():
            host, port = sock.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log("listening", url=url, model=self._service.model_name)

    def _begin_to_drain(self) -> None:
        self._drain = asyncio.get_running_loop().create_task(self._drained())

    async def _drained(self) -> None:
        log("draining", under_way=self._guard.active)
        end = self._loop.time() + self._seconds
        while self._guard.active and self._loop.time() < end:
            await asyncio.sleep(0.02)
        log("stopping", cut_off=self._guard.active)
        self.should_exit = True


class HeaderTimeout(H11Protocol):
    """Closes a connection whose next request's headers do not arrive in time, however slowly bytes come."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._end()
        elif self._timer is None:
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._timer = self.loop.call_later(HEADER_TIMEOUT, self._late)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def open_socket(address: Address, api_key: str | None) -> socket.socket:
    """A socket bound to the address, which does not listen yet. Beyond this machine only with a key."""
    try:
        family, _, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # the second: no name of a host can be so
        why = getattr(error, "strerror", None) or first_line(error)
        raise ConfigError(f"--host {address.host[:100]}: {why}", "give an address of this machine") from error
    if api_key is None and not (str(place[0]).startswith("127.") or place[0] == "::1"):
        message = f"--host {address.host} can be reached from other machines, and there is no key"
        raise ConfigError(message, "give --api_key_file FILE, or leave --host out")
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(place)
    except OSError as error:
        sock.close()
        where = f"--host {address.host} --port {address.port}"
        raise ConfigError(
            f"{where} cannot be used: {error.strerror}", "give another --port; 0 takes a free one"
        ) from error
    return sock


def read_key(file: Path | None, variable: str | None) -> str | None:
    """The key in a file, or that of the environment variable; None without either."""
    if file is None:
        if variable is not None and not variable.strip():
            raise ConfigError("KAVA_API_KEY is empty", "unset it, or put a key into it")
        return variable.strip() if variable is not None else None
    try:
        key = file.read_text(encoding="utf-8").strip()
        mode = file.stat().st_mode
    except UnicodeDecodeError as error:
        raise ConfigError(f"--api_key_file {file} is not UTF-8 text", "give a file that holds the key alone") from error
    except OSError as error:
        raise ConfigError(f"--api_key_file {file} cannot be read: {error.strerror}") from error
    if not key or len(key.split()) != 1:
        raise ConfigError(f"--api_key_file {file} must hold one word, the key", "such as: openssl rand -hex 32 > FILE")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        tell(f"note: others can read {file}; chmod 600 {file}")
    return key


def serve(
    service: Service,
    sock: socket.socket,
    address: Address,
    api_key: str | None,
    log_prompts: bool,
    drain_seconds: float,
) -> None:
    """Answers until a signal ends it, which is raised again afterwards."""
    log_to_stderr()
    names = {*address.allowed_hosts, address.host}
    guard = create_app(service, api_key, names, log_prompts)
    config = uvicorn.Config(
        guard, http=HeaderTimeout, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        timeout_keep_alive=10, timeout_graceful_shutdown=5, backlog=2048,
    )  # fmt: skip
    DrainingServer(config, service, guard, drain_seconds).run(sockets=[sock])
