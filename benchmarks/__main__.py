"""``python -m fastgan.benchmarks``."""

import sys

from fastgan.benchmarks import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
