"""How fast the operations are, against their peers and against what the machine can do, in interleaved runs.

    python benchmarks/operations/run.py --suite cpu|gpu [--op NAME ...] [--rounds N] --out FILE.json|FOLDER

Correctness comes first: what differs from the fp64 reference gets no time but a reason, and the exit code is 1.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # From a plain checkout too: nothing of it has to be installed.
    REPOSITORY = Path(__file__).resolve().parents[2]
    sys.path[:1] = [str(REPOSITORY), str(REPOSITORY / "kernels")]
    from benchmarks.operations.suite import main

    sys.exit(main())
