"""How fast the operations are, compared with their peers and with the machine's limits, in interleaved runs.

    python benchmarks/operations/run.py --suite cpu|gpu [--op NAME ...] [--rounds N] --out FILE.json|FOLDER

Correctness comes first: what differs from the fp64 reference gets a reason instead of a time, and the exit code is 1.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Also works from a plain checkout, without installing anything from it.
    REPOSITORY = Path(__file__).resolve().parents[2]
    sys.path[:1] = [str(REPOSITORY), str(REPOSITORY / "kernels")]
    from benchmarks.operations.suite import main

    sys.exit(main())
