"""`python -m scripts.cli`: the command, where it is not on the PATH."""

from scripts.cli.app import main

if __name__ == "__main__":
    main()
