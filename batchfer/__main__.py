"""``python -m batchfer``."""

from batchfer.cli.main import main

if __name__ == "__main__":
    main()
