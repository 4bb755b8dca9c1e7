"""``python -m penstock``: the command line."""

from penstock.ops.cli import main

if __name__ == "__main__":
    main()
