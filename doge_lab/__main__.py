"""`python -m doge_lab` is `doge-lab`."""

import sys

from doge_lab.cli import main

sys.exit(main())
