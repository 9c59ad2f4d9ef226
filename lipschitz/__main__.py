"""`python -m lipschitz` is the command `lipschitz`."""

import sys

from lipschitz.command_line import main

if __name__ == "__main__":
    sys.exit(main())
