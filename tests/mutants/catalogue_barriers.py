"""The mutants of what keeps two executions apart and what is told true: each barrier, with the others away.

A barrier of three layers hides the absence of any two. So each mutant says what is taken away besides (``without``);
its killer is then run twice: without the mutant, where the barrier that is left must be enough, and with it.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Patch
from tests.mutants.rows import Off, Row, mutants

__all__ = ["BARRIERS"]

TESTS: Final = "tests/barriers/"
SQLITE: Final = "idemreg/sqlite/"
TASKS: Final = SQLITE + "tasks.py"
ROWS: Final = SQLITE + "rows.py"
DATABASE: Final = SQLITE + "database.py"
WRITING: Final = SQLITE + "writing.py"
SYNCING: Final = SQLITE + "syncing.py"
OWNERS: Final = SQLITE + "owners.py"
BACKEND: Final = SQLITE + "backend.py"
LIVENESS: Final = "idemreg/liveness.py"
DECIDING: Final = "idemreg/deciding.py"

# --- a barrier, taken away ----------------------------------------------------------------------------------------


TURN_ASKED: Final = Patch(
    "idemreg/turn.py",
    "        for number in range(TRIES + YIELDS):\n",
    "        if self.lock == oslock.orders(WRITE_TURN)[0]:\n"
    "            return True\n"
    "        for number in range(TRIES + YIELDS):\n",
)
TURN_TRIED: Final = (
    Patch(
        WRITING,
        "cost as much as the gate itself\n            fcntl.fcntl(self._turn.fd, _SET_LOCK, self._turn.lock)\n",
        "cost as much as the gate itself\n            pass\n",
    ),
    Patch(
        WRITING,
        "            fcntl.fcntl(self._turn.fd, _SET_LOCK, self._turn.lock)\n"
        "        except OSError:\n            self._inside",
        "            pass\n        except OSError:\n            self._inside",
    ),
)
NO_TURN: Final = Off("write turn", (TURN_ASKED, *TURN_TRIED))

BEGINS: Final = "                    if not self.begins(connection):\n"
DEFERRED: Final = Patch(DATABASE, BEGINS, '                    if connection.execute("BEGIN").fetchall():\n')
# Each statement for itself; what was not committed by then is.
NO_TRANSACTION: Final = Off(
    "BEGIN IMMEDIATE",
    (
        Patch(DATABASE, BEGINS, "                    if not connection:\n"),
        Patch(
            DATABASE,
            '                connection.execute("COMMIT")\n            except apsw.Error as error:\n'
            "                is_committing",
            "                pass\n            except apsw.Error as error:\n                is_committing",
        ),
    ),
)

ROW_AS_READ: Final = '        " WHERE task_id = ? AND status = ? AND token = ?",\n        (\n'
ROW_AS_IT_IS: Final = '        " WHERE task_id = ? AND ? >= 0 AND ? >= 0",\n        (\n'
_OF_CLAIM: Final = "            wanted.name,\n"
_OF_SETTLEMENT: Final = "            int(status),\n"
CAS_CLAIM: Final = Patch(TASKS, ROW_AS_READ + _OF_CLAIM, ROW_AS_IT_IS + _OF_CLAIM)
CAS_SETTLE: Final = Patch(TASKS, ROW_AS_READ + _OF_SETTLEMENT, ROW_AS_IT_IS + _OF_SETTLEMENT)
CAS_FORGET: Final = Patch(
    TASKS,
    '        "DELETE FROM idempotent_log WHERE task_id = ? AND status = ? AND token = ?",\n',
    '        "DELETE FROM idempotent_log WHERE task_id = ? AND ? >= 0 AND ? >= 0",\n',
)
CAS_INSERT: Final = Patch(
    TASKS,
    "AND floor = ? ON CONFLICT DO NOTHING",
    "AND floor = ? ON CONFLICT DO UPDATE SET token = excluded.token, owner = excluded.owner,"
    " updated_at = excluded.updated_at, boot_stamp = excluded.boot_stamp, state_seal = excluded.state_seal",
)
NO_CAS: Final = Off("compare-and-set", (CAS_CLAIM, CAS_SETTLE, CAS_FORGET))

# A verdict over a row that is another by now leaves it with a seal that does not hold.
NO_SEAL: Final = Off("seal", (Patch(ROWS, "    if not task_holds(row):", "    if row is None:"),))

HELD: Final = "        if oslock.is_held(self._lock_file.fd, owner_byte(owner)):\n"
NO_LOCK: Final = Off("owner lock", (Patch(LIVENESS, HELD, "        if owner < 0:\n"),))
STILL_THERE: Final = Patch(LIVENESS, "        if self._still_there(record):\n", "        if record.id < 0:\n")
NO_PROCESS_CHECK: Final = Off("process check", (STILL_THERE,))
LOCK_ID: Final = Patch(
    LIVENESS, "        if record.lock_id != self._lock_file.lock_id:\n", "        if record.id < 0:\n"
)
NO_LOCK_ID: Final = Off("the lock file's id", (LOCK_ID,))
LOCKS_DO_NOTHING: Final = Off(
    "locks that do anything",
    (
        Patch("idemreg/oslock.py", "    return bool(kind != fcntl.F_UNLCK)\n", "    return bool(kind < 0)\n"),
        Patch("idemreg/oslock.py", "        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, order)\n", "        _ = order\n"),
    ),
)


# --- who writes ---------------------------------------------------------------------------------------------------

_TURN: Final = TESTS + "test_write_turn.py::test_nobody_writes_beside_a_writer_who_lost_sqlites_locks"
_HOT_TURN: Final = (
    TESTS + "test_write_turn.py::test_no_statement_of_the_hot_path_goes_beside_a_writer_who_lost_sqlites_locks"
)
_SQLITES_LOCKS: Final = Off("SQLite's locks, compare-and-set", NO_CAS.patches)
_WRITERS: Final = (
    *mutants(
        "write turn",
        _SQLITES_LOCKS,
        _TURN,
        Row("turn-not-taken", "nobody takes the write turn", NO_TURN.patches),
        Row(
            "turn-dropped-at-once",
            "the write turn is given back before the transaction begins",
            (
                Patch(
                    WRITING,
                    '        faults.point("turn.taken")\n',
                    '        self._turn.drop()\n        faults.point("turn.taken")\n',
                ),
            ),
        ),
        Row("turn-not-taken-by-statements", "the hot path's statements take no write turn", TURN_TRIED),
        Row(
            "turn-is-posix-lock",
            "turns are POSIX locks, which any close of the lock file drops",
            (
                Patch(WRITING, 'getattr(fcntl, "F_OFD_SETLK", 0)', 'getattr(fcntl, "F_SETLK", 0)'),
                Patch(
                    "idemreg/oslock.py",
                    "fcntl.fcntl(fd, fcntl.F_OFD_SETLK, order)",
                    "fcntl.fcntl(fd, fcntl.F_SETLK, order)",
                ),
            ),
        ),
    ),
    *mutants(
        "write turn",
        _SQLITES_LOCKS,
        _HOT_TURN,
        Row(
            "turn-not-waited-for-by-statements",
            "a statement of the hot path goes on where another process has the turn",
            (Patch(WRITING, "            self._take_turn(self.until)\n", "            pass\n"),),
        ),
        Row(
            "turn-not-heeded-at-once",
            "a claim that needs nobody to write goes on where another process has the turn",
            (
                Patch(
                    WRITING,
                    "            self._inside.clear()\n            if self.waiting:\n                self._let_in()\n"
                    "            return False\n        self.look()\n",
                    "            return True\n        self.look()\n",
                ),
            ),
        ),
    ),
    *mutants(
        "BEGIN IMMEDIATE",
        NO_TURN + NO_CAS,
        TESTS + "test_begin_immediate.py",
        Row(
            "deferred-begin",
            "a write transaction begins as a reading one",
            (DEFERRED,),
            "test_nobody_writes_between_reading_and_writing",
        ),
        Row(
            "no-transaction",
            "each statement is a transaction of its own",
            NO_TRANSACTION.patches,
            "test_nobody_writes_between_reading_and_writing",
        ),
        Row(
            "deferred-begin-of-effects",
            "a job's own transaction begins as a reading one",
            (
                Patch(
                    DATABASE,
                    "if begins and not self.begins(connection):",
                    'if begins and connection.execute("BEGIN").fetchall():',
                ),
            ),
            "test_nobody_writes_between_what_a_job_reads_and_writes",
        ),
    ),
    *mutants(
        "compare-and-set",
        NO_TURN + NO_TRANSACTION,
        TESTS + "test_compare_and_set.py",
        Row(
            "claim-without-token",
            "a claim takes the row over whatever it has become",
            (CAS_CLAIM,),
            "test_of_two_who_decide_over_one_row_one_has_his_way",
        ),
        Row(
            "claim-not-counted",
            "a claim is granted whether its row was changed or not",
            (
                Patch(
                    SQLITE + "claiming.py",
                    "stamp, note):\n            raise changed_under_lock(row.task_id)\n        self",
                    "stamp, note):\n            pass\n        self",
                ),
            ),
            "test_of_two_who_decide_over_one_row_one_has_his_way",
        ),
        Row(
            "insert-replaces",
            "a first claim takes over the row of another first claim",
            (CAS_INSERT,),
            "test_of_two_first_claims_one_is_granted",
        ),
        Row(
            "forget-without-token",
            "`forget` removes whatever the row has become",
            (CAS_FORGET,),
            "test_of_two_who_decide_over_one_row_one_has_his_way",
        ),
        Row(
            "success-without-token",
            "a finish compares no token: a late owner overwrites its successor's row",
            (
                Patch(
                    TASKS,
                    'WHERE task_id = ? AND token = ? AND owner = ? AND status = 3"\n',
                    'WHERE task_id = ? AND token + 0 * ? = token AND owner + 0 * ? = owner AND status = 3"\n',
                ),
            ),
            "test_a_late_owner_ends_nothing",
        ),
        Row(
            "end-without-token",
            "an end other than a small success compares no token: a late owner overwrites its successor's row",
            (
                Patch(
                    TASKS,
                    'WHERE task_id = ? AND token = ? AND owner = ?"\n',
                    'WHERE task_id = ? AND ? > 0 AND ? > 0"\n',
                ),
            ),
            "test_a_late_owner_ends_nothing",
        ),
        Row(
            "insert-without-floor",
            "a first claim trusts the token floor that it read before: a forgotten token is given again",
            (Patch(TASKS, "AND floor = ? ON CONFLICT", "AND ? > 0 ON CONFLICT"),),
            "test_a_token_that_was_forgotten_elsewhere_is_not_given_again",
        ),
    ),
    *mutants(
        "compare-and-set",
        NO_TURN + NO_TRANSACTION + NO_SEAL,
        TESTS + "test_compare_and_set.py",
        Row(
            "settle-without-token",
            "a verdict is written into whatever the row has become",
            (CAS_SETTLE,),
            "test_of_two_who_decide_over_one_row_one_has_his_way",
        ),
    ),
    *mutants(
        "compare-and-set",
        Off(),
        "tests/test_purge.py::test_what_changed_since_the_look_stays",
        Row(
            "purge-without-token",
            "`purge` removes what has become of a row since it was looked at",
            (
                Patch(
                    SQLITE + "purging.py",
                    '"DELETE FROM idempotent_log WHERE task_id = ? AND status = ? AND token = ?"',
                    '"DELETE FROM idempotent_log WHERE task_id = ? AND ? >= 0 AND ? >= 0"',
                ),
            ),
        ),
    ),
)

# --- tokens -------------------------------------------------------------------------------------------------------

_GROW: Final = "tests/test_store.py::TestSqliteStore::test_tokens_of_a_task_grow"
_TOKENS: Final = (
    *mutants(
        "token",
        Off(),
        _GROW,
        Row(
            "token-reused",
            "a claim of a row keeps the token that it finds",
            (Patch(SQLITE + "claiming.py", "max(row.token, floor) + 1", "max(row.token, floor + 1)"),),
        ),
        Row(
            "forget-without-floor",
            "`forget` raises no token floor",
            (
                Patch(
                    TASKS,
                    "    raise_floor(connection, row.token)\n",
                    "",
                ),
            ),
        ),
    ),
    *mutants(
        "token",
        Off(),
        "tests/test_purge.py",
        Row(
            "purge-without-floor",
            "`purge` raises no token floor",
            (Patch(SQLITE + "purging.py", "    raise_floor(connection, highest)\n", ""),),
            "test_tokens_never_come_back",
        ),
    ),
    *mutants(
        "token",
        Off(),
        "tests/test_races.py::test_a_late_owner_changes_nothing",
        Row(
            "boot-without-epoch",
            "the first opener after a boot raises no epoch: a token that a power cut took comes back",
            (Patch(SQLITE + "upkeep.py", "(max(floor >> EPOCH_BITS, highest) + 1) << EPOCH_BITS", "floor"),),
        ),
    ),
)

# --- who lives ----------------------------------------------------------------------------------------------------

_LIVE: Final = TESTS + "test_owner_lock.py"
_LOST: Final = TESTS + "test_process_check.py::test_a_live_process_that_lost_its_lock_is_not_replaced"
_CANNOT_TELL: Final = TESTS + "test_process_check.py"
_OWNERS: Final = (
    *mutants(
        "owner lock",
        NO_PROCESS_CHECK,
        _LIVE,
        Row(
            "byte-not-asked",
            "whether the owner's byte is held is not looked at",
            NO_LOCK.patches,
            "test_a_live_owner_is_not_replaced",
        ),
        Row(
            "owner-byte-not-held",
            "an owner's byte is not taken",
            (Patch(OWNERS, "            _hold(self._lock_file.fd, record.id)\n", ""),),
            "test_a_live_owner_is_not_replaced",
        ),
        Row(
            "byte-released-before-commit",
            "an owner's byte is given back as soon as it was held",
            (
                Patch(
                    OWNERS,
                    "            _hold(self._lock_file.fd, record.id)\n",
                    "            _hold(self._lock_file.fd, record.id)\n"
                    "            oslock.unlock(self._lock_file.fd, owner_byte(record.id))\n",
                ),
            ),
            "test_an_owner_lives_from_the_moment_that_its_claim_is_seen",
        ),
        Row(
            "byte-held-after-commit",
            "an owner's byte is taken once its first claim is committed",
            (
                Patch(OWNERS, "            _hold(self._lock_file.fd, record.id)\n", ""),
                Patch(
                    OWNERS,
                    "                self.recorded = own\n",
                    "                self.recorded = own\n                _hold(self._lock_file.fd, own)\n",
                ),
            ),
            "test_an_owner_lives_from_the_moment_that_its_claim_is_seen",
        ),
        Row(
            "batch-byte-not-held",
            "the byte of a batch's owner is not taken",
            (Patch(OWNERS, "        _hold(lock_file.fd, self.id)\n\n    def place", "\n    def place"),),
            "test_a_live_owner_is_not_replaced",
        ),
        Row(
            "byte-is-posix-lock",
            "an owner's byte is a POSIX lock, which any close of the lock file drops",
            (
                Patch(
                    "idemreg/oslock.py",
                    "    return obey(fd, orders(byte)[0])\n",
                    "    fcntl.fcntl(fd, fcntl.F_SETLK, orders(byte)[0])\n    return True\n",
                ),
            ),
            "test_a_live_owner_is_not_replaced",
        ),
        Row(
            "byte-dropped-by-close",
            "a registry that is closed gives its byte back under its open claims",
            (Patch(SQLITE + "opened.py", "self.users.copy() or not self.owners.are_idle:", "self.users.copy():"),),
            "test_a_live_owner_is_not_replaced",
        ),
        Row(
            "byte-dropped-by-child",
            "a forked child unlocks its parent's byte instead of closing its copy",
            (
                Patch(
                    SQLITE + "opened.py",
                    "        self._deciding = threading.RLock()  # it may be held by a thread that is not here\n",
                    "        self._deciding = threading.RLock()  # it may be held by a thread that is not here\n"
                    "        from idemreg import oslock\n"
                    "        oslock.unlock(self.lock_file.fd, 2**62 + 16 + (self.owners.own_id or 0))\n",
                ),
            ),
            "test_a_live_owner_is_not_replaced",
        ),
        Row(
            "liveness-always-dead",
            "every owner counts as dead",
            (Patch(LIVENESS, HELD, '        if owner:\n            return Liveness.DEAD, "always"\n' + HELD),),
            "test_a_live_owner_is_not_replaced",
        ),
        Row(
            "liveness-always-alive",
            "no owner counts as dead",
            (Patch(LIVENESS, HELD, '        if owner:\n            return Liveness.ALIVE, "always"\n' + HELD),),
            "test_a_live_owner_is_not_replaced",
        ),
    ),
    *mutants(
        "owner lock",
        NO_PROCESS_CHECK,
        _LIVE + "::test_a_command_keeps_its_task_when_its_wrapper_is_killed",
        Row(
            "command-without-byte",
            "a command does not inherit its owner's lock: killing the wrapper frees the task of an orphan",
            (Patch("idemreg/starting.py", "            pass_fds=() if lock_fd is None else (lock_fd,),\n", ""),),
        ),
    ),
    *mutants(
        "owner lock",
        Off(),
        "tests/test_command_ends.py::test_a_command_whose_end_could_not_be_stored_does_not_run_again",
        Row(
            "command-byte-dropped-by-close",
            "the byte of a command is given back while its end waits to be stored: the command runs again",
            (Patch(OWNERS, "command.is_closed and not self.held_by(owner):", "command.is_closed:"),),
        ),
    ),
    *mutants(
        "process check",
        NO_LOCK,
        _LOST,
        Row("process-check-off", "a free byte alone proves death", (STILL_THERE,)),
        Row(
            "cannot-tell-read-as-dead",
            "an owner of whom nobody can tell counts as dead",
            (
                Patch(
                    DECIDING,
                    "            if not liveness.frees:\n",
                    '            if liveness.value == "alive":\n',
                ),
            ),
        ),
        Row(
            "cannot-tell-is-settled",
            "a task of whose owner nobody can tell may be settled",
            (Patch(DECIDING, "(verifying or liveness.frees)", '(verifying or liveness.value != "alive")'),),
        ),
        Row(
            "cannot-tell-is-forgotten",
            "a task of whose owner nobody can tell may be forgotten",
            (
                Patch(
                    DECIDING,
                    "return force and liveness.frees",
                    'return force and liveness.value != "alive"',
                ),
            ),
        ),
    ),
    *mutants(
        "process check",
        NO_LOCK,
        _CANNOT_TELL,
        Row(
            "zombie-is-there",
            "a zombie counts as a live process",
            (Patch(LIVENESS, "        if state is None or state.is_dead:\n", "        if state is None:\n"),),
            "test_a_zombie_is_nobodys_life",
        ),
        Row(
            "start-time-not-compared",
            "any process of the same number counts as the owner's",
            (
                Patch(
                    LIVENESS,
                    "        return not same_clock or state.started == record.started\n",
                    "        return True\n",
                ),
            ),
            "test_a_number_that_another_process_bears_now_is_nobodys_life",
        ),
    ),
    *mutants(
        "process check",
        NO_LOCK,
        _CANNOT_TELL + "::test_a_command_that_closed_what_it_inherited_keeps_its_task",
        Row(
            "command-process-not-noted",
            "which process runs a command is not noted: one that closes what it inherits counts as dead",
            (Patch("idemreg/command.py", "is_done = self._owner.note_process(self._pid)", "is_done = True"),),
        ),
    ),
    *mutants(
        "lock file",
        NO_PROCESS_CHECK,
        _CANNOT_TELL + "::test_the_bytes_of_a_new_lock_file_prove_nobody_dead",
        Row("lock-id-not-compared", "the free bytes of a lock file that was made anew prove death", (LOCK_ID,)),
    ),
    *mutants(
        "lock file",
        NO_PROCESS_CHECK + NO_LOCK_ID,
        _CANNOT_TELL + "::test_the_bytes_of_a_deleted_lock_file_prove_nobody_dead",
        Row(
            "lock-path-not-compared",
            "the free bytes of a lock file that was deleted prove death",
            (Patch(LIVENESS, "        if not is_at_path:\n", "        if owner < 0:\n"),),
        ),
    ),
    *mutants(
        "self-test of the locks",
        NO_PROCESS_CHECK + LOCKS_DO_NOTHING,
        _LOST,
        Row(
            "self-test-off",
            "on a file system whose locks do nothing, free bytes prove death",
            (Patch(LIVENESS, "        if not self.locks_work:\n", "        if owner < 0:\n"),),
        ),
    ),
    *mutants(
        "notes of a batch",
        Off(),
        "tests/test_batch.py",
        Row(
            "entered-not-noted",
            "that a task of a batch is entered is not noted: it is put back, and runs again under hold",
            (
                Patch(
                    OWNERS,
                    '            self._lock_file.write_note(cast("int", self.record.notes_at) + note)\n',
                    "            assert cast(int, note) >= 0\n",
                ),
            ),
            "test_a_dead_batch_is_told_apart",
        ),
        Row(
            "notes-of-an-earlier-boot",
            "notes of an earlier boot are believed",
            (
                Patch(
                    LIVENESS,
                    "        if (record.boot_id, record.lock_id) != (self._boot_id, self._lock_file.lock_id):\n",
                    "        if record.lock_id != self._lock_file.lock_id:\n",
                ),
            ),
            "test_notes_of_an_earlier_boot_are_not_trusted",
        ),
    ),
)

# --- what is on the disk ------------------------------------------------------------------------------------------

_JOINS: Final = TESTS + "test_reader_joins.py"
_DISK: Final = (
    *mutants(
        "reader joins the sync",
        Off("the writer's own sync"),
        _JOINS + "::test_nobody_answers_from_what_may_not_be_on_the_disk",
        Row(
            "reader-not-joining",
            "a final row is answered from as soon as it is visible",
            (Patch(DATABASE, "        if durable and self.sync is not None:\n            self.sync.durable()\n", ""),),
        ),
    ),
    *mutants(
        "claim and end are synced",
        Off("the readers' sync"),
        _JOINS,
        Row(
            "hot-claim-not-synced",
            "a first claim under hold is not synced before its job",
            (Patch(SQLITE + "hot.py", "wanted.durable and wanted.policy.on_crash is not RERUN", "False"),),
            "test_no_job_is_entered_whose_claim_may_not_be_on_the_disk",
        ),
        Row(
            "claims-not-synced",
            "the claims of a batch, and those of tasks that have rows, are not synced before their jobs",
            (
                Patch(
                    SQLITE + "claiming.py",
                    "return any(one.durable and _syncs(one, claim.policy",
                    "return False and any(one.durable and _syncs(one, claim.policy",
                ),
            ),
            "test_no_batch_is_given_whose_claims_may_not_be_on_the_disk",
        ),
        Row(
            "small-success-not-synced",
            "a small success is acknowledged before it is synced",
            (Patch(SQLITE + "hot.py", "    if is_stored and end.durable:\n", "    if is_stored and not end:\n"),),
            "test_no_end_is_told_that_may_not_be_on_the_disk",
        ),
        Row(
            "end-not-synced",
            "an end is acknowledged before it is synced",
            (
                Patch(
                    BACKEND,
                    "opened.database.write(finish, durable=are_durable(ends))",
                    "opened.database.write(finish, durable=False)",
                ),
            ),
            "test_no_end_is_told_that_may_not_be_on_the_disk",
        ),
        Row(
            "lost-end-unnoticed",
            "an end that was not stored is reported as stored",
            (
                Patch(
                    "idemreg/attempt.py",
                    "    if type(recorded) is not Recorded:\n"
                    "        yield from not_recorded(claim, end, recorded, result)\n",
                    "",
                ),
            ),
            "test_no_end_is_told_that_may_not_be_on_the_disk",
        ),
        Row(
            "failed-sync-not-noted",
            "a failed sync is not noted: the next one says OK",
            (Patch(SYNCING, "            self._lock_file.note_failed_sync()\n", "            pass\n"),),
            "test_after_a_failed_sync_no_other_process_answers",
        ),
    ),
)

# --- what is decided ----------------------------------------------------------------------------------------------

_DECISIONS: Final = (
    *mutants(
        "decision",
        Off(),
        "tests/test_attempt.py",
        Row(
            "hold-runs-again",
            "a task whose owner died runs again, whatever its policy",
            (Patch(DECIDING, "    if _stricter(row, wanted) is not OnCrash.RERUN:\n", "    if row.attempt < 0:\n"),),
            "test_a_dead_owners_task_is_unknown_under_hold",
        ),
        Row(
            "stored-policy-ignored",
            "of the stored and the asked policy the asked one holds, also where it is less strict",
            (
                Patch(
                    DECIDING,
                    "    return max(row.policy.on_crash, wanted.policy.on_crash)\n",
                    "    return wanted.policy.on_crash\n",
                ),
            ),
            "test_the_stricter_crash_policy_holds",
        ),
        Row(
            "arguments-not-compared",
            "a call with other arguments gets the stored result",
            (
                Patch(
                    DECIDING, "(row.name != wanted.name or row.checksum != wanted.checksum)", "row.name != wanted.name"
                ),
                Patch(TASKS, "status = 1 AND name = ? AND checksum = ?", "status = 1 AND name = ? AND ? > ''"),
            ),
            "test_other_work_under_the_same_id_is_refused",
        ),
        Row(
            "job-not-compared",
            "another job gets the stored result",
            (
                Patch(
                    DECIDING,
                    "(row.name != wanted.name or row.checksum != wanted.checksum)",
                    "row.checksum != wanted.checksum",
                ),
                Patch(TASKS, "status = 1 AND name = ? AND checksum = ?", "status = 1 AND ? >= '' AND checksum = ?"),
            ),
            "test_other_work_under_the_same_id_is_refused",
        ),
        Row(
            "interrupt-is-failure",
            "a job that was interrupted counts as failed, and is run again by the next call",
            (
                Patch(
                    "idemreg/ends.py",
                    "    if not isinstance(error, Exception):  # Keyb",
                    "    if error is None:  # Keyb",
                ),
            ),
            "test_an_interruption_counts_as_a_crash",
        ),
    ),
    *mutants(
        "files",
        Off(),
        "tests/test_paths.py",
        Row(
            "vanished-database-made-anew",
            "a database that has vanished beside its lock file is made anew, and forgets every task",
            (
                Patch(
                    SQLITE + "upkeep.py",
                    "if lock_file.has_database and not has_content(location.database):",
                    "if lock_file.fd < 0:",
                ),
            ),
            "test_a_vanished_database_is_not_made_anew",
        ),
        Row(
            "schema-not-asked",
            "running code writes into a file that was migrated meanwhile",
            (
                Patch(
                    SQLITE + "records.py",
                    "    row = registry_row(connection, schema_version)\n"
                    "    if row is None:\n"
                    "        raise newer_schema()\n",
                    "    row = registry_row(connection)\n    assert row\n",
                ),
                Patch(TASKS, "WHERE schema_version = ? AND floor = ? ON", "WHERE schema_version >= ? AND floor = ? ON"),
            ),
            "test_running_code_notices_a_migration",
        ),
    ),
)

BARRIERS: Final = (*_WRITERS, *_TOKENS, *_OWNERS, *_DISK, *_DECISIONS)
