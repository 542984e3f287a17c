"""The service: the app factory, and running it on a free port or saying why it cannot. How it ends: :mod:`app.stopping`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from app.api import (
    access,
    audit,
    cohorts,
    corpora,
    document,
    exports,
    grow,
    guideline_evidence,
    guidelines,
    health,
    imports,
    job_files,
    jobs,
    keys,
    mappings,
    metrics,
    plan,
    predictions,
    problems,
    pushing,
    recommend,
    recommendations,
    run_changes,
    run_curves,
    runs,
    scopes,
    train,
    workers,
)
from app.api.service import Service
from app.dashboard import routes as page_routes
from app.guidelines.refitter import Refitter
from app.jobs.launchers.base import Launcher
from app.jobs.launchers.exec import ExecLauncher
from app.jobs.launchers.exec_settings import read_exec_settings
from app.jobs.launchers.local import LocalLauncher
from app.jobs.supervisor import Supervisor
from app.loading import loading
from app.observe.logs import log_to_stderr
from app.observe.requests import RequestLog
from app.opening import StartError, open_database
from app.records import write_json_atomically
from app.settings import LOOPBACK_HOSTS, Settings
from app.stopping import StoppableServer, stop_loops
from app.store import keys as key_store
from app.store.database import Database
from fitting.errors import InputError

SERVICE_FILE = "service.json"
LOCK_FILE = "service.lock"
# Of a JSON body; an import of log files has a limit of its own.
MAX_BODY_BYTES = 8_000_000


def create_app(settings: Settings) -> FastAPI:
    """The service over `settings.data_dir`, its database migrated; its launcher loop runs while the app does.

    Raises:
        StartError: the database cannot be opened or migrated, it holds no key where one is needed, an export URL cannot be
            used, or a launcher's settings are wrong.
    """
    try:
        _ = settings.allowed_export_urls
    except InputError as error:
        raise StartError(f"--export-to: {error}") from None
    for folder in (settings.data_dir, settings.runs_dir, settings.corpora_dir):
        folder.mkdir(parents=True, exist_ok=True)
    launchers = _launchers(settings)
    database = open_database(settings)
    _check_keys(settings, database)
    owner = f"{socket.gethostname()}:{settings.data_dir.resolve()}"
    refitter = Refitter(database, owner=owner, after_seconds=settings.refit_after_seconds)
    supervisor = Supervisor(
        database,
        launchers,
        owner=owner,
        on_run_ended=refitter.ask,
        # A database of its own holds no jobs of other services: there, one whose folder moved fails and says so.
        runs_dir=settings.runs_dir.resolve() if settings.database_url else None,
        lease_seconds=settings.lease_seconds,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        refitter.start()
        supervisor.start()
        yield
        stop_loops({"launcher": supervisor.stop, "refitter": refitter.stop})
        database.close()

    app = FastAPI(
        title="Growthlaw",
        version=version("growthlaw"),
        summary="Whether, when and by how much to grow a model during pre-training, learned from your own runs.",
        lifespan=lifespan,
    )
    app.state.service = service = Service(settings, database, supervisor, refitter)
    problems.install(app)
    access.install(app, settings, database)
    app.add_middleware(RequestLog, metrics=service.metrics)  # the last is the outermost
    for module in (
        recommend,
        recommendations,
        plan,
        grow,
        train,
        jobs,
        job_files,
        predictions,
        exports,
        workers,
        imports,
        pushing,
        mappings,
        runs,
        cohorts,
        run_changes,
        run_curves,
        guidelines,
        guideline_evidence,
        corpora,
        health,
        keys,
        audit,
        metrics,
    ):
        scopes.check_scopes(module.router.routes)
        # At the routes, so that what is refused leaves as a problem like all else.
        app.include_router(module.router, max_body_size=MAX_BODY_BYTES)
    app.router.routes.extend(page_routes())
    scopes.check_scopes(app.routes)
    document.install(app)
    return app


def _check_keys(settings: Settings, database: Database) -> None:
    with database.read() as session:
        any_key = key_store.any_key_in_use(session)
    if settings.needs_key and not any_key:
        database.close()
        why = (
            f"--host is {settings.host}, which lets other machines in"
            if settings.host not in LOOPBACK_HOSTS
            else "--require-key or --allowed-host asks for a key"
        )
        raise StartError(
            f"{why}, but {database.name} holds no key; make the first one with `growthlaw keys create NAME --scope admin` "
            "(with the same --data-dir or GROWTHLAW_DATABASE_URL)"
        )
    if any_key and not settings.needs_key:
        structlog.get_logger().warning(
            "keys_not_required",
            reason="on loopback none is needed; behind a proxy, or where others use this machine, start with --require-key",
        )


def _launchers(settings: Settings) -> list[Launcher]:
    runs_dir = settings.runs_dir.resolve()
    launchers: list[Launcher] = [LocalLauncher(runs_dir, num_slots=settings.num_slots)]
    if settings.exec_file is not None:
        try:
            launchers.append(ExecLauncher(runs_dir, read_exec_settings(settings.exec_file)))
        except InputError as error:
            raise StartError(f"--exec-file {settings.exec_file}: {error}") from None
    if settings.ray_address is not None:
        launchers.append(_ray_launcher(settings, settings.ray_address))
    return launchers


def _ray_launcher(settings: Settings, address: str) -> Launcher:
    """The Ray cluster of the settings. One that is away is waited for, one that refuses us is not.

    Raises:
        StartError: the address or the token is wrong.
    """
    # Their HTTP client takes a while to load, and few services have a Ray cluster.
    from app.jobs.launchers.ray import RayLauncher
    from app.jobs.launchers.ray_api import RayApi, RayRefusedError, RayToken

    try:
        api = RayApi(address, RayToken(settings.ray_token, settings.ray_token_file))
        version = api.version()
    except (InputError, RayRefusedError) as error:
        raise StartError(str(error)) from None
    except OSError as error:
        structlog.get_logger().warning("ray_away", reason=str(error))
    else:
        structlog.get_logger().info("ray_attached", address=api.address, ray=version)
    return RayLauncher(settings.runs_dir.resolve(), api, python=settings.ray_python)


def serve(settings: Settings, on_ready: Callable[[dict[str, Any]], None] = lambda service: None) -> None:
    """Serve until SIGINT or SIGTERM. With port 0 a free one is taken; `service.json` and `on_ready` tell which.

    Raises:
        StartError: a key is needed and there is none; the port, the certificate or the data directory is in use or cannot be
            used.
    """
    with _locked(settings.data_dir), _bound_socket(settings.host, settings.port) as listener:
        log_to_stderr()
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"{'https' if settings.ssl_certfile else 'http'}://{host}:{port}"
        service_file = settings.data_dir / SERVICE_FILE
        service = {"url": url, "pid": os.getpid(), "data_dir": str(settings.data_dir.resolve())}
        with loading():
            app = create_app(settings)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=settings.stop_seconds,
            ssl_certfile=settings.ssl_certfile, ssl_keyfile=settings.ssl_keyfile,
        )  # fmt: skip
        try:
            config.load()
        except OSError as error:  # ssl.SSLError is one
            raise StartError(
                f"--ssl-certfile {settings.ssl_certfile} with --ssl-keyfile {settings.ssl_keyfile} cannot be used ({error}); "
                "give a PEM certificate and its key without a password"
            ) from None
        write_json_atomically(service_file, service)
        on_ready(service)
        try:
            structlog.get_logger().info(
                "serving", url=url, pages=f"{url}/ui/", docs=f"{url}/docs", data_dir=str(settings.data_dir)
            )
            StoppableServer(
                config,
                on_stop=app.state.service.stop_begins,
                on_cut_short=lambda: service_file.unlink(missing_ok=True),
            ).run(sockets=[listener])
        finally:
            service_file.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """One service a data directory: two would start the same jobs."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = open(data_dir / LOCK_FILE, "w")  # noqa: SIM115 - held until the service ends
    except OSError as error:
        raise StartError(f"--data-dir {data_dir} cannot be used ({error.strerror}); choose another") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = "unknown"
            with contextlib.suppress(OSError, ValueError):
                pid = json.loads((data_dir / SERVICE_FILE).read_text(encoding="utf-8"))["pid"]
            raise StartError(
                f"--data-dir {data_dir} is in use by another growthlaw service (pid {pid}); stop it, or choose another "
                "directory"
            ) from None
        yield


@contextlib.contextmanager
def _bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listener:
        try:
            listener.bind((host, port))
        except OSError as error:
            raise StartError(
                f"--port {port} on {host} cannot be used ({error.strerror}); stop what listens there or choose another "
                "(--port 0 takes a free one)"
            ) from None
        yield listener
