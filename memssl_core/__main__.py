import sys

from memssl_core.cli import main

sys.exit(main())
