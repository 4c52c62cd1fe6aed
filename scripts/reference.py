"""Write the parts of the documentation that come from the code; a test compares them.

python scripts/reference.py            # writes
python scripts/reference.py --check    # exits 1 if a page says something else
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts import configuration_reference, http_reference, markup_reference, metrics_reference

PAGES = (metrics_reference.PAGE, configuration_reference.PAGE, http_reference.PAGE, markup_reference.PAGE)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page would change")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        text = page.path.read_text("utf-8")
        fresh = page.written(text)
        if fresh != text:
            stale.append(page.name)
            if not check:
                page.path.write_text(fresh, "utf-8")
    if stale and check:
        print(f"not what the code says: {', '.join(stale)}: run make reference", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
