"""The code of docs/fencing.md is run on real databases, and never loses an update."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import psycopg
import pymysql
import pytest
import redis

from helpers.databases import Settings, mariadb_server, postgres_server
from helpers.servers import Server
from helpers.wait import eventually

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "fencing.md"
_BLOCK = re.compile(
    r"^<!-- recipe: (?P<name>\S+) -->\n```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
BLOCKS = [found.groupdict() for found in _BLOCK.finditer(PAGE.read_text("utf-8"))]

# As the store issues them: the time in microseconds, and at least one more for each new owner.
OLD, NEW = 1_790_000_000_000_000, 1_790_000_000_000_001

# Deadlines that only a broken machine reaches.
_ENDS_WITHIN = 300.0

# How far the old owner of a race runs ahead of the new one, beyond its lead.
_SAVES_AT_ONCE = 12

_SQL_WRITE = "UPDATE player SET state = %s, fence = %s WHERE id = %s AND fence <= %s"
_SQL_READ = "SELECT state FROM player WHERE id = %s"
_LUA_WRITE = """
local fence = redis.call('HGET', KEYS[1], 'fence')
if tonumber(fence) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'state', ARGV[2])
return 1
"""


def blocks(name: str, language: str) -> list[str]:
    """The code of one recipe, in the order of the page."""
    return [b["text"] for b in BLOCKS if (b["name"], b["language"]) == (name, language)]


def recipe(*names: str) -> SimpleNamespace:
    """What the blocks of Python define, together."""
    namespace: dict[str, Any] = {}
    for name in ("all", *names):
        assert blocks(name, "python"), f"{PAGE.name} has no Python for the recipe {name}"
        for text in blocks(name, "python"):
            exec(compile(text, f"{PAGE.name}, recipe {name}", "exec"), namespace)
    return SimpleNamespace(**namespace)


@dataclass
class Database:
    """A database with the code of its recipe, and what the recipe warns of."""

    code: SimpleNamespace
    open: Callable[[], AbstractContextManager[Any]]
    read: Callable[[Any, str], str | None]
    """The state, without raising the fence."""
    write: Callable[[Any, str, int, str], bool]
    """Checks the fence in the write alone; says whether it was done."""
    clients: ExitStack = field(default_factory=ExitStack)

    def connect(self) -> Any:
        """One more client; closed when the test ends."""
        return self.clients.enter_context(self.open())


def sql_database(name: str, open_: Callable[[], AbstractContextManager[Any]]) -> Database:
    placeholder = "?" if name == "sqlite" else "%s"

    def execute(db: Any, statement: str, *values: object) -> Any:
        cursor = db.cursor()
        cursor.execute(statement.replace("%s", placeholder), values)
        return cursor

    def read(db: Any, uid: str) -> str | None:
        with closing(execute(db, _SQL_READ, uid)) as cursor:
            state: str | None = cursor.fetchone()[0]
            return state

    def write(db: Any, uid: str, token: int, state: str) -> bool:
        with closing(execute(db, _SQL_WRITE, state, token, uid, token)) as cursor:
            return bool(cursor.rowcount == 1)

    return Database(recipe(name), open_, read, write)


def redis_database(server: Server) -> Database:
    def open_() -> AbstractContextManager[Any]:
        return closing(redis.Redis.from_url(server.url, decode_responses=True))

    def read(db: Any, uid: str) -> str | None:
        state: str | None = db.hget(f"player:{uid}", "state")
        return state

    def write(db: Any, uid: str, token: int, state: str) -> bool:
        return bool(db.eval(_LUA_WRITE, 1, f"player:{uid}", token, state) == 1)

    return Database(recipe("redis"), open_, read, write)


def mariadb_client(settings: Settings, isolation: str) -> AbstractContextManager[Any]:
    level = f"SET SESSION TRANSACTION ISOLATION LEVEL {isolation}"
    return closing(pymysql.connect(**settings, autocommit=True, init_command=level))


def sqlite_client(file: Path) -> AbstractContextManager[Any]:
    # The test opens all clients and hands each to one thread.
    return closing(
        sqlite3.connect(file, isolation_level=None, timeout=120, check_same_thread=False)
    )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Settings]:
    with postgres_server() as settings:
        settings["autocommit"] = True
        with psycopg.connect(**settings) as db:
            for name in ("postgresql", "postgresql-tables"):
                for statement in blocks(name, "sql"):
                    db.execute(statement.encode())
        yield settings


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Settings]:
    with mariadb_server() as settings:
        with mariadb_client(settings, "READ COMMITTED") as db, db.cursor() as cursor:
            for statement in blocks("mariadb", "sql"):
                cursor.execute(statement)
        yield settings


_MAKERS: dict[str, Callable[[pytest.FixtureRequest], Database]] = {}


def maker(name: str) -> Callable[[Callable[[Any], Database]], Callable[[Any], Database]]:
    def register(make: Callable[[Any], Database]) -> Callable[[Any], Database]:
        _MAKERS[name] = make
        return make

    return register


@maker("postgresql")
def _postgresql(request: pytest.FixtureRequest) -> Database:
    settings = request.getfixturevalue("postgres")
    return sql_database("postgresql", lambda: closing(psycopg.connect(**settings)))


@maker("mariadb-repeatable-read")
def _mariadb_default(request: pytest.FixtureRequest) -> Database:
    settings = request.getfixturevalue("mariadb")
    return sql_database("mariadb", lambda: mariadb_client(settings, "REPEATABLE READ"))


@maker("mariadb-read-committed")
def _mariadb_read_committed(request: pytest.FixtureRequest) -> Database:
    settings = request.getfixturevalue("mariadb")
    return sql_database("mariadb", lambda: mariadb_client(settings, "READ COMMITTED"))


@maker("valkey")
def _valkey(request: pytest.FixtureRequest) -> Database:
    return redis_database(request.getfixturevalue("valkey_server"))


@maker("redis7")
def _redis7(request: pytest.FixtureRequest) -> Database:
    return redis_database(request.getfixturevalue("redis7_server"))


@maker("sqlite")
def _sqlite(request: pytest.FixtureRequest) -> Database:
    file = request.getfixturevalue("tmp_path") / "game.db"
    with sqlite_client(file) as db:
        for statement in blocks("sqlite", "sql"):
            db.execute(statement)
    return sql_database("sqlite", lambda: sqlite_client(file))


@pytest.fixture(params=sorted(_MAKERS))
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Each database in turn; a test's users are its own."""
    made = _MAKERS[request.param](request)
    with made.clients:
        yield made


