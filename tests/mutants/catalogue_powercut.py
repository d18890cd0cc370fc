"""What makes a task outlive a power cut, taken away: mutants that only a cut shows."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch

__all__ = ["MUTANTS"]

SYNCING: Final = "idemreg/sqlite/syncing.py"
UPKEEP: Final = "idemreg/sqlite/upkeep.py"

MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "full-is-normal",
        "commits of durable requests are not synced",
        (Patch(SYNCING, "if self._index.copies.raw == self._synced:", "if self._index.copies.raw:"),),
    ),
    Mutant(
        "finish-not-synced",
        "an end is not synced before it is acknowledged",
        (
            Patch("idemreg/sqlite/hot.py", "if is_stored and end.durable:", "if False:"),
            Patch("idemreg/sqlite/hot.py", "Write(succeed, durable=end.durable,", "Write(succeed, durable=False,"),
            Patch("idemreg/sqlite/backend.py", "(finish, durable=are_durable(ends))", "(finish, durable=False)"),
        ),
    ),
    Mutant(
        "claim-not-synced",
        "a claim under hold is not synced before the body is entered",
        (
            Patch(
                "idemreg/sqlite/hot.py",
                "self._is_durable = wanted.durable and wanted.policy.on_crash is not RERUN",
                "self._is_durable = False",
            ),
            Patch(
                "idemreg/sqlite/claiming.py",
                "return any(one.durable and _syncs(one, claim.policy",
                "return False and any(one.durable and _syncs(one, claim.policy",
            ),
        ),
    ),
    Mutant(
        "reader-does-not-join",
        "a final row is answered from as soon as it is visible, before it is durable",
        (
            Patch(
                "idemreg/sqlite/database.py",
                "    def seen_final(self, *, durable: bool) -> None:\n",
                "    def seen_final(self, *, durable: bool) -> None:\n        durable = False\n",
            ),
        ),
    ),
    Mutant(
        "header-after-sync",
        "what is published as covered is read behind the sync, and tells of what the sync never saw",
        (
            Patch(
                SYNCING,
                "self._publish(record, header)",
                "self._publish(record, self._index.header() or NO_HEADER)",
            ),
        ),
    ),
    Mutant(
        "done-before-sync",
        "the end of a sync is published at its beginning",
        (
            Patch(
                SYNCING,
                "self._put(_BEGUN_OFFSET, _NUMBER.pack(record.begun + 1))",
                "self._put(_BEGUN_OFFSET, _NUMBER.pack(record.begun + 1) * 2)",
            ),
        ),
    ),
    Mutant(
        "begun-not-written",
        "the number of a sync is told when it ends: who joins in between takes it for a later one",
        (Patch(SYNCING, "self._put(_BEGUN_OFFSET, _NUMBER.pack(record.begun + 1))", "pass"),),
    ),
    Mutant(
        "earlier-sync-taken",
        "who joins takes a sync that began before he committed for a later one",
        (Patch(SYNCING, "self._join(record.begun, begun)", "self._join(record.begun - 1, begun)"),),
    ),
    Mutant(
        "own-sync-taken",
        "a thread takes a sync of its process that began before it committed for a later one",
        (Patch(SYNCING, "self._join(record.begun, begun)", "self._join(record.begun, begun - 1)"),),
    ),
    Mutant(
        "failed-not-noted",
        "a failed sync is forgotten: the next one says OK",
        (
            Patch(
                SYNCING,
                '        self._failed = True\n        self._synced = b""\n        with contextlib',
                "        return\n        with contextlib",
            ),
        ),
    ),
    Mutant(
        "effects-not-synced",
        "a transaction of effects is not synced",
        (
            Patch(
                "idemreg/sqlite/backend.py",
                "database.long_write(durable=durable)",
                "database.long_write(durable=False)",
            ),
        ),
    ),
    Mutant(
        "arguments-dropped-apart",
        "kept arguments are removed by a commit of their own, before the end of their task is stored",
        (
            Patch(
                "idemreg/sqlite/backend.py",
                "            try:\n                opened.database.write(finish, durable=are_durable(ends))",
                "            from idemreg.model import Status\n"
                "            from idemreg.sqlite import arguments\n"
                "            for end in ends:\n"
                "                if end.status is Status.SUCCEEDED:\n"
                "                    opened.database.write(\n"
                "                        lambda connection, end=end: arguments.remove(connection, end.task_id),\n"
                "                        durable=False)\n"
                "            try:\n                opened.database.write(finish, durable=are_durable(ends))",
            ),
        ),
    ),
    Mutant(
        "epoch-not-synced",
        "the commit that raises the epoch after a boot is not synced: the tokens of the lost epoch come back",
        (
            Patch(
                UPKEEP,
                '    connection.execute("BEGIN IMMEDIATE")\n    try:\n'
                "        registered = _registered(connection, schema)\n",
                '    connection.pragma("synchronous", 0)\n    connection.execute("BEGIN IMMEDIATE")\n    try:\n'
                "        registered = _registered(connection, schema)\n",
            ),
            Patch(
                UPKEEP, "    highest = noted.raise_epoch(", "    highest = 0 and noted.raise_epoch("
            ),  # knows it as well
        ),
    ),
    Mutant(
        "checkpoint-not-synced",
        "the database is not synced before the -wal, which has all of it, begins anew",
        (
            Patch(
                "idemreg/sqlite/checkpoints.py",
                '    return connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()[0]\n',
                '    before = connection.pragma("synchronous")\n'
                '    connection.pragma("synchronous", 0)\n'
                "    try:\n"
                '        return connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()[0]\n'
                "    finally:\n"
                '        connection.pragma("synchronous", before)\n',
            ),
        ),
    ),
)
