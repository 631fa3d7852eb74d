"""One module a verb of the command line, thin over the Python API."""