@pytest.fixture
def uid(request: pytest.FixtureRequest) -> str:
    """A user of this test's own."""
    return str(request.node.name)


def test_load_returns_state(database: Database, uid: str) -> None:
    code, db = database.code, database.connect()
    assert code.load(db, uid, OLD) is None
    code.save(db, uid, OLD, "gold=100")
    assert code.load(db, uid, NEW) == "gold=100"
    with pytest.raises(code.Fenced):
        code.load(db, uid, OLD)
    # The refused load has changed nothing.
    assert code.load(db, uid, NEW) == "gold=100"


def test_old_write_is_refused(database: Database, uid: str) -> None:
    code, old, new = database.code, database.connect(), database.connect()
    code.load(old, uid, OLD)
    code.save(old, uid, OLD, "gold=100")
    assert code.load(new, uid, NEW) == "gold=100"
    with pytest.raises(code.Fenced):
        code.save(old, uid, OLD, "gold=70")
    assert database.read(new, uid) == "gold=100"


def test_same_token_repeats(database: Database, uid: str) -> None:
    code, db = database.code, database.connect()
    for state in ("gold=1", "gold=1", "gold=2", "naïve 🎲", None, None, "gold=3"):
        code.load(db, uid, OLD)
        code.save(db, uid, OLD, state)
        assert code.load(db, uid, OLD) == state
        code.save(db, uid, OLD, state)
        assert database.read(db, uid) == state


def test_save_needs_load(database: Database, uid: str) -> None:
    code, db = database.code, database.connect()
    with pytest.raises(code.Fenced):
        code.save(db, uid, OLD, "gold=1")
    code.load(db, uid, OLD)
    # A newer owner that has not loaded has not read either.
    with pytest.raises(code.Fenced):
        code.save(db, uid, NEW, "gold=1")
    assert database.read(db, uid) is None


def test_deleted_user_stays_fenced(database: Database, uid: str) -> None:
    code, db = database.code, database.connect()
    code.load(db, uid, NEW)
    code.save(db, uid, NEW, "gold=1")
    code.save(db, uid, NEW, None)
    with pytest.raises(code.Fenced):
        code.load(db, uid, OLD)


def test_widest_tokens_differ(database: Database, uid: str) -> None:
    code, db = database.code, database.connect()
    widest = 2**53
    code.load(db, uid, widest - 1)
    code.save(db, uid, widest - 1, "gold=1")
    assert code.load(db, uid, widest) == "gold=1"
    with pytest.raises(code.Fenced):
        code.save(db, uid, widest - 1, "gold=2")
    with pytest.raises(code.Fenced):
        code.load(db, uid, widest - 1)
    code.save(db, uid, widest, "gold=3")
    assert database.read(db, uid) == "gold=3"


