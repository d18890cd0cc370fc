-- idemreg, schema 1.
--
-- One row of idempotent_log is one task: a unit of work that must run once, named by its task_id. The row is written
-- before the job starts and written again when it ends, so whoever finds it later knows whether the task has run, is
-- running, failed, or whether nobody can know.
--
-- Who writes what. A claim inserts the row, or takes over one that may run again, and sets status `running`, the owner,
-- attempt + 1 and a larger token. A finish is the owner's own end of its claim: a compare-and-set on (task_id, token,
-- running), so that a late owner changes nothing. A settlement is an end decided without the owner (an operator, a
-- verify hook, or whoever found the owner dead); its verdict, its author and its evidence stay in the row. A hook that
-- was cut off in its middle leaves none, so that a sweep knows to ask it again. An import inserts rows as another
-- registry had them, one that was running as unknown.
--
-- What never happens. A final row (succeeded, skipped, cancelled) never changes; it only goes by `forget` or `purge`.
-- A token never decreases, and none is ever given twice: the row that goes raises the floor of idempotent_registry in
-- the same transaction. Whether a task may run never depends on updated_at: it is for people, and for `purge` where a
-- row is of an earlier boot. Arguments are not stored, only their checksum: but for a job that asked to be rerun without
-- a caller, until its task is final (idempotent_argument).
--
-- Seals. Each row carries a CRC-32 of what it says (sqlite/seals.py tells of what text), written with it and verified
-- before anything is decided by the row or replayed from it: a damaged row is an error, never an answer. A task has two,
-- since its finish does not read what the claim wrote. That a damaged page hides a row is what the page checksums are
-- for, in the eight bytes that each page reserves (sqlite/pages.py).
--
-- What is where. idempotent_registry: one row about this file. idempotent_owner: the owners that may be alive, for the
-- second look at a process whose lock is free. idempotent_large: results and errors too long to live in the tree of
-- tasks, where they would push the small rows apart. idempotent_serial: how far serial numbers are reserved.
-- idempotent_step: the pieces of a job that are done, for a later attempt of its task. idempotent_clock: one row about the
-- wall clock, for schedules. idempotent_schedule: which slots there are. idempotent_lease: the limits of
-- the claims that asked for any. idempotent_argument: the arguments of the tasks that asked to be rerun.
--
-- A slot is a task whose task_id is NAME@INSTANT: coupons@2026-11-22T19:00:00Z. Its row is made once it is due, pending or
-- skipped, in the transaction that moves its schedule's watermark past it, by whoever looks first. It leaves `pending`
-- to run, as any task, or to be skipped, with the reason as its evidence.

CREATE TABLE idempotent_registry (
    id             INTEGER PRIMARY KEY CHECK (id = 1),
    schema_version INTEGER NOT NULL,    -- equals user_version; read by every statement that decides, so that a process
                                        -- still running older code notices at its next call
    registry_id    TEXT    NOT NULL,    -- random, for the life of the file; part of every downstream key
    lock_id        TEXT    NOT NULL,    -- random; also in the lock file: same id = same lock file
    boot_id        TEXT    NOT NULL,    -- the kernel's boot in which `floor` was last raised to a new epoch
    floor          INTEGER NOT NULL,    -- every token given from now on is above this: (boot epoch << 40) | counter
    key_note       TEXT,                -- 16 bits of the key that checksums are made with; NULL = without a key
    seal           INTEGER NOT NULL     -- over the above and the number of bytes that each page reserves
) STRICT;

