"""The file `study.db`: opened whatever its path, waited for while another program holds it, and read with care.

Optuna's storage takes a database URL; a path pasted into one loses what stands behind `?`, `%` or `#`, so the
connection is made here and the URL holds no path.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy.exc import OperationalError

from doge_lab.errors import UserError

STUDY = "study.db"
PATIENCE = 600.0
"""Seconds to wait for a database that another program has locked."""
BUSY = 1.0
"""Seconds that SQLite waits by itself: signals are heard in between."""

Result = TypeVar("Result")
_log = logging.getLogger("doge_lab")


class _Cursor(sqlite3.Cursor):
    def execute(self, *words: Any) -> Any:
        return _patiently(partial(super().execute, *words))

    def executemany(self, *words: Any) -> Any:
        return _patiently(partial(super().executemany, *words))


class _Connection(sqlite3.Connection):
    """A connection that waits while another program, such as a viewer, has the database locked."""

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def commit(self) -> None:
        _patiently(super().commit)


def _patiently(call: Callable[[], Result]) -> Result:
    """`call`, tried again while the database is locked, for `PATIENCE` seconds; says so once."""
    began, said = time.monotonic(), False
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() - began > PATIENCE:
                raise
            if not said:
                _log.warning("the study is locked by another program; waiting up to %.0f minutes", PATIENCE / 60)
                said = True


def open_storage(path: Path) -> RDBStorage:
    """Optuna's storage in the SQLite file `path`, which is made when there is none."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=BUSY, check_same_thread=False, factory=_Connection)

    return RDBStorage(f"sqlite:///{STUDY}", engine_kwargs={"creator": connect})


def close_storage(storage: RDBStorage) -> None:
    """Let go of the file."""
    storage.remove_session()
    storage.engine.dispose()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a damaged study raises is one line: what is wrong, what is left, the way out."""
    said_by_optuna = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it warns of the damage in lines of its own
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a flipped byte comes up as a wrong key, type, encoding or page
        if is_locked(error):
            raise UserError("is locked by another program; close it and try again", str(path)) from None
        cause = getattr(error.__cause__, "orig", None) or error  # the database's own words, not Optuna's about them
        said = f"{type(cause).__name__}: {_first_line(cause)}"
        raise UserError(f"the study is damaged ({said}); {way_out(path)}", str(path)) from None
    finally:
        optuna.logging.set_verbosity(said_by_optuna)


def way_out(path: Path) -> str:
    return (
        f"finished runs are kept in {path.parent / 'runs'}: move {path.name} away and search into the same folder "
        "again, which reads those it draws again"
    )


def is_locked(error: BaseException) -> bool:
    """Whether another program held the database for longer than `PATIENCE`."""
    known = (error, error.__cause__, error.__context__)
    return any(
        isinstance(each, OperationalError | sqlite3.OperationalError) and "locked" in str(each) for each in known
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:120]


def the_study(path: Path) -> tuple[Study, RDBStorage]:
    """The one study of doge_lab in `path`. Raises `UserError` for a file that is another's, damaged or empty."""
    try:
        if path.is_dir():
            raise UserError("is a folder, where the study of a search should be", str(path))
        if not path.exists():
            raise UserError(f"{path.parent} holds no {STUDY}; name the --out folder of a search")
    except OSError as error:  # a name that no file system takes, a folder that may not be entered
        raise UserError(f"cannot be read: {error.strerror}; name the --out folder of a search", str(path)) from None
    with reading(path):
        _require_tables(path)
        storage = open_storage(path)
        studies = optuna.get_all_study_summaries(storage)
        if len(studies) != 1:
            named = ", ".join(repr(study.study_name) for study in studies[:3]) or "none"
            raise UserError(f"holds {len(studies)} studies ({named}) instead of one; {way_out(path)}", str(path))
        name, known = studies[0].study_name, studies[0].user_attrs
        if not {"space", "seed", "confirmed"} <= known.keys():
            raise UserError(f"holds {name!r}, which is no search of doge_lab; choose another folder", str(path))
        return optuna.load_study(study_name=name, storage=storage), storage


def _require_tables(path: Path) -> None:
    """Optuna would write its tables into any SQLite file: one without them is not a study."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY)
    try:
        tables = {name for (name,) in _patiently(partial(_names_of_tables, connection))}
    finally:
        connection.close()
    if "studies" not in tables:
        raise UserError(f"holds no study; {way_out(path)}", str(path))


def _names_of_tables(connection: sqlite3.Connection) -> list[tuple[str]]:
    return connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
