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
        for word in path.split("."):
            found = getattr(found, word)
    except (Exception, SystemExit) as error:
        msg = f"{option}{target!r} cannot be imported: {type(error).__name__}: {error}"
        raise HintedUsageError(msg, f"python -c {shlex.quote(f'import {module}')}", ctx) from error
    return found


def registry_at(ctx: click.Context, target: str, form: str) -> Registry:
    """The registry of ``module:registry``; an `AsyncRegistry`'s own. ``form``: how the command is typed.

    It has its own file: --db could only name another one. From here on every hint looks into that file.
    """
    if settings().db is not None:
        msg = f"{target} has its own file, and --db names one as well"
        raise HintedUsageError(msg, f"{form}, without --db", ctx)
    from idemreg.registry import Registry  # noqa: PLC0415 - where it is asked for

    found = named(ctx, target, "registry", form)
    registry = getattr(found, "registry", found)
    if not isinstance(registry, Registry):
        msg = f"{target!r} is no registry"
        raise HintedUsageError(msg, form, ctx)
    settings().db = os.path.abspath(registry.path)
    settings().unsafe_path = settings().unsafe_path or registry.unsafe_path
    return registry
