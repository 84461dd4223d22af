"""The package's version, importable without the package's own imports."""

__version__ = "0.2.0"
