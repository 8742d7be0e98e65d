"""``python -m adaflex`` is the ``adaflex`` command."""

from adaflex.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
