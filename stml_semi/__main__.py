"""`python -m stml_semi`."""

from stml_semi.cli.app import main

if __name__ == "__main__":
    main()
