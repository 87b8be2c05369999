"""`python -m kava`: the same as the command `kava`."""

from __future__ import annotations

import sys

from kava.cli.main import main

sys.exit(main())
