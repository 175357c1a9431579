"""``python -m whybox``."""

import sys

from whybox.cli import main

sys.exit(main())
