"""Write the measured tables of the READMEs from the newest results of each device.

python benchmarks/operations/table.py [--results FOLDER]
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    REPOSITORY = Path(__file__).resolve().parents[2]
    sys.path[:1] = [str(REPOSITORY), str(REPOSITORY / "kernels")]
    from benchmarks.operations import readme

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=readme.RESULTS, help="Folder of the records (JSON).")
    for changed in readme.write(results=parser.parse_args().results):
        print(f"written: {changed}")
