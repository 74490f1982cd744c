"""Features on disk: one SQLite table, indexed by network and image, checksummed and bounded."""

import errno
import json
import logging
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

log = logging.getLogger("spectacles")

SCHEMA = """
PRAGMA page_size = 16384;
PRAGMA auto_vacuum = FULL;
CREATE TABLE IF NOT EXISTS networks (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, used INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS features (
    id INTEGER PRIMARY KEY, network INTEGER NOT NULL, image TEXT NOT NULL, checksum INTEGER NOT NULL,
    vector BLOB NOT NULL, UNIQUE (network, image)
);
"""
READ = """
SELECT features.id, image, checksum, vector FROM features JOIN networks ON networks.id = network
WHERE name = ? AND image IN (SELECT value FROM json_each(?))
"""
PATIENCE = 60.0
"""Seconds to wait for another process that writes."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
Features = dict[str, np.ndarray]
"""Name of an image (and view) -> (D,) float32."""


class FeatureStore:
    """Safe with several processes and after a crash. A row that its checksum contradicts, or a whole file that is not
    a database, is removed with a warning: features can be computed again."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """`max_bytes` of the file; 0: nothing is stored."""
        self.path, self.max_bytes = path, max_bytes

    def read(self, network: str, images: Sequence[str]) -> Features:
        """Those of the images that are stored; of others nothing is read."""
        if not images or not self.path.is_file():
            return {}
        try:
            with self._transaction() as database:
                database.execute("UPDATE networks SET used = ? WHERE name = ?", (time.time_ns(), network))
                rows = database.execute(READ, (network, json.dumps(list(images)))).fetchall()
                damaged = [row for row in rows if _checksum(network, row[1], row[3]) != row[2]]
                database.executemany("DELETE FROM features WHERE id = ?", [(row[0],) for row in damaged])
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in DAMAGED:
                raise self._failure(error) from error
            log.warning("warning: %s cannot be read (%s); its features are computed again.", self.path, error)
            for suffix in ("", "-journal"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            return {}
        if damaged:
            log.warning("warning: %d features in %s are damaged and computed again.", len(damaged), self.path)
        lost = {row[0] for row in damaged}
        return {image: np.frombuffer(vector, np.float32) for id_, image, _, vector in rows if id_ not in lost}

    def write(self, network: str, features: Mapping[str, np.ndarray]) -> None:
        """All or nothing. To stay within `max_bytes` features of other networks are removed, those of the least
        recently used one first, then the oldest of this one. Raises OSError."""
        if not self.max_bytes:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._transaction() as database:
                number = _use(database, network)
                rows = (
                    (number, image, _checksum(network, image, content := vector.tobytes()), content)
                    for image, vector in features.items()
                )
                database.executemany(
                    "INSERT OR REPLACE INTO features (network, image, checksum, vector) VALUES (?, ?, ?, ?)", rows
                )
                _make_room(database, number, self.max_bytes)
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)) as database:
            database.executescript(SCHEMA)
            database.execute("BEGIN IMMEDIATE")
            with database:  # commits, or rolls back
                yield database

    def _failure(self, error: sqlite3.DatabaseError) -> OSError:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        return OSError(errno.ENOSPC if full else errno.EIO, str(error), str(self.path))


def _use(database: sqlite3.Connection, network: str) -> int:
    """The network's number; from now on it is the most recently used one."""
    statement = "INSERT INTO networks (name, used) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET used = excluded.used"
    database.execute(statement, (network, time.time_ns()))
    return int(database.execute("SELECT id FROM networks WHERE name = ?", (network,)).fetchone()[0])


def _make_room(database: sqlite3.Connection, network: int, max_bytes: int) -> None:
    while (used := _bytes_used(database)) > max_bytes:
        oldest = database.execute("SELECT id FROM networks WHERE id != ? ORDER BY used LIMIT 1", (network,)).fetchone()
        if oldest is not None:
            database.execute("DELETE FROM features WHERE network = ?", oldest)
            database.execute("DELETE FROM networks WHERE id = ?", oldest)
            continue
        rows = database.execute("SELECT count(*) FROM features").fetchone()[0]
        if not rows:
            return
        count = -(-rows * (used - max_bytes) // used)
        database.execute("DELETE FROM features WHERE id IN (SELECT id FROM features ORDER BY id LIMIT ?)", (count,))


def _bytes_used(database: sqlite3.Connection) -> int:
    pages, free, size = (
        int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _checksum(network: str, image: str, vector: bytes) -> int:
    return zlib.crc32(vector, zlib.crc32(f"{network} {image}".encode()))
