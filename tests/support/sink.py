"""Sets up skyfast's ingest for tests, with its table and its counters."""

from typing import Any

from skyfast import _table
from skyfast.config.model import Config
from skyfast.flows.fields import flow_types
from skyfast.flows.filters import classifier, make_flow_filter, reads
from skyfast.flows.planner import make_plan
from skyfast.skydive.captures import Captures
from skyfast.skydive.ingest import Ingest
from skyfast.skydive.name_index import NameIndex
from skyfast.skydive.report_checks import ReportChecker
from skyfast.stats import AnalyzerStats, Stats, sums
from tests.support.configs import make_config


class IngestSetup:
    """An ingest with one configuration. Tests set the time ``now``, in seconds.

    A message is checked for missing reports if ``chance`` is below the probability of a check.
    ``chance`` replaces a random number from 0 to 1.
    """

    def __init__(self, config: Config, *, max_connections: int, max_flows: int) -> None:
        self.now = 100.0
        self.chance = 1.0
        self.plan = make_plan(
            config.export,
            names=NameIndex.of(config.export, keep_s=0),
            shard=config.shard,
        )
        self.stats = Stats()
        self.analyzer = AnalyzerStats("analyzer:8082")
        self.captures = Captures(naming=config.export.naming, stats=self.stats.captures)
        types = flow_types(self.plan, also=reads(config.filter))
        self.table = _table.Table(
            self.plan,
            types,
            max_connections=max_connections,
            max_flows=max_flows,
            timeout_s=75,
            memory_s=config.limits.flow_memory_s,
            view_timeouts_s=[3600] * (len(self.plan.views) - 1),
            bounds=config.limits.bounds,
        )
        self.checker = ReportChecker(
            plan=self.plan,
            table=self.table,
            stats=self.stats,
            now=lambda: self.now,
            running=lambda: self.now,
            chance=lambda: self.chance,
        )
        self.ingest = Ingest(
            types=types,
            table=self.table,
            flow_filter=make_flow_filter(
                config.filter,
                classifier(config.classify.cluster_net_masks),
                requirements=self.plan.requirements,
                skipped=self.stats.flows_skipped,
                filtered=self.stats.flows_filtered,
            ),
            captures=self.captures,
            checker=self.checker,
            stats=self.stats,
            now=lambda: self.now,
        )

    def omit_labels(self) -> None:
        """Decode the next message without labels, as skyfast does while all flows are known."""
        decoders = self.ingest._decoders
        decoders.next = decoders._known


class Sink(IngestSetup):
    """The default configuration with the given settings."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(make_config(**settings), max_connections=1000, max_flows=4000)

    def receive(self, data: bytes) -> None:
        self.ingest.message(data, self.analyzer)

    @property
    def skipped(self) -> dict[str, int]:
        """Flows skipped by the decoder and the table, by reason."""
        table, decoder = self.table.skipped, self.stats.flows_skipped
        counts = {
            reason: table.get(reason, 0) + decoder.get(reason, 0) for reason in {*table, *decoder}
        }
        return {reason: count for reason, count in counts.items() if count}

    @property
    def values_skipped(self) -> dict[str, int]:
        """Values skipped by the decoder and the table, by field."""
        counts = sums(self.stats.values_skipped, self.table.values_skipped)
        return {field: count for field, count in counts.items() if count}

    @property
    def errors(self) -> dict[str, int]:
        return {reason: count for reason, count in self.analyzer.errors.items() if count}

    def page(self) -> str:
        page = self.table.page(100.0)
        return b"".join(iter(lambda: page.read(1 << 20), b"")).decode()