CREATE TABLE idempotent_log (
    task_id    TEXT    NOT NULL PRIMARY KEY,
    status     INTEGER NOT NULL,        -- 0 pending, 1 succeeded, 2 failed, 3 running, 4 unknown, 5 skipped, 6 cancelled
    checksum   TEXT    NOT NULL,        -- SHA-256 of the canonical bytes of the arguments, 64 hexadecimal digits, or
                                        -- their HMAC where key_note is set; all zeros = released before anything ran:
                                        -- the next claim says what it belongs to
    updated_at INTEGER NOT NULL,        -- microseconds since the epoch by the wall clock; for people, runs nothing
    boot_stamp INTEGER NOT NULL,        -- (boot epoch << 40) | milliseconds since that boot, the age that `purge` trusts;
                                        -- 0 = imported
    name       TEXT    NOT NULL,        -- the job the task belongs to; another job's call is a mismatch
    token      INTEGER NOT NULL,        -- fencing token: grows with every claim; 0 = never claimed
    attempt    INTEGER NOT NULL,        -- claims that entered, or may have entered, the job; 0 = none
    owner      INTEGER,                 -- who runs it; its byte of the lock file is held while it lives
    policy     INTEGER NOT NULL,        -- max_attempts * 32 + (16 if the last claim's arguments are kept:
                                        -- idempotent_argument) + (8 if it had limits: idempotent_lease)
                                        -- + (4 if failures are held) + on_crash (0 rerun, 1 verify, 2 hold)
    keep_ms    INTEGER,                 -- how long `purge` must leave the ended row alone; NULL = for ever
    result     TEXT,                    -- tagged JSON; NULL in a succeeded row = the result was lost (error says why)
    error      TEXT,                    -- of the last failure or loss: type and message, then the traceback, bounded
    is_large   INTEGER NOT NULL,        -- 1 = result and error are in idempotent_large
    note       INTEGER,                 -- of a task claimed in a batch: which of its owner's notes says that its job was
                                        -- entered; NULL = the claim itself says so
    verdict    INTEGER,                 -- of the last settlement, until the next claim: 1 happened, 2 did not happen,
                                        -- 3 cannot tell, 4 retry, 5 skipped, 6 cancelled
    settled_by TEXT,                    -- who settled it; stays as history
    evidence   TEXT,                    -- what the verdict rests on; stays as history
    claim_seal INTEGER NOT NULL,        -- over task_id, name, checksum, policy, keep_ms, note, settled_by, evidence
    state_seal INTEGER NOT NULL,        -- over task_id and all else, with result and error wherever they are stored
    CHECK (octet_length(task_id) BETWEEN 1 AND 512),
    CHECK (status BETWEEN 0 AND 6),
    CHECK (octet_length(unhex(checksum)) = 32),
    CHECK (token >= 0 AND attempt >= 0),
    CHECK ((status = 3) = (owner IS NOT NULL)),
    CHECK (is_large IN (0, 1)),
    CHECK (NOT is_large OR (result IS NULL AND error IS NULL))
) STRICT, WITHOUT ROWID;

-- For lists of what needs attention. The hot path (none -> running -> succeeded) never touches it: over 10 million
-- tasks an index on running or succeeded rows would cost each claim and finish a third of its time.
CREATE INDEX idempotent_attention ON idempotent_log (status) WHERE status NOT IN (1, 3);

CREATE TABLE idempotent_large (
    task_id TEXT NOT NULL PRIMARY KEY,
    result  TEXT,
    error   TEXT
) STRICT;

-- An owner is one incarnation of one process, or one command started by it. Written with its first claim, removed by
-- itself when it ends in order, or by anybody who has proof of its death. A missing row therefore never speaks for life.
CREATE TABLE idempotent_owner (
    id         INTEGER PRIMARY KEY,     -- random, 62 bits, never reused; 2^62 + 16 + id is its byte in the lock file
    lock_id    TEXT    NOT NULL,        -- of the lock file that holds its byte
    boot_id    TEXT    NOT NULL,
    pid        INTEGER NOT NULL,        -- in the pid namespace below
    pid_ns     INTEGER NOT NULL,        -- inode of /proc/self/ns/pid; 0 = cannot be told
    time_ns    INTEGER NOT NULL,        -- inode of /proc/self/ns/time; start times compare only within one of them
    started    INTEGER NOT NULL,        -- start time of the process in clock ticks since boot; 0 = cannot be told
    host       TEXT    NOT NULL,        -- for people
    command    TEXT    NOT NULL,        -- for people: the program's name without its arguments, which may hold secrets
    notes_at   INTEGER,                 -- of a batch: where in the lock file its notes begin,
    notes      INTEGER,                 -- and how many there are, a byte a task
    claims     INTEGER,                 -- of a batch: its claims that have not ended; the record goes with the last
    seal       INTEGER NOT NULL,        -- over all of the above
    CHECK ((notes_at IS NULL) = (notes IS NULL) AND (notes_at IS NULL) = (claims IS NULL))
) STRICT;

