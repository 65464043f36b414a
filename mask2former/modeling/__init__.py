"""The model. Importing this package registers every component under its official name."""
