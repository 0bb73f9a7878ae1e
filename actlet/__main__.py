"""`python -m actlet` is the `actlet` command."""

import sys

from actlet.command_line import main

sys.exit(main())
