"""Help with the images themselves."""
