import os
import sys

from memssl_core.cli import main

status = main()
if status and "RANK" in os.environ:  # connections of gloo to processes that are gone would abort this one at its end
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
