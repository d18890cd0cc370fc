"""What a word of the command line names: MODULE:NAME, a registry or a function."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from idemreg.cli.context import HintedUsageError, settings
from idemreg.cli.streams import ClosedStdout

if TYPE_CHECKING:
    import click

    from idemreg.registry import Registry

__all__ = ["named", "registry_at"]


def named(ctx: click.Context, target: str, what: str, form: str, option: str = "") -> Any:  # noqa: ANN401 - whatever it is
    """What ``module:what`` names, looked for as Python does, from the folder of now. ``form``: how it is typed."""
    module, _, path = target.partition(":")
    if not (module and path) or module.startswith("."):
        msg = f"{option}{target!r} is not of the form module:{what}"
        if what == "registry" and os.path.lexists(target):
            form = f"A file goes before: idemreg --db {shlex.quote(target)} ..."
        raise HintedUsageError(msg, form, ctx)
    if isinstance(sys.stdout, ClosedStdout):
        sys.stdout.is_silent = True
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        msg = f"{option}{target!r} cannot be imported: {type(error).__name__}: {error}"
        command = f"python -c {shlex.quote(f'import {module}')}"
        raise HintedUsageError(msg, f"Does `{command}` work in this folder?", ctx) from error
    for word in path.split("."):
        try:
            found = getattr(found, word)
        except (Exception, SystemExit) as error:  # a module may have a `__getattr__` of its own
            msg = f"{option}{target!r} names nothing: {error}"
            raise HintedUsageError(msg, _nearest(found, word, target, what, form), ctx) from error
    return found


def _nearest(holder: object, word: str, target: str, what: str, form: str) -> str:
    """What was meant, perhaps, in the place of a name that there is not."""
    from difflib import get_close_matches  # noqa: PLC0415 - a typing error only

    module, _, path = target.partition(":")
    for close in get_close_matches(word, dir(holder), n=1):
        return f"Did you mean {module}:{'.'.join(close if one == word else one for one in path.split('.'))}?"
    return f"Is it the right module? Behind the colon stands the {what} in it: `{form}`."


def registry_at(ctx: click.Context, target: str, form: str) -> Registry:
    """The registry of ``module:registry``; an `AsyncRegistry`'s own. ``form``: how the command is typed.

    It has its own file: --db could only name another one. From here on every hint looks into that file.
    """
    if settings().db is not None:
        msg = f"{target} has its own file, and --db names one as well"
        raise HintedUsageError(msg, f"Leave --db out: `{form}`.", ctx)
    from idemreg.registry import Registry  # noqa: PLC0415 - where it is asked for

    found = named(ctx, target, "registry", form)
    registry = getattr(found, "registry", found)
    if not isinstance(registry, Registry):
        msg = f"{target!r} is no registry"
        raise HintedUsageError(msg, form, ctx)
    settings().db = os.path.abspath(registry.path)
    settings().unsafe_path = settings().unsafe_path or registry.unsafe_path
    return registry
