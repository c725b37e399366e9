"""skyfast: a Prometheus exporter of Skydive's network flows."""

__version__ = "0.3.0"
