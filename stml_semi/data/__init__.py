"""From what the user names on the command line to batches of pixels."""
