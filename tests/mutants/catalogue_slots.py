"""The mutants of scheduled work: which slots run, what the clock check says of the clock, and serial numbers."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Patch
from tests.mutants.rows import Off, Row, mutants

__all__ = ["SLOTS"]

SQLITE: Final = "idemreg/sqlite/"
PLANNING: Final = "idemreg/planning.py"
SCHEDULED: Final = "idemreg/scheduled.py"
VERDICT: Final = "idemreg/clockcheck/verdict.py"
MARKS: Final = SQLITE + "serial_marks.py"

_SLOTS: Final = mutants(
    "slots",
    Off(),
    "tests/test_scheduled.py",
    Row(
        "slot-made-as-done",
        "what comes due gets its row as if it had been dealt with",
        (
            Patch(
                SQLITE + "slots.py",
                "    pending = (int(Status.PENDING), None, None)\n",
                "    pending = skipped\n",
            ),
        ),
        "test_what_is_due_runs_once",
    ),
    Row(
        "slots-before-the-first-look",
        "a schedule that is new fires what it would have had in the hour before",
        (Patch(PLANNING, "_version(table, 1, now_s, now_s)", "_version(table, 1, now_s - 3_601, now_s - 3_601)"),),
        "test_what_is_due_runs_once",
    ),
    Row(
        "slots-of-a-changed-cron",
        "another expression begins where the one before began, and fires the past",
        (
            Patch(
                PLANNING,
                "_version(table, ended.version + 1, now_s, seen.open_s, state)]",
                "_version(table, ended.version + 1, seen.after_s, seen.open_s, state)]",
            ),
        ),
        "test_another_expression_begins_another_version",
    ),
    Row(
        "slots-taken-back",
        "a process with the expression of before takes the schedule back",
        (
            Patch(
                PLANNING, "look.own is not None and look.own < seen.version:", "look.own is not None and look.own < 0:"
            ),
        ),
        "test_what_waits_is_superseded",
    ),
    Row(
        "slots-taken-back-behind-doubt",
        "a look in doubt of the clock makes another's schedule one's own",
        (Patch(SCHEDULED, "if counts is not None and table.is_of(counts):", "if counts is not None:"),),
        "test_a_look_in_doubt_does_not_make_an_old_process_a_new_one",
    ),
    Row(
        "slots-latest-is-oldest",
        "of several slots that wait the oldest runs in place of the newest",
        (Patch(PLANNING, "[at_s for at_s in waits[-1:] if at_s > begun_s]", "waits[:1]"),),
        "test_what_was_missed_is_caught_up",
    ),
    Row(
        "slot-beside-another",
        "nobody looks behind the claim whether another slot is at work",
        (
            Patch(
                SCHEDULED,
                "    if any(owner.liveness is not Liveness.DEAD for owner in others):\n",
                "    if any(owner is None for owner in others):\n",
            ),
        ),
        "test_a_claim_that_finds_another_at_work_is_put_back",
    ),
    Row(
        "slot-window-not-extended",
        "a window closes in time although the clock deviates",
        (Patch(PLANNING, "(table.grace_ms + look.permit.extension_ms) * MS_US", "table.grace_ms * MS_US"),),
        "test_an_extended_window_closes",
    ),
    Row(
        "slots-hold-not-kept",
        "that the clock has held a schedule is not noted: what lost its window is told as too late",
        (Patch(PLANNING, "NOTHING._replace(becomes=_held(seen))", "NOTHING"),),
        "test_a_clock_that_is_not_trusted_suspends",
    ),
    Row(
        "slots-caught-up-in-doubt",
        "what was missed is caught up while only the hardware clock serves",
        (Patch(PLANNING, "    if not look.permit.catch_up:\n", "    if not look.permit:\n"),),
        "test_by_a_clock_that_serves_only_the_newest_starts",
    ),
)

_WATERMARK: Final = mutants(
    "slots",
    Off(),
    "tests/test_crash.py",
    Row(
        "slots-watermark-apart",
        "the watermark moves in a transaction of its own, before the rows: who dies between them loses the slots",
        (
            Patch(
                SQLITE + "slots.py",
                "    connection.executemany(_INSERT, _rows(name, ends, wanted, stamp))\n"
                '    faults.point("slots.in-transaction")\n',
                '    connection.execute("COMMIT")\n'
                '    connection.execute("BEGIN IMMEDIATE")\n'
                '    faults.point("slots.in-transaction")\n'
                "    connection.executemany(_INSERT, _rows(name, ends, wanted, stamp))\n",
            ),
        ),
        "test_killed_there[slots.in-transaction-0]",
    ),
)

_AHEAD: Final = mutants(
    "slots",
    Off(),
    "tests/test_clock_ahead.py",
    Row(
        "slots-lost-to-a-clock-ahead",
        "what a clock has skipped that was ahead stays skipped, and nothing runs until that time has come",
        (Patch(PLANNING, "return max(seen.watermark_s, found.skipped_s or 0) > self.now_s", "return False"),),
        "test_a_clock_eight_hours_ahead_behind_a_reboot_costs_no_slot",
    ),
    Row(
        "slots-taken-back-that-ran",
        "behind a clock that was ahead the row of what ran early goes as well",
        (
            Patch(
                "idemreg/ledger.py",
                "row.status is Status.SKIPPED and row.settled_by == BY_SCHEDULE\n    return is_by_schedule"
                " and row.attempt == 0 and row.evidence in _REASONS",
                "row.status is not Status.RUNNING\n    return is_by_schedule",
            ),
        ),
        "test_a_clock_eight_hours_ahead_behind_a_reboot_costs_no_slot",
    ),
    Row(
        "slots-taken-back-by-an-older-time",
        "who looked by an older time than the schedule has by now takes back what was rightly skipped",
        (Patch(SQLITE + "keeping.py", "seen, max(now_s, latest_s), ", "seen, min(now_s, latest_s), "),),
        "test_who_looked_by_an_older_time_takes_nothing_back",
    ),
    Row(
        "slots-taken-back-below-the-floor",
        "the rows that go raise no floor: a -wal that removes them is taken for one that hides them",
        (Patch(SQLITE + "rewinding.py", "        raise_floor(connection, 0)\n", ""),),
        "test_who_dies_behind_it_leaves_a_file_that_opens",
    ),
    Row(
        "slots-removed-come-again",
        "an early slot whose row was purged comes again with those that were skipped",
        (Patch(SQLITE + "rewinding.py", "    mark_removed(connection, seen.name, removed, wanted, stamp)\n", ""),),
        "test_what_ran_early_and_was_purged_runs_no_more",
    ),
    Row(
        "slots-purged-before-their-time",
        "purge takes the row of a slot that ran early and whose time has not come",
        (
            Patch(SQLITE + "purging.py", '    wanted.add(f"NOT {_TO_COME}")\n', ""),
            Patch(SQLITE + "purging.py", " AND NOT {_TO_COME}", ""),
        ),
        "test_purge_takes_no_slot_that_is_to_come",
    ),
)

_NIGHTS: Final = mutants(
    "slots",
    Off(),
    "tests/test_cron.py",
    Row(
        "slot-twice-in-the-double-hour",
        "a fixed time that the clock shows twice is two slots",
        (
            Patch(
                "idemreg/cron.py",
                'not any(field.startswith("*") for field in fields[:2])',
                'any(field.startswith("*") for field in fields[:0])',
            ),
        ),
        "test_a_fixed_time_that_comes_twice_runs_the_first_time",
    ),
)

_CLOCK: Final = mutants(
    "clock check",
    Off(),
    "tests/test_clock_check.py",
    Row(
        "clock-jump-unseen",
        "a jump of the wall clock suspends nothing",
        (Patch(VERDICT, "suspends=jumped or is_behind", "suspends=is_behind"),),
        "test_a_jump_suspends_until_it_is_confirmed",
    ),
    Row(
        "clock-behind-unseen",
        "a clock behind the newest stored time suspends nothing",
        (Patch(VERDICT, "suspends=jumped or is_behind", "suspends=jumped"),),
        "test_a_clock_behind_a_stored_time_suspends",
    ),
    Row(
        "newest-time-not-noted",
        "the times that rows are stamped with are noted nowhere: a scheduler knows those of the first look alone",
        (
            Patch(
                "idemreg/sqlite/opened.py",
                "        if not newest.after_us < wall_us <= newest.until_us:\n",
                "        if wall_us < 0:\n",
            ),
        ),
        "test_a_scheduler_sees_whatever_was_stored_since_its_last_look",
    ),
    Row(
        "clock-confirms-itself",
        "an alarm ends at the next look, whatever that finds",
        (
            Patch(
                "idemreg/clockcheck/check.py",
                "    elif look.judged.confirms or (look.watch.of_jump and look.judged.is_back):\n",
                "    elif look:\n",
            ),
        ),
        "test_a_jump_suspends_until_it_is_confirmed",
    ),
    Row(
        "clock-cannot-tell-suspends",
        "a clock of which no source knows anything suspends scheduling",
        (Patch(VERDICT, "worst_us >= suspend_us + accepted_us,", "finest_us >= suspend_us + accepted_us,"),),
        "test_nobody_can_tell_and_all_goes_on",
    ),
)

_SERIALS: Final = mutants(
    "serial numbers",
    Off(),
    "tests/test_serials.py",
    Row(
        "serial-mark-behind-its-block",
        "the mark is stored without the block that is given: it comes when the next one does",
        (Patch(MARKS, "mark_us=max(last.mark_us, until_us)", "mark_us=max(last.mark_us, begin_us)"),),
        "test_they_increase_through_every_history_of_the_clock",
    ),
    Row(
        "serial-of-a-block-not-synced",
        "numbers that are promised to be durable are given of a block that is not",
        (Patch("idemreg/serials.py", "block.until_us if durable else self._until_us[True]]", "block.until_us]"),),
        "test_a_durable_one_is_of_a_durable_block",
    ),
    Row(
        "serial-of-the-parent",
        "a forked child goes on under its parent's instance",
        (Patch("idemreg/serials.py", "after_in_child=_renew_all)", "after_in_child=_lines.copy)"),),
        "test_a_forked_child_has_an_instance_of_its_own",
    ),
)

_COPIES: Final = mutants(
    "serial numbers",
    Off(),
    "tests/test_serials_of_copies.py",
    Row(
        "serial-of-the-original",
        "a copy of the file draws no new instance, and gives the numbers of its original",
        (Patch(SQLITE + "upkeep.py", "        _draw_anew(connection)\n", ""),),
        "test_no_number_is_given_by_both",
    ),
)

SLOTS: Final = (*_SLOTS, *_WATERMARK, *_AHEAD, *_NIGHTS, *_CLOCK, *_SERIALS, *_COPIES)
