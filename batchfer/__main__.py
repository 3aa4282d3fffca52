"""``python -m batchfer``."""

from batchfer.cli import main

if __name__ == "__main__":
    main()
