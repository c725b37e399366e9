"""Schemas of Kubernetes objects."""

VERSIONS = ("1.27", "1.31", "1.35")
"""Versions of Kubernetes that the manifests must be valid for."""

DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
TEXT = {"type": "string", "minLength": 1}
LABELS = {"type": "object", "minProperties": 1, "additionalProperties": TEXT}


def exactly(required: str, **properties: object) -> dict[str, object]:
    """Return a schema that allows only ``properties``.

    ``required`` has the names of required properties, separated by spaces.
    """
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


SERVICE_MONITOR = exactly(
    "apiVersion kind metadata spec",
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "ServiceMonitor"},
    metadata=exactly("name labels", name=TEXT, labels=LABELS),
    spec=exactly(
        "selector endpoints",
        jobLabel=TEXT,
        selector=exactly("matchLabels", matchLabels=LABELS),
        endpoints={
            "type": "array",
            "minItems": 1,
            "items": exactly(
                "port path",
                port=TEXT,
                path={"type": "string", "pattern": "^/"},
                interval=DURATION,
                scrapeTimeout=DURATION,
                scheme={"enum": ["http", "https"]},
                relabelings={
                    "type": "array",
                    "items": exactly(
                        "",
                        action={"enum": ["replace", "labeldrop"]},
                        sourceLabels={"type": "array", "items": TEXT},
                        targetLabel=TEXT,
                        replacement=TEXT,
                        regex=TEXT,
                    ),
                },
            ),
        },
    ),
)
"""The properties of monitoring.coreos.com/v1 that the manifests and the chart use."""
