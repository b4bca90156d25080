"""`python -m stepaudio`: the same as the command `stepaudio`."""

import sys

from .cli.main import main

sys.exit(main())
