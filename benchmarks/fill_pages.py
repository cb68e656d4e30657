"""Puts what the benchmarks printed into the pages that show it.

    python benchmarks/fill_pages.py

Between `<!-- benchmarks/results/NAME.md -->` and `<!-- end -->` of README.md and docs/*.md stands that file.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from common import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = re.compile(r"(<!-- (benchmarks/results/\S+\.md) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def fill(checkout: Path) -> list[Path]:
    """Brings every such block up to date; the pages that changed."""
    changed = []
    for page in [checkout / "README.md", *sorted((checkout / "docs").glob("*.md"))]:
        before = page.read_text(encoding="utf-8")
        after = BLOCK.sub(lambda m: m[1] + (checkout / m[2]).read_text(encoding="utf-8").strip() + m[3], before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            changed.append(page)
    return changed


def main() -> None:
    for page in fill(CHECKOUT):
        print(f"{page.relative_to(CHECKOUT)}: up to date now", file=sys.stderr)


if __name__ == "__main__":
    main()
