"""``python -m batchfer``, and the console script."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; Ctrl-C ends it with its code while it is still being loaded, too."""
    try:
        from batchfer.cli.main import main as run

        run()
    except KeyboardInterrupt:  # while it is imported; then `run` handles it
        print("batchfer: interrupted", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(130)  # after an interrupted `exec` Python would leave by the signal


if __name__ == "__main__":
    main()
