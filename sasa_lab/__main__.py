"""`python -m sasa_lab`, where the command `sasa-lab` is not on the path."""

import sys

from sasa_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
