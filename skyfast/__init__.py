"""skyfast: a Prometheus exporter of Skydive's network flows."""

from importlib.metadata import version as _version

__version__ = _version("skyfast")
