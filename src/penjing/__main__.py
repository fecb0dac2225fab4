"""`python -m penjing` is the command `penjing`."""

import sys

from penjing.cli import main

sys.exit(main())
