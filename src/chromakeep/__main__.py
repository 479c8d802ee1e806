"""``python -m chromakeep``: the command line."""

from chromakeep.cli import main

if __name__ == "__main__":
    main()
