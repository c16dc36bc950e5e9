"""A trained model as others meet it: load, export, score, card, upload."""
