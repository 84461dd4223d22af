"""The jobs that commands and the Python API run; each reads from data to report."""
