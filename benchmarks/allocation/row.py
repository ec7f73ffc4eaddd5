"""``python -m benchmarks.allocation.row NAME [--quick]``: measures one row in a process of its own and prints it."""

import argparse
import json
import sys
import time

from benchmarks import language_model as lm
from benchmarks.allocation.settings import Setting, settings
from benchmarks.allocation.shared_out import byte_decoder, byte_search, byte_texts, share_out
from benchmarks.one_process import named
from compressjax.allocation import EvoPress


def measure(setting: Setting, quick: bool) -> dict:
    """Shares the bits out by every search and measures each choice; ``quick`` only shows that it works."""
    if setting.network == "bytes":
        cfg, params = byte_decoder(quick)
        tokens, text = byte_texts(quick)
        search = byte_search(quick)
    else:
        bed = lm.smollm2(2 if quick else None)
        cfg, params = bed.cfg, bed.params
        tokens = lm.calibration("wikipedia:train", *((4, 64) if quick else (32, 256)))
        text = lm.held_out("wikipedia:test", *((2, 64) if quick else (8, 512)))
        # Few generations, so it goes on from the best choice that costs nothing to find.
        size, judged = ((2, 4), (128, 256)) if quick else ((16, 8), (256, 1024))
        search = EvoPress(generations=size[0], offspring=size[1], survivors=(2, 1), tokens=judged)
    cpu = time.process_time()
    found = share_out(
        cfg, params, tokens, text, setting.levels, search, bits=setting.bits, from_best=setting.network != "bytes"
    )
    return {
        "name": setting.name,
        "levels": [repr(level) for level in setting.levels],
        "budget": setting.bits,
        "choices": {name: own._asdict() for name, own in found.items()},
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allocation.row")
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(arguments)
    print(json.dumps(measure(named(settings(), args.name), args.quick)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
