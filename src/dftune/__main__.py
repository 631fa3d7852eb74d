"""``python -m dftune``."""

import sys

from dftune.cli import main

sys.exit(main())
