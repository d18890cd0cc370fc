"""The Store in one SQLite file: opens it at first use, one transaction a method.

The order within a claim is what the promises rest on: the owner's byte is held before its row is stored, the row is
stored before the job starts, and every row that is decided by was read in the transaction that writes it.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeVar

from idemreg import faults
from idemreg.errors import ClaimLostError, StoreError, SyncFailedError
from idemreg.lockfile import importing
from idemreg.sqlite import hot, records, rows, tasks
from idemreg.sqlite.claiming import Claiming, has_final, look, must_sync, will_sync
from idemreg.sqlite.connection import CommitUnsureError
from idemreg.sqlite.settling import Settler, are_durable, weakly
from idemreg.sqlite.wal import Wal
from idemreg.sqlite.writing import Write
from idemreg.store import End, Granted, Lost, Recorded, Running, Unsure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from idemreg.deciding import Wanted
    from idemreg.liveness import OwnerRecord
    from idemreg.sqlite.checkpoints import Checkpoint, Mode
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.effects import Effects
    from idemreg.sqlite.opened import Opened
    from idemreg.sqlite.opening import Opening
    from idemreg.sqlite.owners import CommandOwner
    from idemreg.store import Absent, Answer, Stored

__all__ = ["SqliteStore"]

T = TypeVar("T")

NOTE_BUSY_S: Final = 0.01  # the output of a command waits so long at most; then it is tried again


class SqliteStore(Settler):
    """Tasks in one SQLite file. Touches no file before its first use; shared by threads; reopens in a forked child."""

    def __init__(self, opening: Opening) -> None:
        """The files are shared with whoever else has the opening: it may have been looked into before."""
        super().__init__(opening)
        self.wal = Wal(opening)

    def serve(self) -> SqliteStore:
        """Hear of the files' commits, also where they are open already. Before the first claim; twice is once."""
        self._opening.serve(weakly(self._settle_dropped), weakref.WeakMethod(self.wal.when_opened))
        return self

    # --- claim --------------------------------------------------------------------------------------------------

    def begin(self, wanted: Wanted) -> Stored | Granted | Absent | None:
        """Replay the task's stored success, or claim it where it has no row; see `hot.Claim`."""
        opened = self._opening.opened()
        claim = hot.Claim(opened, self._schema_version, wanted)
        opened.users[claim] = True  # as `Opened.enter`, whose call costs as much as a sixth of a duplicate
        try:
            if opened.wants_close:  # closed since: the next is another
                return self.begin(wanted)
            answer = claim.begin()
            if claim.grant is not None:
                opened.database.check_files()
                faults.point("claim.committed")  # the last call: an interrupt that has come by then is raised in here
            if self._unsettled:
                self._settle_dropped()
        except BaseException as error:
            self._withdraw([claim.grant], error)
            raise
        finally:
            del opened.users[claim]
            if opened.wants_close:
                opened.close_if_idle()
        return answer

    def _or_withdraw(self, claim: Callable[[], T], granted: Callable[[], Sequence[object]]) -> T:
        """What ``claim`` answers. What was granted is put back where its caller never hears of it.

        An interrupt may come as late as behind the last line, on the way out.
        """
        try:
            return claim()
        except BaseException as error:
            self._withdraw(granted(), error)
            raise

    def look(self, wanted: Wanted) -> Answer | None:
        """What a plain read can answer, with no write lock; None where a row must be written."""
        with self._opening.using() as opened:
            answer = opened.database.read(look, self._schema_version, opened.owners, wanted)
            if answer is not None and not isinstance(answer, Running):
                opened.database.seen_final(durable=wanted.durable)
            return answer

    def claim(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """Claim each, in order, in one transaction."""
        answers: list[Answer] = []
        return self._or_withdraw(lambda: self._claim(wanted, answers), lambda: answers)

    def _claim(self, wanted: Sequence[Wanted], answers: list[Answer]) -> list[Answer]:
        # A command lives where its byte is held, also once the registry was closed in between.
        with self._opening.using(wanted[0].owner) as opened:
            opened.database.check_disk(durable=are_durable(wanted), is_synced=will_sync(wanted))
            version = self._schema_version

            def claim(connection: Connection) -> None:
                _take_back(opened, answers)
                floor = opened.floor = records.floor(connection, version, self._key_note)
                stamp = opened.stamp()
                claiming = Claiming(connection, version, opened.owners)
                answers.extend(claiming.claim(one, floor, stamp) for one in wanted)
                write.durable = must_sync(opened.database, wanted, answers)
                faults.point("claim.in-transaction")

            write = Write(claim, durable=are_durable(wanted))
            try:
                opened.database.write_one(write)
                opened.owners.note_recorded(_granted(answers))
                _check_files(opened, answers)
                faults.point("claim.committed")
                _seen(opened, wanted, answers)
                self._settle_dropped()
            except CommitUnsureError as error:
                _take_back(opened, answers)
                return [Unsure(error)] * len(wanted)
            finally:
                write.forget()
            return answers

    def claim_batch(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """Claim each, in order, in one transaction, under an owner of their own with a note for each."""
        answers: list[Answer] = []
        return self._or_withdraw(lambda: self._claim_batch(wanted, answers), lambda: answers)

    def _claim_batch(self, wanted: Sequence[Wanted], answers: list[Answer]) -> list[Answer]:
        with self._opening.using() as opened:
            opened.database.check_disk(durable=are_durable(wanted), is_synced=will_sync(wanted))
            version = self._schema_version
            batch = opened.owners.batch(len(wanted))

            def claim(connection: Connection) -> None:
                floor = opened.floor = records.floor(connection, version, self._key_note)
                stamp = opened.stamp()
                batch.place(connection)
                claiming = Claiming(connection, version, opened.owners, batch)
                answers.extend(claiming.claim(one, floor, stamp, note) for note, one in enumerate(wanted))
                if batch.open:
                    batch.store(connection)
                write.durable = must_sync(opened.database, wanted, answers)
                faults.point("batch.in-transaction")

            write = Write(claim, durable=are_durable(wanted), is_alone=True)
            try:
                opened.database.write_one(write)
                _check_files(opened, answers)
                faults.point("batch.committed")
                _seen(opened, wanted, answers)
                self._settle_dropped()
            except CommitUnsureError as error:
                _take_back(opened, answers)
                return [Unsure(error)] * len(wanted)
            finally:
                write.forget()
                opened.owners.close_batch(batch.id)
            return answers

    def enter(self, claim: Granted) -> None:
        """Note that the job of a claim is entered."""
        with self._opening.using_of(claim.owner) as opened:
            if opened is None:
                msg = "the claim belongs to the parent of this process, or has ended"
                raise ClaimLostError(msg, task_id=claim.task_id)
            opened.database.check_files()
            if claim.note is not None:
                opened.owners.enter(claim.owner, claim.note)
            faults.point("batch.entered")

    def together(self, requests: Sequence[Wanted | End]) -> list[object]:
        """Begin or finish each in one transaction, for callers who wait on an event loop; see `Store.together`."""
        claims: dict[int, hot.Claim] = {}
        return self._or_withdraw(
            lambda: self._together(requests, claims), lambda: [claim.grant for claim in claims.values()]
        )

    def _together(self, requests: Sequence[Wanted | End], claims: dict[int, hot.Claim]) -> list[object]:
        with self._opening.using() as opened:
            found: dict[int, object] = {}
            writes: dict[int, Write] = {}

            def look(connection: Connection) -> None:
                for number, wanted in enumerate(requests):
                    if isinstance(wanted, End):
                        continue
                    claim = claims[number] = hot.Claim(opened, self._schema_version, wanted)
                    found[number] = claim.look(connection)
                    if claim.may_insert:
                        writes[number] = claim.write()

            opened.database.read(look)
            for number, end in enumerate(requests):
                if isinstance(end, End) and end.owner == opened.owners.recorded and tasks.is_plain_success(end):
                    writes[number] = hot.success(opened, self._schema_version, end)
            if writes:
                opened.database.write_all(list(writes.values()))
            self._check_begun(opened, claims, writes)
            answers = [
                self._ended(opened, request, writes.get(number))
                if isinstance(request, End)
                else self._begun(claims[number], found[number], writes.get(number))
                for number, request in enumerate(requests)
            ]
            self._settle_dropped()
            return answers

    @staticmethod
    def _check_begun(opened: Opened, claims: dict[int, hot.Claim], writes: dict[int, Write]) -> None:
        """Once for all that are granted: files that are not there any more are an error of each."""
        begun = [write for n, write in writes.items() if write.error is None and n in claims and claims[n].grant]
        try:
            if begun:
                opened.database.check_files()
            for _ in begun:
                faults.point("claim.committed")
        except StoreError as error:
            for write in begun:
                write.error = copy.copy(error)

    def _begun(self, claim: hot.Claim, found: object, write: Write | None) -> object:
        if write is None:
            return found
        if write.error is None:
            return claim.grant
        self._withdraw([claim.grant], write.error)
        return write.error

    def _ended(self, opened: Opened, end: End, write: Write | None) -> object:
        try:
            if write is None or (write.error is None and not write.answer):
                return self.finish([end])[0]
            if write.error is not None:
                raise write.error  # noqa: TRY301 - which of them it is, is looked at in one place
        except CommitUnsureError as error:
            if isinstance(answer := self._read_again(end, error), Unsure):
                return answer
        except SyncFailedError as error:
            return Unsure(error)
        except Exception as error:  # noqa: BLE001 - it is this one's; the others have their own answers
            return error
        faults.point("finish.committed")
        self._let_go(opened, end)
        return Recorded(end.task_id)

    # --- finish -------------------------------------------------------------------------------------------------

    def finish_one(self, end: End) -> Recorded | Lost | Unsure:
        """End a claim."""
        opened = self._opening.current
        if opened is None or end.owner != opened.owners.recorded or not tasks.is_plain_success(end):
            return self.finish([end])[0]
        user = object()
        opened.users[user] = True  # as in `begin`
        try:
            try:
                if opened.wants_close or not hot.succeed(opened, self._schema_version, end):
                    return self.finish([end])[0]
            except CommitUnsureError as error:
                if not isinstance(self._read_again(end, error), Recorded):
                    raise
            except SyncFailedError as error:
                return Unsure(error)
            faults.point("finish.committed")
            opened.database.after_commit()
            self._let_go(opened, end)
        finally:
            del opened.users[user]
            if opened.wants_close:
                opened.close_if_idle()
        if self._unsettled:
            self._settle_dropped()
        return Recorded(end.task_id)

    def finish(self, ends: Sequence[End]) -> list[Recorded | Lost | Unsure]:
        """End each claim, in order, in one transaction."""
        with self._opening.using_of(ends[0].owner) as opened:
            if opened is None:  # the claim of a parent process, finished in its forked child
                return [Lost(None) for _ in ends]
            answers: list[Recorded | Lost | Unsure] = []

            def finish(connection: Connection) -> None:
                answers.clear()
                records.floor(connection, self._schema_version)
                answers[:] = [self._finish_in(connection, opened, end) for end in ends]
                recorded = zip(ends, answers, strict=True)
                owners = Counter(end.owner for end, answer in recorded if isinstance(answer, Recorded))
                for owner, claims in owners.items():
                    opened.owners.ended(connection, owner, claims)
                faults.point("finish.in-transaction")

            try:
                opened.database.write(finish, durable=are_durable(ends))
            except CommitUnsureError as error:
                answers = [self._read_again(end, error) for end in ends]
            except SyncFailedError as error:
                answers = answers or [Unsure(error)] * len(ends)  # none: the files are lost, and nothing ran
                committed = zip(ends, answers, strict=True)
                answers = [Unsure(error) if end.durable and isinstance(a, Recorded) else a for end, a in committed]
            faults.point("finish.committed")
            for end, answer in zip(ends, answers, strict=True):
                if not isinstance(answer, Unsure):
                    self._opening.let_go(end.task_id, end.token)  # some may be of before a close
            self._settle_dropped()
            return answers

    def _read_again(self, end: End, error: CommitUnsureError) -> Recorded | Unsure:
        """After an error at COMMIT: what is visible was committed, and is reported once it is durable."""
        with contextlib.suppress(StoreError):
            (row,) = self.get([end.task_id])
            with self._opening.using() as opened:
                opened.database.durable()
            if row is not None and (row.status, row.token) == (end.status, end.token):
                return Recorded(end.task_id)
        return Unsure(error)

    # --- more ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, claim: Granted, *, durable: bool) -> Iterator[Effects]:
        """Open a transaction for the effects of the job; rolled back unless `Effects.finish` committed it."""
        with importing():
            from idemreg.sqlite.effects import Effects  # noqa: PLC0415 - few jobs have effects in the same file

        with self._opening.using_of(claim.owner) as opened:
            if opened is None:
                msg = "the claim belongs to the parent of this process"
                raise ClaimLostError(msg, task_id=claim.task_id)
            try:
                with opened.database.long_write(durable=durable) as write:
                    row = rows.read(write.connection, self._schema_version, claim.task_id)
                    if row is None or not self._is_own(row, claim.token):
                        msg = "another owner has the task, or it was settled without this claim"
                        raise ClaimLostError(msg, task_id=claim.task_id)
                    faults.point("transaction.open")
                    yield Effects(
                        write,
                        lambda connection, end: self._finish_with_effects(connection, opened, end),
                        lambda end: self._let_go(opened, end),
                        claim.task_id,
                    )
            finally:
                self._settle_dropped()

    def _finish_with_effects(self, connection: Connection, opened: Opened, end: End) -> bool:
        records.floor(connection, self._schema_version)
        if isinstance(self._finish_in(connection, opened, end), Lost):
            return False
        opened.owners.ended(connection, end.owner)
        return True

    def own_byte(self) -> CommandOwner:
        """A new owner with a lock and a descriptor of its own, for a command that inherits it."""
        with self._opening.using() as opened:

            def rewrite(record: OwnerRecord) -> None:
                write = opened.database.write
                write(lambda connection: records.record_owner(connection, record), durable=False, busy_s=NOTE_BUSY_S)

            return opened.owners.command(rewrite, opened.close_if_idle)

    def checkpoint(self, mode: Mode, *, busy_s: float | None = None) -> Checkpoint:
        """Move pages from the -wal into the database; see `Wal.checkpoint`."""
        return self.wal.checkpoint(mode, busy_s=busy_s)


def _seen(opened: Opened, wanted: Sequence[Wanted], answers: Sequence[Answer]) -> None:
    """Nobody is answered from a final row that a power cut could take back."""
    opened.database.seen_final(durable=has_final(wanted, answers))


def _granted(answers: Sequence[Answer]) -> Iterator[Granted]:
    return (answer for answer in answers if isinstance(answer, Granted))


def _take_back(opened: Opened, answers: list[Answer]) -> None:
    """Each claim among the answers is not (or not surely) stored; none of them is left then."""
    for grant in _granted(answers):
        opened.owners.take_back(grant)
    answers.clear()


def _check_files(opened: Opened, answers: Sequence[Answer]) -> None:
    if any(type(answer) is Granted for answer in answers):
        opened.database.check_files()
