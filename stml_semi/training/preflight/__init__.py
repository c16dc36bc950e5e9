"""Look before you train: doctor, dry run, costs."""
