"""Launcher: `accelerate launch cli.py semi --labeled X --unlabeled Y` (or plain `python cli.py ...`)."""

from stml_semi.cli.app import main

if __name__ == "__main__":
    main()
