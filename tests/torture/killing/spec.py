"""One task as a thing of its own: what each operation may answer, and what it leaves. Small enough to be read whole.

It is written from the promises and imports nothing of idemreg, so that it shares no mistake with it. An operation has a
place in time somewhere between its first and its last record; `step` says what it may do there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FOR_EVER", "NO_TASK", "Op", "State", "step"]

FOR_EVER: Final = 1 << 62  # the last record of what has none

# Answers. PENDING: nobody was told, for the caller was killed; so it has happened, or it never will.
PENDING: Final = "pending"
NOTHING: Final = "nothing"  # an error of the store that says so


class Op(NamedTuple):
    """One operation on the task, by one process, between two records of the witness."""

    begun: int
    ended: int
    process: int
    kind: str
    answer: str
    token: int | None = None
    attempt: int = 0
    result: str | None = None
    asked: str = ""  # policy, verdict or end
    most: int = 0  # attempts
    batch: bool = False


class State(NamedTuple):
    """The row, and who is dead."""

    status: str = "none"
    attempt: int = 0
    token: int | None = 0  # None: given to somebody who was killed before he could say which
    highest: int = 0  # of all tokens that are known to have been given
    result: str | None = None
    owner: int = 0
    is_entered: bool = True
    may_retry: bool = False  # an operator has said so, whatever its attempts
    is_said: bool = False  # an operator, or a verdict, has said that it may run
    # The claim: was it failed, might it be retried, was it said to.
    before: tuple[bool, bool, bool] = (False, False, False)
    dead: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()  # alive, but their lock is gone: they may be taken for dead


NO_TASK: Final = State()


def step(state: State, op: Op) -> Iterator[State]:
    """The states that the operation may leave, if it is carried out in this one. None: it cannot be."""
    if op.kind == "die":
        yield state._replace(dead=state.dead | {op.process})
    elif op.kind == "lose":
        yield state._replace(lost=state.lost | {op.process})
    elif op.process in state.dead:
        if op.answer == PENDING:
            yield state  # it did not happen while he lived, so it never did
    elif op.answer == NOTHING:
        yield state
    else:
        if op.answer == PENDING:
            yield state
        yield from _KINDS[op.kind](state, op)


def _claim(state: State, op: Op) -> Iterator[State]:
    if state.status != "running":
        yield from _claim_free(state, op)
        return
    if state.owner in state.dead or state.owner in state.lost:
        yield from _claim_dead(state, op)
    if state.owner not in state.dead and op.answer == "running":
        yield state


def _claim_free(state: State, op: Op) -> Iterator[State]:
    match state.status:
        case "none":
            yield from _grant(state, op, 1)
        case "pending":
            yield from _grant(state, op, state.attempt + 1)
        case "failed" if state.may_retry or state.attempt < op.most:
            yield from _grant(state, op, state.attempt + 1)
        case "failed" if op.answer == "failed":
            yield state
        case "unknown" if op.answer == "unknown" and op.asked != "verify":
            yield state
        case "succeeded" if op.answer == "done" and op.result == state.result and op.attempt == state.attempt:
            yield from _seen(state, op.token)


def _claim_dead(state: State, op: Op) -> Iterator[State]:
    if not state.is_entered:
        yield from _grant(state, op, state.attempt)
    elif op.asked == "hold" and op.answer in ("unknown", PENDING):
        yield _ended(state, "unknown")
    elif op.asked == "rerun" and state.attempt < op.most:
        yield from _grant(state, op, state.attempt + 1)
    elif op.asked == "rerun" and op.answer in ("failed", PENDING):
        yield _ended(state, "failed")


def _grant(state: State, op: Op, attempt: int) -> Iterator[State]:
    if op.answer not in ("granted", PENDING) or (op.answer == "granted" and op.attempt != attempt):
        return
    if op.token is not None and op.token <= state.highest:
        return
    yield state._replace(
        status="running",
        attempt=attempt,
        token=op.token,
        highest=state.highest if op.token is None else op.token,
        result=None,
        owner=op.process,
        is_entered=not op.batch,
        may_retry=False,
        is_said=False,
        before=(state.status == "failed", state.may_retry, state.is_said),
    )


def _verify(state: State, op: Op) -> Iterator[State]:
    """A claim for the verify hook: the same attempt, and the body is not entered."""
    is_dead = state.status == "running" and (state.owner in state.dead or state.owner in state.lost)
    if state.status == "unknown" or (is_dead and state.is_entered):
        yield from _grant(state, op._replace(attempt=state.attempt), state.attempt)


def _enter(state: State, op: Op) -> Iterator[State]:
    if _is_own(state, op):
        yield state._replace(is_entered=True)


def _finish(state: State, op: Op) -> Iterator[State]:
    if not _is_own(state, op):
        # A job that could not begin a step since its claim was lost raises what the loss itself is told by.
        if op.answer in ("lost", PENDING) or op.asked == "interrupted":
            yield state
    elif op.answer in ("recorded", PENDING):
        match op.asked:
            case "succeeded":
                yield _ended(state, "succeeded")._replace(result=op.result)
            case "released":
                was_failed, may_retry, is_said = state.before
                ended = _ended(state, "failed" if was_failed else "pending")
                yield ended._replace(attempt=state.attempt - 1, may_retry=may_retry, is_said=is_said)
            case "interrupted":  # of a job under rerun, which could not save a step
                yield _ended(state, "pending" if state.attempt < op.most else "failed")
            case _:
                yield _ended(state, op.asked)


def _is_own(state: State, op: Op) -> bool:
    return state.status == "running" and state.token == op.token and state.owner == op.process


def _settle(state: State, op: Op) -> Iterator[State]:
    """The verdict of a verify hook."""
    if not _is_own(state, op):
        if op.answer in ("lost", PENDING):
            yield state
    elif op.answer in ("ok", PENDING):
        yield _by_verdict(state, op)


def _resolve(state: State, op: Op) -> Iterator[State]:
    """What an operator knows of a task that nobody else knows about."""
    is_alive = state.status == "running" and state.owner not in state.dead
    is_dead = state.status == "running" and (state.owner in state.dead or state.owner in state.lost)
    if op.answer in ("ok", PENDING) and (state.status == "unknown" or is_dead):
        yield _by_verdict(state, op)
    if op.answer == "refused" and (is_alive or state.status not in ("unknown", "running")):
        yield state


def _by_verdict(state: State, op: Op) -> State:
    match op.asked:
        case "happened":
            return _ended(state, "succeeded")._replace(result=op.result)
        case "did-not-happen":
            return _ended(state, "failed")._replace(is_said=True)
    return _ended(state, "unknown")


def _retry(state: State, op: Op) -> Iterator[State]:
    if state.status == "failed":
        if op.answer in ("ok", PENDING):
            yield state._replace(may_retry=True, is_said=True)
    elif op.answer == "refused":
        yield state


def _forget(state: State, op: Op) -> Iterator[State]:
    is_alive = state.status == "running" and state.owner not in state.dead
    is_dead = state.status == "running" and (state.owner in state.dead or state.owner in state.lost)
    by_force = op.asked == "force"
    may = state.status in ("pending", "failed", "succeeded") or (by_force and (state.status == "unknown" or is_dead))
    if op.answer in ("ok", PENDING) and may:
        yield _ended(state, "none")._replace(attempt=0, result=None)
    if op.answer == "refused" and (is_alive or not may):
        yield state


def _sweep(state: State, op: Op) -> Iterator[State]:
    """What a sweep has done about the task: run it again where its arguments are kept, settled it, or nothing."""
    is_dead = state.status == "running" and (state.owner in state.dead or state.owner in state.lost)
    has_attempts = state.attempt < op.most
    becomes = ""
    if is_dead and state.is_entered:
        becomes = "unknown" if op.asked in ("hold", "verify") else "" if has_attempts else "failed"
    if becomes and op.answer in (becomes, PENDING):
        yield _ended(state, becomes)
    runs = op.asked == "kept" and _waits(state, op)
    if runs and op.answer in ("granted", PENDING):
        yield from _grant(state, op, state.attempt + 1)
    if op.answer == "left" and is_dead and not becomes:  # its next call runs it by itself
        yield state
    is_due = state.status == "running" and state.owner in state.dead and (becomes or runs)
    if op.answer == "untouched" and not is_due:
        yield state


def _bury(state: State, op: Op) -> Iterator[State]:
    """What a sweep may have done before it ran a task: given it up, whereupon somebody else allowed it one more run."""
    yield state
    is_dead = state.status == "running" and (state.owner in state.dead or state.owner in state.lost)
    if is_dead and state.is_entered and state.attempt >= op.most:
        yield _ended(state, "failed")


def _waits(state: State, op: Op) -> bool:
    """Whether a job whose arguments are kept is to be run again without a caller."""
    match state.status:
        case "running":
            return (state.owner in state.dead or state.owner in state.lost) and state.attempt < op.most
        case "pending":
            return state.attempt > 0
        case "failed":
            return state.may_retry or (state.is_said and state.attempt < op.most)
    return False


def _get(state: State, op: Op) -> Iterator[State]:
    if op.asked == state.status == "none":
        yield state
    elif (op.asked, op.attempt, op.result) == (state.status, state.attempt, state.result):
        yield from _seen(state, op.token)


def _seen(state: State, token: int | None) -> Iterator[State]:
    """Somebody was told the token of the row."""
    if state.token == token:
        yield state
    elif state.token is None and token is not None and token > state.highest:
        yield state._replace(token=token, highest=token)


def _ended(state: State, status: str) -> State:
    fresh = {"owner": 0, "is_entered": True, "may_retry": False, "is_said": False, "before": NO_TASK.before}
    return state._replace(status=status, **fresh)  # type: ignore[arg-type]


_KINDS: Final[dict[str, Callable[[State, Op], Iterator[Any]]]] = {
    "claim": _claim,
    "verify": _verify,
    "enter": _enter,
    "finish": _finish,
    "settle": _settle,
    "resolve": _resolve,
    "retry": _retry,
    "forget": _forget,
    "get": _get,
    "sweep": _sweep,
    "bury": _bury,
}
