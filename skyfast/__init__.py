"""skyfast: a Prometheus exporter of Skydive's network flows."""

__version__ = "0.1.0"
