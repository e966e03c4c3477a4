"""``python -m detrs`` is ``detrs``, so that ``torchrun -m detrs`` and ``accelerate launch -m detrs`` work."""

import sys

from detrs.cli import main

if __name__ == "__main__":
    sys.exit(main())