def test_users_differ_by_case(database: Database, uid: str) -> None:
    code, db = database.code, database.connect()
    code.load(db, uid.lower(), NEW)
    code.save(db, uid.lower(), NEW, "gold=1")
    assert code.load(db, uid.upper(), OLD) is None


def test_fencing_writes_alone_loses(database: Database, uid: str) -> None:
    # The history of the page: each write checks the token, and both are done.
    code, old, new = database.code, database.connect(), database.connect()
    code.load(old, uid, OLD)
    code.save(old, uid, OLD, "gold=100")
    assert database.read(old, uid) == database.read(new, uid) == "gold=100"
    assert database.write(old, uid, OLD, "gold=70")  # acknowledged
    assert database.write(new, uid, NEW, "gold=150")  # 100 + 50: what A spent is back
    assert database.read(new, uid) == "gold=150"
    # From here on A is refused, which is too late.
    assert not database.write(old, uid, OLD, "gold=60")


def test_fenced_load_loses_nothing(database: Database, uid: str) -> None:
    # The same history with the recipe: A's write, which B has not read, is never acknowledged.
    code, old, new = database.code, database.connect(), database.connect()
    code.load(old, uid, OLD)
    code.save(old, uid, OLD, "gold=100")
    assert code.load(old, uid, OLD) == code.load(new, uid, NEW) == "gold=100"
    with pytest.raises(code.Fenced):
        code.save(old, uid, OLD, "gold=70")
    code.save(new, uid, NEW, "gold=150")
    assert database.read(new, uid) == "gold=150"


class Race:
    """An old owner that writes until it is refused, and a new one that comes meanwhile."""

    def __init__(self, database: Database, uid: str, lead: int) -> None:
        """lead: how many saves of the old owner are acknowledged before the new one begins."""
        self._code, self._uid, self._lead = database.code, uid, lead
        self._led, self._over = threading.Event(), threading.Event()
        if lead == 0:
            self._led.set()

    def old(self, db: Any) -> list[str]:
        """The acknowledged updates; it ends when it is refused."""
        done: list[str] = []
        try:
            state = self._code.load(db, self._uid, OLD) or ""
            while True:
                # SQLite lets a writer that never rests starve the others.
                if len(done) == self._lead + _SAVES_AT_ONCE:
                    assert self._over.wait(_ENDS_WITHIN)
                assert len(done) <= self._lead + _SAVES_AT_ONCE, "the new owner fences nothing"
                update = f"old{len(done)} "
                self._code.save(db, self._uid, OLD, state + update)
                state += update
                done.append(update)
                if len(done) >= self._lead:
                    self._led.set()
        except self._code.Fenced:
            return done
        finally:
            self._led.set()

    def new(self, db: Any, saves: int) -> list[str]:
        """The acknowledged updates: all of them."""
        done: list[str] = []
        try:
            assert self._led.wait(_ENDS_WITHIN)
            state = self._code.load(db, self._uid, NEW) or ""
            for number in range(saves):
                update = f"new{number} "
                self._code.save(db, self._uid, NEW, state + update)
                state += update
                done.append(update)
        finally:
            self._over.set()
        return done


def test_race_loses_no_update(database: Database, uid: str) -> None:
    old_db, new_db = database.connect(), database.connect()
    with ThreadPoolExecutor(2) as threads:
        for number in range(32):
            player = f"{uid}-{number}"
            race = Race(database, player, lead=number % 8)
            old = threads.submit(race.old, old_db)
            new = threads.submit(race.new, new_db, saves=number % 3 + 1)
            acknowledged = [*old.result(_ENDS_WITHIN), *new.result(_ENDS_WITHIN)]
            assert database.read(new_db, player) == "".join(acknowledged)


def test_first_row_by_two_owners(database: Database, uid: str) -> None:
    code, old_db, new_db = database.code, database.connect(), database.connect()
    together = threading.Barrier(2)

    def first(db: Any, player: str, token: int) -> bool:
        """Loads a user without a row; False if it was refused."""
        together.wait(_ENDS_WITHIN)
        try:
            assert code.load(db, player, token) is None
        except code.Fenced:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        for number in range(32):
            player = f"{uid}-{number}"
            old = threads.submit(first, old_db, player, OLD)
            new = threads.submit(first, new_db, player, NEW)
            old.result(_ENDS_WITHIN)
            assert new.result(_ENDS_WITHIN)
            with pytest.raises(code.Fenced):
                code.save(old_db, player, OLD, "old")
            code.save(new_db, player, NEW, "new")
            assert database.read(new_db, player) == "new"


