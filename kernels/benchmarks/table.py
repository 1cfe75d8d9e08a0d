"""Write the measured tables of the READMEs from the newest results of each device.

python kernels/benchmarks/table.py [--results FOLDER]
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    KERNELS = Path(__file__).resolve().parents[1]
    sys.path[:1] = [str(KERNELS), str(KERNELS.parent)]
    from benchmarks import readme

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=readme.RESULTS, help="Folder of the records (JSON).")
    for changed in readme.write(results=parser.parse_args().results):
        print(f"written: {changed}")
