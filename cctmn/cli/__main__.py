"""`python -m cctmn.cli` is the command `cctmn`."""

from cctmn.cli import main

if __name__ == "__main__":
    main()