@pytest.fixture
def tables(postgres: Settings) -> SimpleNamespace:
    """The recipe for state in other tables."""
    return recipe("postgresql", "postgresql-tables")


def load_during_save(
    postgres: Settings, isolation: psycopg.IsolationLevel, save: Callable[[Any], None], uid: str
) -> tuple[str | None, list[str]]:
    """What a new owner loads that came while `save` held the row in an open transaction."""
    code = recipe("postgresql", "postgresql-tables")
    with (
        psycopg.connect(**postgres) as old,
        psycopg.connect(**postgres) as new,
        psycopg.connect(**postgres) as watcher,
        ThreadPoolExecutor(1) as threads,
    ):
        new.isolation_level = isolation
        code.load(old, uid, OLD)
        with old.transaction():
            save(old)
            loaded = threads.submit(code.load_with_items, new, uid, NEW)
            blocked = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            eventually(lambda: watcher.execute(blocked, (new.info.backend_pid,)).fetchone())
        answer: tuple[str | None, list[str]] = loaded.result(_ENDS_WITHIN)
        return answer


def test_load_waits_for_other_tables(postgres: Settings, tables: SimpleNamespace, uid: str) -> None:
    def save(db: Any) -> None:
        tables.save_with_item(db, uid, OLD, "gold=70", "sword")

    level = psycopg.IsolationLevel.READ_COMMITTED
    assert load_during_save(postgres, level, save, uid) == ("gold=70", ["sword"])
    with psycopg.connect(**postgres) as db, pytest.raises(tables.Fenced):
        tables.save_with_item(db, uid, OLD, "gold=60", "shield")


def test_stricter_level_fails_openly(postgres: Settings, tables: SimpleNamespace, uid: str) -> None:
    def save(db: Any) -> None:
        tables.save_with_item(db, uid, OLD, "gold=70", "sword")

    with pytest.raises(psycopg.errors.SerializationFailure):
        load_during_save(postgres, psycopg.IsolationLevel.REPEATABLE_READ, save, uid)
    with psycopg.connect(**postgres) as db:
        assert tables.load_with_items(db, uid, NEW) == ("gold=70", ["sword"])


def test_lock_without_change_is_not_enough(postgres: Settings, uid: str) -> None:
    # Why the page forbids SELECT FOR UPDATE in place of the save: the new owner misses the sword.
    def save(db: Any) -> None:
        db.execute("SELECT 1 FROM player WHERE id = %s AND fence = %s FOR UPDATE", (uid, OLD))
        db.execute("INSERT INTO item (player, name) VALUES (%s, 'sword')", (uid,))

    level = psycopg.IsolationLevel.REPEATABLE_READ
    assert load_during_save(postgres, level, save, uid) == (None, [])


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux signals a child at its parent's death"
)
def test_killed_run_stops_databases() -> None:
    program = (
        "import signal; from helpers.databases import *\n"
        "with postgres_server() as postgres, mariadb_server() as mariadb:\n"
        "    print(postgres['host'], mariadb['unix_socket'], flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    with run, run.stdout:
        postgres, mariadb = map(Path, run.stdout.readline().split())
        files = [postgres / "data" / "postmaster.pid", mariadb.with_name("pid")]
        pids = [int(file.read_text().split()[0]) for file in files]
        assert all(psutil.pid_exists(pid) for pid in pids)
        os.kill(run.pid, signal.SIGKILL)
    eventually(lambda: all(_is_gone(pid) for pid in pids), within=_ENDS_WITHIN)
    # Processes of PostgreSQL may still write while the folder is being removed.
    for folder in (postgres, mariadb.parent):
        eventually(partial(_is_removed, folder))


def _is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _is_removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def test_every_recipe_is_run() -> None:
    text = PAGE.read_text("utf-8")
    assert text.count("<!-- recipe:") == len(BLOCKS)
    run = {"all", "postgresql", "postgresql-tables", "mariadb", "redis", "sqlite"}
    assert {block["name"] for block in BLOCKS} == run
    # The only block without a mark is the one whose heading says that nothing has run it.
    assert text.count("\n```") == 2 * len(BLOCKS) + 2
    assert "## MongoDB (not run in the tests)" in text
