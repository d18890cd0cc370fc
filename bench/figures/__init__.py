"""Every figure, in the order of the table. A room a kind of load; `bench.model` says what a figure is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.figures import (
    barriers,
    batches,
    big,
    calls,
    disk,
    leases,
    peers,
    processes,
    serials,
    slots,
    threads,
    together,
)

if TYPE_CHECKING:
    from bench.model import Figure

__all__ = ["FIGURES"]

FIGURES: Final[dict[str, Figure]] = {
    figure.name: figure
    for figure in (
        *calls.FIGURES,
        *barriers.FIGURES,
        *peers.FIGURES,
        *processes.FIGURES,
        *threads.FIGURES,
        *together.FIGURES,
        *batches.FIGURES,
        *serials.FIGURES,
        *slots.FIGURES,
        *disk.FIGURES,
        *leases.FIGURES,
        *big.FIGURES,
    )
}
