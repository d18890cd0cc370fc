"""The options of a call, taken at the door: words become enums, durations become numbers, nonsense is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypedDict, cast

from idemreg.clock import seconds
from idemreg.codec import as_codec
from idemreg.counted import word_for
from idemreg.deciding import Limits
from idemreg.keyed import OPEN, Secrecy
from idemreg.model import MAX_ATTEMPTS_LIMIT, OnCrash, OnFailure, Policy, Verdict, is_durable

if TYPE_CHECKING:
    from datetime import timedelta

    from idemreg.codec import Codec
    from idemreg.leasing import LeaseLost

__all__ = [
    "CallOptions",
    "CommonOptions",
    "Durability",
    "NoVerdictError",
    "Options",
    "Verified",
    "VerifyHook",
]

Durability = Literal["full", "normal"]

# Stored in milliseconds; more than ten thousand years is a mistake in the unit.
MAX_KEEP_S: Final = 10_000 * 365 * 86_400


# Seconds. A renewal comes at a third of a lease, and must have some time to fail and be tried again.
MIN_LEASE_S: Final = 1.0
MIN_TIMEOUT_S: Final = 0.001
MAX_LIMIT_S: Final = 365 * 86_400


class Verified(NamedTuple):
    """What a verify hook found out. ``result`` is what later callers get if it happened."""

    verdict: Verdict
    result: Any = None
    evidence: str = ""

    @classmethod
    def of(cls, answer: object) -> Verified:
        """A hook may answer briefly: True (happened), False (did not happen), None (cannot tell), or a Verdict."""
        verified = answer if isinstance(answer, cls) else cls(cast("Verdict", answer))
        verdict: object = verified.verdict
        if verdict is None or isinstance(verdict, bool):
            return verified._replace(verdict=_BRIEF[verdict])
        if not isinstance(verdict, Verdict) or verdict not in _BRIEF.values():  # 1 equals HAPPENED
            msg = f"a verify hook says happened, did-not-happen or cannot-tell, or True, False or None, not {verdict!r}"
            raise TypeError(msg)
        return verified


class NoVerdictError(Exception):
    """A verify hook was cut off in its middle, and has not answered: the question is as open as it was."""


# What a verify hook may say; the other verdicts are an operator's.
_BRIEF: Final = {True: Verdict.HAPPENED, False: Verdict.DID_NOT_HAPPEN, None: Verdict.CANNOT_TELL}


_Answer: TypeAlias = Verified | Verdict | bool | None

# What tells whether a dead owner's task happened: called with the task and the arguments; of coroutines it is awaited.
VerifyHook: TypeAlias = Callable[..., _Answer | Awaitable[_Answer]]


class CommonOptions(TypedDict, total=False):
    """The keyword options that functions and commands share."""

    on_duplicate: Literal["return", "raise"]
    wait: float | timedelta
    on_failure: Literal["retry", "hold"]
    max_attempts: int
    on_crash: Literal["hold", "rerun", "verify"]
    keep_for: float | timedelta | None
    durability: Durability | None
    lease: float | timedelta | None
    timeout: float | timedelta | None


class CallOptions(CommonOptions, total=False):
    """The keyword options that the decorator, ``run`` and ``claim`` share."""

    verify: VerifyHook | None
    unknown_on: type[BaseException] | tuple[type[BaseException], ...]
    release_on: type[BaseException] | tuple[type[BaseException], ...]
    result: Any
    on_lost: Callable[[LeaseLost], object] | None


class Options(NamedTuple):
    """`CallOptions`, checked and completed."""

    policy: Policy
    raise_on_duplicate: bool
    wait_s: float
    verify: VerifyHook | None  # there where on_crash is "verify"
    unknown_on: tuple[type[BaseException], ...]
    release_on: tuple[type[BaseException], ...]
    codec: Codec | None
    keep_ms: int | None
    durable: bool
    secrecy: Secrecy = OPEN
    limits: Limits | None = None
    on_lost: Callable[[LeaseLost], object] | None = None

    @classmethod
    def of(cls, options: CallOptions, durability: Durability, secrecy: Secrecy = OPEN) -> Options:
        """Check what the caller gave; ValueError or TypeError name the option."""
        if unknown := options.keys() - CallOptions.__annotations__.keys():
            msg = f"there is no option {', '.join(sorted(unknown))}"
            raise TypeError(msg)
        verify: object = options.get("verify")
        on_crash = _choice(options, "on_crash", "hold", {one.name.lower(): one for one in OnCrash})
        on_failure = _choice(options, "on_failure", "retry", {one.name.lower(): one for one in OnFailure})
        if (verify is not None) != (on_crash is OnCrash.VERIFY):
            msg = 'verify= and on_crash="verify" go together'
            raise ValueError(msg)
        if verify is not None and not callable(verify):
            msg = f"verify takes a callable, not {verify!r}"
            raise TypeError(msg)
        return cls(
            policy=Policy(on_crash, on_failure, _attempts(options.get("max_attempts", 10))),
            raise_on_duplicate=_choice(options, "on_duplicate", "return", {"return": False, "raise": True}),
            wait_s=seconds(options.get("wait", 0), what="wait"),
            verify=options.get("verify"),
            unknown_on=_errors(options, "unknown_on"),
            release_on=_errors(options, "release_on"),
            codec=as_codec(options.get("result")),
            keep_ms=_keep_ms(options.get("keep_for")),
            durable=is_durable(options.get("durability") or durability),
            secrecy=secrecy,
            limits=_limits(options),
            on_lost=_on_lost(options),
        )

    def for_batch(self) -> Options:
        """Themselves; ValueError where they limit a claim.

        The jobs of a batch begin one after the other. A lease would have to be renewed for those that wait, at which
        nobody is at work, and a late owner could still enter one of them.
        """
        if self.limits is not None:
            msg = "lease= and timeout= are for single claims: the jobs of a batch wait for one another"
            raise ValueError(msg)
        return self


def _choice(options: Any, name: str, default: str, choices: dict[str, Any]) -> Any:  # noqa: ANN401 - any enum
    value = options.get(name, default)
    if not isinstance(value, str) or value not in choices:
        msg = f"{name} is one of {', '.join(map(repr, choices))}, not {value!r}"
        raise ValueError(msg)
    return choices[value]


def _attempts(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_ATTEMPTS_LIMIT:
        msg = f"max_attempts is a whole number from 1 to {MAX_ATTEMPTS_LIMIT:,}, not {value!r}"
        raise ValueError(msg)
    return value


def _errors(options: Any, name: str) -> tuple[type[BaseException], ...]:  # noqa: ANN401 - a CallOptions
    value = options.get(name, ())
    errors = value if isinstance(value, tuple) else (value,)
    for error in errors:
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            msg = f"{name} takes exception classes, not {(error if isinstance(error, type) else type(error)).__name__}"
            raise TypeError(msg)
    return errors


def _limits(options: CallOptions) -> Limits | None:
    lease, timeout = options.get("lease"), options.get("timeout")
    if lease is None and timeout is None:
        return None
    return Limits(
        None if lease is None else _span_ms(lease, what="lease", least_s=MIN_LEASE_S),
        None if timeout is None else _span_ms(timeout, what="timeout", least_s=MIN_TIMEOUT_S),
    )


def _span_ms(duration: float | timedelta, *, what: str, least_s: float) -> int:
    span_s = seconds(duration, what=what)
    if not least_s <= span_s <= MAX_LIMIT_S:
        msg = f"{what} takes {least_s:g} {word_for(least_s, 'second')} at least and a year at most, not {duration!r}"
        raise ValueError(msg)
    return int(span_s * 1_000)


def _on_lost(options: CallOptions) -> Callable[[LeaseLost], object] | None:
    on_lost: object = options.get("on_lost")
    if on_lost is not None and (not callable(on_lost) or options.get("lease") is None):
        msg = f"on_lost takes a callable, and goes with lease=, not {on_lost!r}"
        raise ValueError(msg)
    return options.get("on_lost")


def _keep_ms(duration: float | timedelta | None) -> int | None:
    if duration is None:
        return None
    keep_s = seconds(duration, what="keep_for")
    if keep_s > MAX_KEEP_S:
        msg = f"keep_for takes seconds or a timedelta; {duration!r} is more than ten thousand years"
        raise ValueError(msg)
    return int(keep_s * 1_000)