-- Serial numbers: a row for each prefix, written by whoever reserves a block of them, before one of the block is given.
-- A serial is (microsecond, count, instance). Each opener of a prefix has an instance of its own, so that no two give
-- the same one; and begins at the mark, so that none goes back, whatever the clock did since. A row is never removed,
-- and its mark never decreases. Behind an older copy of the file serials may go back to where that had come, but none
-- comes twice: their instances are others.
CREATE TABLE idempotent_serial (
    prefix   TEXT    NOT NULL PRIMARY KEY,
    instance INTEGER NOT NULL,          -- of the last opener; each further one is one more, and behind the largest
                                        -- comes 0. Random at first, and whenever the file is new to its lock file
                                        -- or to the boot: a copy shares none with its original
    mark_us  INTEGER NOT NULL,          -- microseconds since the epoch: all serials given so far are below
    seal     INTEGER NOT NULL,          -- over all of the above
    CHECK (octet_length(prefix) BETWEEN 1 AND 8),
    CHECK (instance BETWEEN 0 AND 1125899906842623),
    CHECK (mark_us BETWEEN 0 AND 36028797018963967)
) STRICT, WITHOUT ROWID;

-- Steps: the pieces of a job that are done, each written by the owner of a running claim, by a compare-and-set on it, when
-- the piece has ended and before the next begins. They outlast the claim: the task's next attempt skips them, whoever
-- makes it. They never change, and go with the row of their task.
CREATE TABLE idempotent_step (
    task_id  TEXT    NOT NULL,
    name     TEXT    NOT NULL,
    number   INTEGER NOT NULL,          -- from 1, in the order in which the task's steps were saved
    token    INTEGER NOT NULL,          -- of the claim that saved it
    saved_at INTEGER NOT NULL,          -- microseconds since the epoch by the wall clock, for people
    result   TEXT,                      -- tagged JSON; NULL = the step is done, and its result was lost
    seal     INTEGER NOT NULL,          -- over all of the above
    PRIMARY KEY (task_id, name)
) STRICT, WITHOUT ROWID;

-- The clock, as it was when it could last be trusted to say when a slot is due. One row at most: none before the first
-- look, which writes it; a later one writes it again once it is a minute old or of another boot. While an alarm is open
-- it stays as it was, so that a clock that is put back is known again. The alarm itself is a task like any other, under
-- the task_id that stands here, and its end is the clock's confirmation. No claim reads this table.
CREATE TABLE idempotent_clock (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    wall_us     INTEGER,                -- the wall clock, microseconds since the epoch; NULL, with the next three: the
                                        -- clock has not been trusted yet
    boot_ms     INTEGER,                -- milliseconds since boot at the same instant
    boot_id     TEXT,                   -- of which boot
    newest_us   INTEGER,                -- no time stored until then was after this one
    hardware_us INTEGER,                -- the wall clock minus the hardware clock; NULL = there was none
    accepted_us INTEGER NOT NULL,       -- a deviation by which an operator has confirmed the clock all the same; 0 = none
    alarm       TEXT,                   -- task_id of the alarm that suspends scheduling; NULL = nothing is suspended
    of_jump     INTEGER NOT NULL,       -- 1 = the alarm tells of a jump, so it ends as well when the clock is back
    seal        INTEGER NOT NULL,       -- over all of the above
    CHECK ((wall_us IS NULL) = (boot_ms IS NULL) AND (wall_us IS NULL) = (boot_id IS NULL)),
    CHECK ((wall_us IS NULL) = (newest_us IS NULL)),
    CHECK (of_jump IN (0, 1))
) STRICT;

