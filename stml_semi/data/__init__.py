"""Images: sources, tables, views, batches."""
