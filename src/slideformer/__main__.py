"""`python -m slideformer` is the command line."""

import sys

from slideformer.cli import main

sys.exit(main())
