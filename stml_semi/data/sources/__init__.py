"""What the user names becomes a table of images, or a stream."""
