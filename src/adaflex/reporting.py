"""Where a plan's report goes: to stderr as text, and to a file as a page.

In: ``Planned``, the option ``report``. Out: what was written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from adaflex.planning import Planned
from adaflex.report import text_report
from adaflex.runtime.artifact_file import replace_file


def write_report(planned: Planned, where: bool | str) -> None:
    """``True``: the text on stderr; a path: the HTML page there too, whole or not at all."""
    print(text_report(planned), file=sys.stderr)
    if where is True:
        return
    from adaflex.report_html import page

    replace_file(Path(str(where)), [page(planned).encode()])
