"""A benchmark row in a process of its own, for tests: ``python -m tests.benchmarks.one_row NAME``."""

import json
import sys

if sys.argv[1] == "bad":
    sys.exit("no such row")
print("what a library says on the way")
print(json.dumps({"name": sys.argv[1], "value": 2}))
