"""``python -m skyfast`` is the command ``skyfast``."""

import sys

from skyfast.cli import main

sys.exit(main())