-- A schedule in one version a row. Another expression or zone begins another version, and what the one before it had not
-- started is skipped. Rows of earlier versions stay: by them the audit reckons which slots there should be.
CREATE TABLE idempotent_schedule (
    name        TEXT    NOT NULL,       -- of the schedule; its slots are NAME@...
    version     INTEGER NOT NULL,       -- the largest one counts
    cron        TEXT    NOT NULL,       -- five fields
    zone        TEXT    NOT NULL,       -- of the IANA database
    after_s     INTEGER NOT NULL,       -- its slots are those after this instant (seconds since the epoch),
    until_s     INTEGER,                -- and up to this one; NULL = it counts still
    watermark_s INTEGER NOT NULL,       -- slots up to here have a row each; goes back only behind a clock that was ahead,
                                        -- with after_s and until_s, in the transaction that removes the rows of slots
                                        -- that it had skipped before their time (sqlite/rewinding.py)
    open_s      INTEGER NOT NULL,       -- no slot before it is running, so nobody looks for one there; behind until_s:
                                        -- up to here slots of this version ran by a clock that was ahead
    grace_ms    INTEGER,                -- how long after its instant a slot may start; NULL = for ever
    state       INTEGER NOT NULL,       -- 0 going, 1 paused, 2 held: the clock was not to be trusted
    skips       TEXT,                   -- a reason = all slots of this version are skipped for it, and none has a row
    seal        INTEGER NOT NULL,       -- over all of the above
    PRIMARY KEY (name, version),
    CHECK (version >= 1),
    CHECK (state BETWEEN 0 AND 2),
    CHECK (after_s <= watermark_s),
    CHECK (until_s IS NULL OR until_s = watermark_s)
) STRICT, WITHOUT ROWID;

-- The limits of one claim, in stamps as boot_stamp above: by the time since boot, which counts suspend and which no clock
-- can set. Written by the claim in its own transaction, so that no claim with a lease is ever seen without it; renewed by
-- its owner, from a thread beside the job; removed by whatever ends the claim, in the transaction of that end. Only the
-- rows of policies that say so are looked for. One whose token is not the task's, or whose task is not running, is void.
--
-- Past until_stamp (and in any later boot) the task may be decided about as if its owner were dead. Until somebody has
-- done so, under the write lock, the owner may still renew and finish: the task's token decides, never the time alone.
-- Past overdue_stamp the job runs longer than it should. That is told, and ends nothing by itself.
CREATE TABLE idempotent_lease (
    task_id       TEXT    NOT NULL PRIMARY KEY,
    token         INTEGER NOT NULL,     -- of the claim
    until_stamp   INTEGER,              -- NULL = without a lease: only a death frees the task
    overdue_stamp INTEGER,              -- NULL = without a time limit
    seal          INTEGER NOT NULL,     -- over all of the above
    CHECK (until_stamp IS NOT NULL OR overdue_stamp IS NOT NULL)
) STRICT, WITHOUT ROWID;

-- The arguments of a task that asked to be rerun by whoever finds its owner dead (`recover=True`, `--recover`). Written
-- by the claim in its own transaction, which is on the disk before the job begins; kept over failures, deaths and
-- releases; removed in the transaction that makes the task final, removes it, or claims it without such a wish. Only the
-- rows of policies that say so are looked for. No statement decides by what is in here, and it is never code: a value
-- for the function that the program itself has under the task's name, or the words of a command that was run before.
CREATE TABLE idempotent_argument (
    task_id    TEXT    NOT NULL PRIMARY KEY,
    is_command INTEGER NOT NULL,        -- 0 = of a function, 1 = of a command
    arguments  TEXT    NOT NULL,        -- tagged JSON. Of a function: its arguments by name, but those that are excluded,
                                        -- or left to their default; of a command: its words, folder and options
    seal       INTEGER NOT NULL,        -- over all of the above
    CHECK (is_command IN (0, 1))
) STRICT, WITHOUT ROWID;
