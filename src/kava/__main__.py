"""`python -m kava`: the same as the command `kava`."""

import sys

from kava.cli.main import main

sys.exit(main())
