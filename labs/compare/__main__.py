"""One measurement in a process of its own: ``python -m labs.compare METHOD FAULT DIRECTORY``."""

import json
import sys

from labs.compare.cell import run_cell, run_gaps

if __name__ == "__main__":
    method, fault, directory = sys.argv[1:]
    found = run_gaps(fault, directory) if method == "gaps" else run_cell(method, fault, directory)
    print(json.dumps(found))
