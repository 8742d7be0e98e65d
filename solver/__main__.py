"""``python -m adaflex.solver allocate ...`` is ``adaflex allocate ...``: the same shell, found at run time.

In: arguments. Out: an exit code.
"""

import importlib

if __name__ == "__main__":
    raise SystemExit(importlib.import_module("adaflex.cli").main())
