"""`python -m visatb.report WORKDIR`, the same as `visatb report WORKDIR`."""

import sys

from visatb.report.cli import main

sys.exit(main())
