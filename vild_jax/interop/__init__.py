"""Other code bases' files, read and written."""
