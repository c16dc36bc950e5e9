"""An index of embeddings: fill it, ask it, show it."""
