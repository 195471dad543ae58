"""The command line as `python -m optillm_hooks`."""

import sys

from optillm_hooks.cli import main

sys.exit(main())
