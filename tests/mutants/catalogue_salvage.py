"""The mutants of what comes out of a damaged file: rows, schedules and the clock, and kept arguments."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Patch
from tests.mutants.rows import Off, Row, mutants

__all__ = ["SALVAGE"]

SALVAGING: Final = "idemreg/sqlite/salvaging.py"
HOLDING: Final = "idemreg/sqlite/holding.py"
KEPT_ROWS: Final = "idemreg/sqlite/kept_rows.py"

_TASKS: Final = mutants(
    "salvage",
    Off(),
    "tests/test_salvage.py",
    Row(
        "salvage-without-seal",
        "a row comes out of a damaged file whose seal does not hold",
        (Patch("idemreg/sqlite/rows.py", "if not task_holds(row):", "if False:"),),
        "test_a_row_whose_seal_fails_stays_behind_and_is_named",
    ),
    Row(
        "salvage-an-older-copy",
        "an older copy of a row is believed, by which a task that has run since runs again",
        (Patch(SALVAGING, "(is_sure and task.status is not Status.RUNNING)", "task.status is not Status.RUNNING"),),
        "test_an_older_copy_of_a_row_is_not_believed",
    ),
    Row(
        "salvage-without-the-wal-that-was",
        "what the lock file tells of a -wal that is gone is not asked for",
        (Patch(SALVAGING, "image.has_lost_frames or _has_lost_wal(path, image, clock)", "image.has_lost_frames"),),
        "test_a_wal_that_is_gone_or_shorter_leaves_nothing_claimable",
    ),
    Row(
        "salvage-floor",
        "the copy gives tokens that the file had given",
        (Patch(SALVAGING, "((self._highest >> EPOCH_BITS) + SPARE_EPOCHS)", "(self._highest >> EPOCH_BITS)"),),
        "test_the_loss_of_the_files_own_row_is_told",
    ),
)

_HELD: Final = mutants(
    "salvage",
    Off(),
    "tests/test_salvage_held.py",
    Row(
        "salvage-schedules-go-on",
        "schedules go on in the copy of which a row may be lost",
        (Patch(HOLDING, "self._has_schedules = is_seen[SCHEDULES] and", "self._has_schedules = True or"),),
        "test_a_damaged_row_pauses_every_schedule",
    ),
    Row(
        "salvage-older-schedules-go-on",
        "schedules go on in the copy by rows that may be older ones, since frames of the -wal are lost",
        (
            Patch(
                HOLDING,
                'is_seen[SCHEDULES] and not gaps.lost_frames and not self._has_any("WHERE NOT is_sure")',
                "is_seen[SCHEDULES]",
            ),
        ),
        "test_lost_frames_pause_every_schedule_and_suspend_by_the_clock",
    ),
    Row(
        "salvage-clock-believed",
        "scheduling goes on in the copy where the row about the clock is lost",
        (Patch(HOLDING, "self._is_clock_told or self._has_any() or not is_seen[CLOCK]:", "False:"),),
        "test_a_lost_row_about_the_clock_suspends_the_copy",
    ),
)

_KEPT: Final = mutants(
    "salvage",
    Off(),
    "tests/test_salvage_kept.py",
    Row(
        "salvage-arguments-without-seal",
        "a task is rerun in the copy with arguments whose seal does not hold",
        (Patch(KEPT_ROWS, "return is_one and values_hold(values[:-1], seal)", "return is_one"),),
        "test_arguments_whose_seal_fails_are_a_gap",
    ),
    Row(
        "salvage-words-of-others",
        "a command's words are carried over out of a file that others can write",
        (Patch(KEPT_ROWS, "(is_sure and self._takes_commands)", "is_sure"),),
        "test_commands_that_others_may_have_written_stay_behind",
    ),
    Row(
        "salvage-older-words",
        "a command's words are carried over that may be those of a former task",
        (Patch(KEPT_ROWS, "(is_sure and self._takes_commands)", "self._takes_commands"),),
        "test_what_may_be_an_older_copy_is_no_command",
    ),
    Row(
        "salvage-arguments-of-the-final",
        "the copy has arguments of tasks that are final, or kept none",
        (Patch(KEPT_ROWS, "WHERE task_id NOT IN (SELECT task_id FROM log WHERE {_KEEPING})", "WHERE 0"),),
        "test_no_other_task_has_arguments_in_the_copy",
    ),
    Row(
        "salvage-arguments-not-missed",
        "a task goes on as if its arguments were kept, though they are lost",
        (Patch(SALVAGING, "task.policy._replace(keeps_arguments=is_kept)", "task.policy"),),
        "test_arguments_on_a_page_that_is_gone_are_a_gap",
    ),
)

SALVAGE: Final = (*_TASKS, *_HELD, *_KEPT)
