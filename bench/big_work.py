"""The processes whose memory `bench.figures.big` asks for: `python -m bench.big_work export|purge FILE`."""

from __future__ import annotations

import json
import os
import sys
import time

from bench.big_file import PURGED
from bench.crew import memory_mib
from idemreg import Registry


def main(what: str, path: str) -> None:
    began, count = time.perf_counter(), 0
    with Registry(path, create=False) as registry:
        if what == "export":
            with open(os.devnull, "w", encoding="utf-8") as out:
                for count, line in enumerate(registry.export_lines()):  # noqa: B007 - the header counts from 0
                    out.write(line)
            count -= 1  # the end
        else:
            count = registry.purge(prefix=PURGED).removed
    said = {"count": count, "spent_s": time.perf_counter() - began, "memory_mib": memory_mib()}
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
