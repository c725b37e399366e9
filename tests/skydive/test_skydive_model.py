"""The model of Skydive, compared with hand-made examples and recordings of a real Skydive.

Times in these tests are seconds since the start.
"""

import json
from collections import Counter
from random import Random

import pytest

from tests.support.paths import RECORDINGS
from tests.support.skydive import (
    ALL_NAMESPACES,
    COUNTERS,
    EPOCH_MS,
    TIMEOUT,
    Agent,
    Cluster,
    Conversation,
    Delivery,
    FlowOptions,
    FlowTable,
    Packet,
    Subscriber,
    expected_counters,
    is_counted,
    known_flows,
)

DNS = Conversation(b_port=53, protocol="UDP", application="DNS")
ARP = Conversation(a_port=0, b_port=0, protocol="ARP")
WEB = Conversation()


class RecordingSender:
    def __init__(self):
        self.calls = []
        self.stats = []

    def send_flows(self, flows):
        self.calls.append(list(flows))

    def send_stats(self, stats):
        self.stats.append(stats)

    def pop_reports(self):
        flows = [flow for call in self.calls for flow in call]
        self.calls.clear()
        return flows


@pytest.fixture
def sender():
    return RecordingSender()


@pytest.fixture
def table(sender):
    return FlowTable(sender)


def ms(seconds):
    return EPOCH_MS + round(seconds * 1000)


def send(table, time_s, conversation=WEB, *, size=100, **options):
    return table.packet(Packet(conversation, size, **options), ms(time_s))


def update_values(report):
    """Return from ``LastUpdateMetric``: the bytes by direction, ``Start`` and ``Last``."""
    metric = report["LastUpdateMetric"]
    start, last = ((metric[name] - EPOCH_MS) / 1000 for name in ("Start", "Last"))
    return metric["ABBytes"], metric["BABytes"], start, last


def totals(report):
    return report["Metric"]["ABBytes"], report["Metric"]["BABytes"]


# Update ticks


def test_update_contains_the_traffic_since_the_previous_tick(table, sender):
    send(table, 3, size=100)
    send(table, 4, size=40, is_reply=True)
    table.update_at(ms(60))
    (first,) = sender.pop_reports()
    assert totals(first) == (100, 40)
    assert update_values(first) == (100, 40, 3, 60)
    assert (first["Start"], first["Last"]) == (ms(3), ms(4))
    assert "FinishType" not in first

    send(table, 100, size=7)
    table.update_at(ms(120))
    (second,) = sender.pop_reports()
    assert totals(second) == (107, 40)
    assert update_values(second) == (7, 0, 60, 120)
    assert second["UUID"] == first["UUID"]


def test_tick_without_packets_sends_nothing_and_clears_last_update(table, sender):
    flow = send(table, 3)
    table.update_at(ms(60))
    table.update_at(ms(120))
    table.update_at(ms(180))
    assert len(sender.pop_reports()) == 1
    assert flow.last_update == {
        **dict.fromkeys(COUNTERS, 0),
        "Start": ms(120),
        "Last": ms(180),
    }
    send(table, 200, size=5)
    table.update_at(ms(240))
    (report,) = sender.pop_reports()
    assert update_values(report) == (5, 0, 180, 240)
    assert totals(report) == (105, 0)


def test_later_packets_do_not_change_a_sent_report(table, sender):
    send(table, 3)
    table.update_at(ms(60))
    send(table, 61)
    table.update_at(ms(120))
    first, second = sender.pop_reports()
    assert totals(first) == (100, 0)
    assert totals(second) == (200, 0)


def test_report_has_skydive_fields_in_order(table, sender):
    send(table, 3, DNS)
    table.update_at(ms(60))
    (report,) = sender.pop_reports()
    assert list(report) == [
        *("UUID", "LayersPath", "Application", "Link", "Network", "Transport"),
        *("LastUpdateMetric", "Metric", "Start", "Last", "TrackingID", "L3TrackingID"),
        *("ParentUUID", "NodeTID", "CaptureID", "RawPacketsCaptured"),
    ]
    assert report["LayersPath"] == "Ethernet/IPv4/UDP/DNS"
    assert report["Transport"] == {"Protocol": "UDP", "A": 40_000, "B": 53, "ID": 0}


def test_first_packet_sets_initiator(table, sender):
    send(table, 3, size=9, is_reply=True)
    send(table, 4, size=5)
    table.update_at(ms(60))
    (report,) = sender.pop_reports()
    assert report["Network"]["A"] == "10.0.0.2"
    assert report["Transport"]["A"] == 443
    assert totals(report) == (9, 5)


# Expiry ticks


def test_first_expiry_tick_closes_nothing(table, sender):
    send(table, 3)
    table.update_at(ms(60))
    sender.pop_reports()
    table.expire_at(ms(600))
    assert sender.pop_reports() == []
    assert len(table.flows) == 1


def test_expiry_tick_closes_flows_older_than_previous_tick(table, sender):
    send(table, 3)
    table.update_at(ms(60))
    send(table, 590)
    table.update_at(ms(600))
    sender.pop_reports()
    table.expire_at(ms(600))
    for tick in range(660, 1200, 60):
        table.update_at(ms(tick))
    table.expire_at(ms(1200))
    (closing,) = sender.pop_reports()
    assert closing["FinishType"] == TIMEOUT
    assert totals(closing) == (200, 0)
    assert update_values(closing) == (0, 0, 1080, 1140), "the last update tick had no packets"
    assert not table.flows

    # A packet right after the tick at 1,200 s keeps the flow until the tick at 2,400 s.
    send(table, 1200.001)
    table.expire_at(ms(1800))
    assert sender.pop_reports() == []
    table.expire_at(ms(2400))
    (closing,) = sender.pop_reports()
    assert update_values(closing) == (100, 0, 1200.001, 1200.001), (
        "no update tick has reported the packet"
    )


def test_closing_report_comes_ten_to_twenty_minutes_after_last_packet(sender):
    waits = []
    for last in (599.999, 600.0):
        table = FlowTable(sender)
        send(table, last)
        for tick in (600, 1200, 1800):
            table.update_at(ms(tick))
            table.expire_at(ms(tick))
            if [report for report in sender.pop_reports() if report.get("FinishType")]:
                waits.append(tick - last)
    assert waits == [pytest.approx(600.001), 1200]


@pytest.mark.parametrize("expire_first", [False, True])
def test_order_of_simultaneous_ticks_decides_the_last_update_of_a_closing_report(
    sender, expire_first
):
    # Updates and expiry run every 600 s. The update tick at 600 s reports the packet sent at 590 s.
    table = FlowTable(sender)
    send(table, 590)
    table.update_at(ms(600))
    table.expire_at(ms(600))
    sender.pop_reports()
    first, second = (
        (table.expire_at, table.update_at) if expire_first else (table.update_at, table.expire_at)
    )
    first(ms(1200))
    second(ms(1200))
    (closing,) = sender.pop_reports()
    # If the expiry tick comes first, the closing report repeats the first report. If the update
    # tick comes first, it sets the last update to zero before the flow is closed.
    assert update_values(closing) == ((100, 0, 590, 600) if expire_first else (0, 0, 600, 1200))


def test_expiry_tick_before_the_update_tick_sends_pending_values(sender):
    table = FlowTable(sender, options=FlowOptions(update_ms=3_600_000))
    send(table, 3)
    table.expire_at(ms(600))
    table.expire_at(ms(1200))
    (closing,) = sender.pop_reports()
    assert update_values(closing) == (100, 0, 3, 3), "the update's Last is the flow's Last"
    assert closing["FinishType"] == TIMEOUT


# Application timeouts


@pytest.mark.parametrize("conversation", [DNS, ARP])
def test_application_timeout_repeats_last_update(table, sender, conversation):
    send(table, 55, conversation)
    table.update_at(ms(60))
    (first,) = sender.pop_reports()
    table.update_at(ms(120))
    (closing,) = sender.pop_reports()
    assert update_values(first) == update_values(closing) == (100, 0, 55, 60)
    assert closing["LastUpdateMetric"]["Start"] == closing["Start"], (
        "the closing report looks like a first report"
    )
    assert closing["FinishType"] == TIMEOUT
    assert not table.flows


def test_application_timeout_needs_a_tick_without_packets(table, sender):
    send(table, 5, DNS)
    table.update_at(ms(60))
    (report,) = sender.pop_reports()
    assert "FinishType" not in report, "the packet is 55 s old, but came after the previous tick"


def test_flow_closes_only_after_more_than_the_application_timeout(sender):
    table = FlowTable(sender, options=FlowOptions(application_timeout_ms=(("DNS", 10_000),)))
    send(table, 10, DNS)
    table.update_at(ms(10))
    table.update_at(ms(20))
    assert len(sender.pop_reports()) == 1, "exactly 10 s does not exceed the timeout"
    table.update_at(ms(30))
    (closing,) = sender.pop_reports()
    assert update_values(closing) == (0, 0, 10, 20), "the tick at 20 s cleared the update"


# Flows that start with FIN or RST


@pytest.mark.parametrize(("flags", "finish"), [("FA", 2), ("R", 3), ("FR", 2)])
def test_first_packet_sets_finish_type(table, sender, flags, finish):
    send(table, 50, flags=flags)
    table.update_at(ms(60))
    (first,) = sender.pop_reports()
    send(table, 61, size=7)
    table.update_at(ms(120))
    (second,) = sender.pop_reports()
    assert [first["FinishType"], second["FinishType"]] == [finish, finish]
    assert update_values(second) == (7, 0, 60, 120), "updates are sent as usual"
    assert not table.flows, "the tick that reports the flow removes it: its last packet is 59 s old"


def test_later_flags_do_not_set_finish_type(table, sender):
    send(table, 50, flags="S")
    send(table, 51, flags="FA")
    send(table, 52, flags="R")
    table.update_at(ms(60))
    (report,) = sender.pop_reports()
    assert "FinishType" not in report


def test_flow_that_starts_with_fin_has_no_closing_report(table, sender):
    send(table, 50, flags="FA")
    table.update_at(ms(60))
    assert len(sender.pop_reports()) == 1
    assert len(table.flows) == 1, "the last packet was 10 s ago"
    table.update_at(ms(65))
    assert not table.flows, "the last packet was 15 s ago"
    send(table, 66, flags="FA")
    table.stop()
    assert sender.pop_reports() == [], "pending packets are lost"


def test_application_timeout_closes_flow_that_starts_with_fin(sender):
    web = Conversation(application="HTTP")
    table = FlowTable(sender, options=FlowOptions(application_timeout_ms=(("HTTP", 5_000),)))
    send(table, 59, web, flags="FA")
    table.update_at(ms(60))
    table.update_at(ms(70))
    first, closing = sender.pop_reports()
    assert [first["FinishType"], closing["FinishType"]] == [2, TIMEOUT]
    assert update_values(first) == update_values(closing)


# Eviction, stop, identity


def test_full_table_evicts_a_flow_without_sending_a_report(sender):
    table = FlowTable(sender, options=FlowOptions(max_entries=2))
    a, b, c = (Conversation(a_port=port) for port in (1, 2, 3))
    send(table, 1, a)
    send(table, 2, b)
    send(table, 3, a)
    send(table, 4, c)
    table.stats()
    table.update_at(ms(60))
    assert [report["Transport"]["A"] for report in sender.pop_reports()] == [1, 3], (
        "the least recently used flow is evicted"
    )
    assert sender.stats[0]["FlowDropped"] == 1
    assert sender.stats[0]["FlowCount"] == 2

    # The conversation continues as a new flow.
    send(table, 61, b)
    table.update_at(ms(120))
    (report,) = sender.pop_reports()
    assert totals(report) == (100, 0)


def test_stopped_agent_closes_all_flows(table, sender):
    idle, busy = Conversation(a_port=1), Conversation(a_port=2)
    send(table, 3, idle)
    send(table, 4, busy)
    table.update_at(ms(60))
    send(table, 70, busy, size=7)
    send(table, 71, DNS)
    sender.pop_reports()
    table.stop()
    reports = sender.pop_reports()
    assert [report["FinishType"] for report in reports] == [TIMEOUT] * 3
    assert [update_values(report) for report in reports] == [
        (100, 0, 3, 60),  # the idle flow repeats its last update
        (7, 0, 60, 70),  # the busy flow reports the packet after its last update
        (100, 0, 71, 71),  # the new flow has no earlier report
    ]


def test_uuid_depends_on_start_conversation_and_node(sender):
    def uuid(time_s=3, conversation=WEB, node="node-1", capture="capture-1"):
        return send(FlowTable(sender, node_tid=node, capture_id=capture), time_s, conversation).uuid

    assert uuid() == uuid(capture="capture-2")
    assert len({uuid(), uuid(time_s=3.001), uuid(conversation=DNS), uuid(node="node-2")}) == 4
    assert int(uuid(), 16) < 2**64
    assert not uuid().startswith("0")


def test_statistics_are_sums_of_readings_of_the_total(table, sender):
    send(table, 3, count=5)
    table.read_packets()
    send(table, 4, count=2)
    table.read_packets(3)
    table.stats()
    table.read_packets(10)
    table.stats()
    table.stats()
    assert sender.stats == [
        {
            "CaptureID": "capture-1",
            "FlowCount": 1,
            "FlowDropped": 0,
            "KernelFlowDropped": 0,
            "PacketsDropped": 0,
            "PacketsReceived": received,
        }
        for received in (5 + 3 * 7, 10 * 7, 0)
    ]


# Agents


def reports_of(deliveries):
    return [flow for delivery in deliveries for flow in delivery.flows]


def make_cluster(*, analyzers=1, random=None, **options):
    """Return a cluster, its agent, the agent's capture, and a subscriber to each analyzer."""
    cluster = Cluster(random=random)
    for _ in range(analyzers):
        cluster.analyzer()
    agent = cluster.agent(options=FlowOptions(**options))
    table = agent.capture()
    subscribers = [Subscriber(analyzer) for analyzer in cluster.analyzers]
    for subscriber in subscribers:
        subscriber.start()
    return cluster, agent, table, subscribers


def traffic(cluster, agent, table, until, *, interval=10, start=5, **packet):
    """Schedule a packet every ``interval`` seconds from ``start`` to ``until``."""
    for time_s in range(start, until, interval):
        cluster.at(
            time_s * 1000, lambda: agent.packet(table, Packet(**{"conversation": WEB} | packet))
        )


def test_ticks_start_with_the_capture():
    cluster, agent, table, _ = make_cluster()
    traffic(cluster, agent, table, 200)
    deliveries = list(cluster.run(200_000))
    assert [update_values(report) for report in reports_of(deliveries)] == [
        (600, 0, 5, 60),
        (600, 0, 60, 120),
        (600, 0, 120, 180),
    ]
    assert [delivery.time_ms for delivery in deliveries if delivery.flows] == [
        *(65_000, 125_000, 185_000),  # when the analyzer sends its next batch
    ]
    stats = [d.time_ms for d in deliveries if d.message["Type"] == "stats"]
    assert stats == list(range(10_000, 200_001, 10_000)), "stats are not batched"


@pytest.mark.parametrize("expire_first", [False, True, None])
def test_order_of_simultaneous_ticks_is_random_unless_expire_first_is_set(expire_first):
    orders = set()
    for seed in range(20):
        cluster, agent, table, _ = make_cluster(
            random=Random(seed), update_ms=600_000, expire_first=expire_first
        )
        agent.packet(table, Packet(WEB))
        reports = reports_of(cluster.run(1_300_000))
        assert [report.get("FinishType") for report in reports] == [None, TIMEOUT]
        orders.add(update_values(reports[1])[:2] == (100, 0))
    assert orders == ({expire_first} if expire_first is not None else {False, True})


def test_packet_counts_are_read_every_second():
    cluster, agent, table, _ = make_cluster()
    cluster.at(4_500, lambda: agent.packet(table, Packet(WEB, count=3)))
    cluster.at(17_000, lambda: agent.packet(table, Packet(WEB, count=4)))
    received = [
        delivery.message["Obj"]["PacketsReceived"]
        for delivery in cluster.run(39_000)
        if delivery.message["Type"] == "stats"
    ]
    assert received == [6 * 3, 7 * 3 + 3 * 7, 10 * 7]


def test_flows_of_a_tick_go_to_one_analyzer_and_stats_to_any_analyzer():
    cluster, agent, table, _ = make_cluster(analyzers=3, random=Random(1))
    for port in range(1, 4):
        conversation = Conversation(a_port=port)
        traffic(cluster, agent, table, 3_000, conversation=conversation)
    ticks = {}
    stats = Counter()
    for delivery in cluster.run(3_000_000):
        for flow in delivery.flows:
            ticks.setdefault(flow["LastUpdateMetric"]["Last"], []).append(delivery.analyzer)
        if delivery.message["Type"] == "stats":
            stats[delivery.analyzer] += 1
    assert len(ticks) == 49
    assert all(len(names) == 3 and len(set(names)) == 1 for names in ticks.values())
    assert {names[0] for names in ticks.values()} == stats.keys()
    assert len(stats) == 3
    assert stats.total() == 300


def test_agent_without_an_analyzer_drops_its_reports():
    cluster, agent, table, _ = make_cluster()
    traffic(cluster, agent, table, 130)
    cluster.at(50_000, cluster.analyzers[0].stop)
    assert reports_of(cluster.run(150_000)) == []
    assert agent.dropped == 2


def test_lost_datagram_loses_one_flow():
    lost = []

    def loses(agent, analyzer, flows):
        assert len(flows) <= 1
        is_lost = bool(flows) and flows[0]["Transport"]["A"] == 2 and not lost
        lost.extend(flows if is_lost else ())
        return is_lost

    cluster, agent, table, _ = make_cluster()
    cluster.loses = loses
    for port in (1, 2, 3):
        traffic(cluster, agent, table, 120, conversation=Conversation(a_port=port))
    reports = reports_of(cluster.run(130_000))
    assert [report["Transport"]["A"] for report in reports] == [1, 3, 1, 2, 3]
    assert totals(reports[3]) == (1200, 0), "totals include the lost report"
    assert update_values(reports[3]) == (600, 0, 60, 120), (
        "the update does not include the lost report"
    )


def test_websocket_agents_send_ten_flows_per_message():
    cluster, agent, table, _ = make_cluster(protocol="websocket")
    cluster.loses = lambda *_: True
    sizes = []
    receive = cluster.analyzers[0].receive
    cluster.analyzers[0].receive = lambda message, **options: (
        sizes.append(len(message.flows)),
        receive(message, **options),
    )
    for port in range(23):
        agent.packet(table, Packet(Conversation(a_port=port)))
    assert len(reports_of(cluster.run(70_000))) == 23, "only datagrams are lost"
    assert [size for size in sizes if size] == [10, 10, 3]


def test_clock_step_appears_in_the_timestamps_of_updates():
    cluster, agent, table, _ = make_cluster()
    agent.step_clock(-5_000)
    agent.packet(table, Packet(WEB, flags="S"))
    cluster.at(90_000, lambda: agent.step_clock(3_600_000))
    traffic(cluster, agent, table, 130)
    first, second = reports_of(cluster.run(130_000))
    assert first["Start"] == EPOCH_MS - 5_000
    assert update_values(first)[2:] == (-5, 55)
    assert update_values(second)[2:] == (55, 3715), "the update includes the clock step"


def test_clock_step_back_makes_rtt_negative(table, sender):
    send(table, 10, flags="S")
    send(table, 9.75, flags="SA", is_reply=True)
    send(table, 9.8)
    table.update_at(ms(60))
    table.update_at(ms(120))
    send(table, 130)
    table.update_at(ms(180))
    first, second = sender.pop_reports()
    for report in (first, second):
        assert report["Metric"]["RTT"] == report["LastUpdateMetric"]["RTT"] == -250_000_000


def test_stopped_agent_closes_its_flows_but_killed_agent_does_not():
    for end, closings in ((Agent.stop, 1), (Agent.kill, 0)):
        cluster, agent, table, _ = make_cluster()
        traffic(cluster, agent, table, 70)
        cluster.at(75_000, lambda end=end, agent=agent: end(agent))
        deliveries = list(cluster.run(300_000))
        reports = reports_of(deliveries)
        assert len([report for report in reports if "FinishType" in report]) == closings
        assert deliveries[-1].time_ms <= 80_000, "stats stop too"


def test_restarted_agent_starts_new_flows():
    cluster, agent, table, _ = make_cluster()
    traffic(cluster, agent, table, 70, conversation=WEB)
    list(cluster.run(75_000))
    agent.kill()
    agent = cluster.agent()
    table = agent.capture()
    agent.packet(table, Packet(WEB, is_reply=True))
    (report,) = reports_of(cluster.run(145_000))
    assert report["Network"]["A"] == "10.0.0.2"
    assert totals(report) == (100, 0)


# Analyzers


def test_analyzer_sends_batches_of_100_flows():
    cluster, agent, table, _ = make_cluster()
    for port in range(250):
        agent.packet(table, Packet(Conversation(a_port=port)))
    deliveries = [delivery for delivery in cluster.run(70_000) if delivery.flows]
    assert [(d.time_ms, len(d.flows)) for d in deliveries] == [
        (60_000, 100),
        (60_000, 100),
        (65_000, 50),
    ]


def test_messages_have_the_format_of_skydive():
    cluster, agent, table, _ = make_cluster()
    agent.packet(table, Packet(WEB))
    deliveries = list(cluster.run(65_000))
    stats, flows = deliveries[0].message, deliveries[-1].message
    assert [*stats] == [*flows] == ["Namespace", "Type", "UUID", "Status", "Obj"]
    assert (stats["Namespace"], stats["Type"]) == ("stats", "stats")
    assert (flows["Namespace"], flows["Type"]) == ("flow", "store")
    assert json.loads(json.dumps(flows)) == flows


def receivers(cluster, until):
    """Return the subscribers that receive messages until ``until`` s, with their namespaces."""
    return {
        (delivery.subscriber.host_id, delivery.message["Namespace"])
        for delivery in cluster.run(until * 1000)
    }


def test_leaving_subscriber_silences_all_others():
    cluster, agent, table, _ = make_cluster()
    traffic(cluster, agent, table, 1_000)
    (analyzer,) = cluster.analyzers
    visitor = Subscriber(analyzer, host_id="visitor")
    visitor.start()
    assert receivers(cluster, 70) == {
        (host, namespace) for host in ("skyfast", "visitor") for namespace in ALL_NAMESPACES
    }
    assert [len(stored) for stored in analyzer.namespaces.values()] == [1, 1]
    visitor.stop()
    assert receivers(cluster, 200) == set()
    assert [speaker.host_id for speaker in analyzer.speakers] == ["skyfast"], (
        "skyfast is still connected"
    )

    # A new subscriber to a namespace makes the analyzer send to all its subscribers again.
    stats = Subscriber(analyzer, host_id="stats", namespaces=["stats"])
    stats.start()
    assert receivers(cluster, 300) == {("skyfast", "stats"), ("stats", "stats")}
    flows = Subscriber(analyzer, host_id="flows", namespaces=["flow"])
    flows.start()
    assert receivers(cluster, 400) == {("skyfast", "stats"), ("stats", "stats")} | {
        ("skyfast", "flow"),
        ("flows", "flow"),
    }
    # Without the subscriber to "flow", those to "stats" receive nothing, either.
    flows.stop()
    assert receivers(cluster, 500) == set()


def test_leaving_first_subscriber_silences_the_second():
    cluster, agent, table, (ours,) = make_cluster()
    traffic(cluster, agent, table, 1_000)
    other = Subscriber(cluster.analyzers[0], host_id="other")
    other.start()
    ours.stop()
    assert receivers(cluster, 100) == set()


def test_namespace_of_a_capture_has_only_the_flows_of_that_capture():
    cluster, agent, table, _ = make_cluster()
    second = agent.capture(node_tid="node-2", capture_id="capture-2")
    traffic(cluster, agent, table, 1_000)
    traffic(cluster, agent, second, 1_000)
    one_capture = Subscriber(cluster.analyzers[0], host_id="one", namespaces=["flow/capture-2"])
    all_captures = Subscriber(cluster.analyzers[0], host_id="all", namespaces=[])
    one_capture.start()
    all_captures.start()
    received = {}
    for delivery in cluster.run(70_000):
        captures = {flow["CaptureID"] for flow in delivery.flows}
        host = delivery.subscriber.host_id
        received.setdefault((host, delivery.message["Namespace"]), set()).update(captures)
    both = {"capture-1", "capture-2"}
    assert received == {
        ("skyfast", "flow"): both,
        ("skyfast", "stats"): set(),
        ("one", "flow/capture-2"): {"capture-2"},
        ("all", "flow"): both,
        ("all", "stats"): set(),
        ("all", "flow/capture-2"): {"capture-2"},
    }


def test_second_client_with_same_host_id_is_refused():
    cluster, _, _, (ours,) = make_cluster()
    twin = Subscriber(cluster.analyzers[0])
    twin.start()
    list(cluster.run(2_500))
    assert twin.history == [(0, "refused"), (1_000, "refused"), (2_000, "refused")]
    ours.vanish()
    list(cluster.run(20_000))
    assert twin.history[-1] == (10_000, "connected"), (
        "the analyzer detects the missing pongs at 9.5 s"
    )


def test_vanished_subscriber_silences_others_when_its_pongs_are_missing():
    cluster, _, _, (ours,) = make_cluster()
    visitor = Subscriber(cluster.analyzers[0], host_id="visitor")
    visitor.start()
    list(cluster.run(24_000))
    visitor.vanish()
    times = [d.time_ms for d in cluster.run(100_000) if d.subscriber is ours]
    assert times == [30_000], "the analyzer notices at 31 s that the visitor vanished at 24 s"


def test_analyzer_restart_loses_buffered_flows():
    cluster, agent, table, (ours,) = make_cluster()
    traffic(cluster, agent, table, 200)
    cluster.at(62_000, lambda: cluster.analyzers[0].restart(after_ms=500))
    reports = reports_of(cluster.run(130_000))
    assert [totals(report) for report in reports] == [(1200, 0)]
    assert cluster.analyzers[0].lost == {"stop": 1}
    assert [event for _, event in ours.history] == ["connected", "disconnected", "connected"]
    assert agent.analyzers == cluster.analyzers


def test_reports_to_analyzer_without_power_are_lost():
    cluster, agent, table, (ours, _) = make_cluster(analyzers=2, random=Random(3))
    traffic(cluster, agent, table, 2_000)
    first = cluster.analyzers[0]
    cluster.at(1, lambda: first.stop(is_noticed=False))
    cluster.at(1_000_000, first.notice)
    reports = reports_of(cluster.run(2_000_000))
    before = [report for report in reports if report["Last"] <= ms(960)]
    after = [report for report in reports if report["Last"] > ms(1_020)]
    assert 0 < len(before) < 16
    assert len(before) + first.lost["stopped"] == 16
    assert len(after) == 16
    assert ours.is_connected, "the connection was never closed"


def test_full_channel_stops_udp_reader_permanently():
    cluster, agent, table, _ = make_cluster()
    (analyzer,) = cluster.analyzers
    analyzer.max_buffered_flows = 20
    analyzer.receive_buffer = 5
    for port in range(30):
        traffic(cluster, agent, table, 400, conversation=Conversation(a_port=port))
    cluster.at(59_000, analyzer.stall)
    cluster.at(70_000, analyzer.resume)
    deliveries = list(cluster.run(400_000))
    # The channel has room for 20 flows. The next flow stops the reader. Then the kernel buffers 5
    # datagrams.
    assert analyzer.lost == {"channel": 1, "receive buffer": 4 + 5 * 30}
    assert [len(d.flows) for d in deliveries if d.flows] == [20]
    assert deliveries[-1].time_ms == 75_000, "later messages are lost, stats included"
    analyzer.restart()
    assert reports_of(cluster.run(500_000))


def test_full_channel_drops_rest_of_websocket_message():
    cluster, agent, table, _ = make_cluster(protocol="websocket")
    (analyzer,) = cluster.analyzers
    analyzer.max_buffered_flows = 25
    for port in range(30):
        traffic(cluster, agent, table, 200, conversation=Conversation(a_port=port))
    cluster.at(59_000, analyzer.stall)
    cluster.at(70_000, analyzer.resume)
    sizes = [len(d.flows) for d in cluster.run(200_000) if d.flows]
    assert sizes == [25, 30, 30]
    assert analyzer.lost == {"channel": 5}


# Subscribers


def test_silent_subscription_reconnects():
    cluster, _, _, _ = make_cluster()
    (analyzer,) = cluster.analyzers
    ours = Subscriber(analyzer, host_id="ours", silence_ms=20_000, retry_ms=2_000)
    ours.start()
    visitor = Subscriber(analyzer, host_id="visitor")
    visitor.start()
    cluster.at(34_000, visitor.stop)
    times = [d.time_ms for d in cluster.run(75_000) if d.subscriber is ours]
    assert times == [10_000, 20_000, 30_000, 60_000, 70_000]
    assert ours.history == [
        (0, "connected"),
        (50_000, "silent"),
        (50_000, "disconnected"),
        (52_000, "connected"),
    ]


def test_delayed_messages_keep_their_order():
    cluster, _, _, (ours,) = make_cluster()
    ours.delay_ms = 4_000
    cluster.at(21_000, lambda: setattr(ours, "delay_ms", 0))
    cluster.at(20_500, lambda: cluster.analyzers[0]._broadcast("stats", "stats", {}))
    cluster.at(21_500, lambda: cluster.analyzers[0]._broadcast("stats", "stats", {}))
    times = [d.time_ms for d in cluster.run(30_000)]
    assert times == [14_000, 24_000, 24_500, 24_500, 30_000]


def test_same_seed_gives_same_run():
    def run(seed):
        cluster, agent, table, _ = make_cluster(analyzers=2, random=Random(seed))
        traffic(cluster, agent, table, 700)
        return [(d.time_ms, d.analyzer, d.message) for d in cluster.run(900_000)]

    assert run(5) == run(5)
    assert run(5) != run(6)


# The oracle


def delivery(time_s, *flows, analyzer="analyzer-1"):
    message = {"Namespace": "flow", "Type": "store", "UUID": "", "Status": 200, "Obj": [*flows]}
    return Delivery(time_s * 1000, analyzer, None, message)


def test_oracle_expects_the_highest_reported_totals(table, sender):
    send(table, 3)
    send(table, 3, ARP)
    table.update_at(ms(60))
    send(table, 61, size=30, is_reply=True)
    send(table, 61, DNS, size=1)
    table.update_at(ms(120))
    table.stop()
    web, arp, arp_closing, web_2, dns, *closings = sender.pop_reports()
    assert arp_closing["FinishType"] == TIMEOUT
    assert len(closings) == 2
    # The first report arrives last.
    flows = known_flows(
        [
            delivery(65, arp),
            delivery(126, arp_closing, web_2, dns),
            delivery(127, *closings),
            delivery(128, web),
        ]
    )
    known = flows[web["UUID"]]
    assert known.totals == {"ABBytes": 100, "ABPackets": 1, "BABytes": 30, "BAPackets": 1}
    assert (known.first_ms, known.last_ms) == (126_000, 128_000)
    assert known.longest_gap_ms == 1_000
    assert known.closed_ms == 127_000
    assert not is_counted(arp)

    by_node = expected_counters(flows.values(), [("NodeTID",)])
    assert by_node == {("node-1",): {"ABBytes": 101, "ABPackets": 2, "BABytes": 30, "BAPackets": 1}}
    by_port = expected_counters(flows.values(), [("Transport", "B"), ("Transport", "Protocol")])
    assert {values: sums["ABBytes"] for values, sums in by_port.items()} == {
        ("443", "TCP"): 100,
        ("53", "UDP"): 1,
    }


# Recordings


def recorded_flows(name):
    for line in (RECORDINGS / name).read_text().splitlines():
        message = json.loads(line)
        if message["Type"] == "store":
            assert 0 < len(message["Obj"]) <= 100
            yield from message["Obj"]


ONE, A, B = "one-analyzer.jsonl", "two-analyzers-a.jsonl", "two-analyzers-b.jsonl"


def is_closing(flow):
    return flow.get("FinishType") == TIMEOUT


def is_first(flow):
    return flow["LastUpdateMetric"]["Start"] == flow["Start"]


def is_repeat(flow):
    return flow["LastUpdateMetric"]["Last"] != flow["Last"]


@pytest.mark.parametrize(("name", "reports"), [(ONE, 45), (A, 84), (B, 93)])
def test_recorded_updates_are_ten_seconds_long(name, reports):
    periods = [
        flow["LastUpdateMetric"]["Last"] - flow["LastUpdateMetric"]["Start"]
        for flow in recorded_flows(name)
        if not is_first(flow) and not is_closing(flow)
    ]
    assert periods == [10_000] * reports


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        (ONE, {"repeat of a first report": 106, "zero": 401}),
        (
            A,
            {
                "repeat of a first report": 37,
                "repeat": 6,
                "zero": 319,
                "first report": 13,
                "new traffic": 14,
            },
        ),
        (B, {"repeat of a first report": 4}),
    ],
)
def test_recorded_closing_reports_are_of_the_expected_kinds(name, kinds):
    counts = Counter()
    for flow in recorded_flows(name):
        assert flow.get("FinishType", TIMEOUT) == TIMEOUT
        if not is_closing(flow):
            continue
        metric, totals = flow["LastUpdateMetric"], flow["Metric"]
        is_zero = not any(metric[name] for name in COUNTERS)
        if is_first(flow):
            assert all(metric[name] == totals[name] for name in COUNTERS)
            counts["repeat of a first report" if is_repeat(flow) else "first report"] += 1
        elif not is_repeat(flow):
            counts["new traffic"] += 1
        else:
            counts["zero" if is_zero else "repeat"] += 1
    assert counts == kinds


@pytest.mark.parametrize("name", [ONE, A, B])
def test_recorded_reports_obey_the_model(name):
    previous = {}
    closed = set()
    for flow in recorded_flows(name):
        metric, totals, uuid = flow["LastUpdateMetric"], flow["Metric"], flow["UUID"]
        assert totals["Start"] == flow["Start"] <= flow["Last"] == totals["Last"]
        assert metric["Last"] >= flow["Last"], "a tick comes after its packets"
        assert uuid not in closed, "no report follows the closing report"
        if is_closing(flow):
            closed.add(uuid)
        else:
            assert any(metric[name] for name in COUNTERS), "updates are only sent after traffic"
        if is_first(flow):
            assert all(metric[name] == totals[name] for name in COUNTERS)
        if uuid in previous and name == ONE:  # each of two analyzers receives only some reports
            before = previous[uuid]
            increase = {name: totals[name] - before["Metric"][name] for name in COUNTERS}
            if is_closing(flow) and is_repeat(flow):
                assert not any(increase.values()), "closing reports repeat the totals"
            else:
                assert increase == {name: metric[name] for name in COUNTERS}
        previous[uuid] = flow


def layout(flow):
    """Return the type of each field, or its subfields if it has any."""
    return [
        (name, tuple(value) if isinstance(value, dict) else type(value))
        for name, value in flow.items()
        if name not in ("TCPMetric", "ICMP")
    ]


def test_recorded_flows_have_the_fields_of_the_model(table, sender):
    icmp = Conversation(a_port=0, b_port=0, protocol="ICMP")
    udp = Conversation(protocol="UDP", b_port=4789, application="VXLAN")
    ipv6 = Conversation("fd77::1", "fd77::2", 1, 2)
    for conversation in (WEB, DNS, ARP, icmp, udp, ipv6):
        send(table, 3, conversation, flags="S")
        send(table, 3.001, conversation, flags="SA", is_reply=True)
    table.update_at(ms(60))
    send(table, 61)
    table.stop()
    modelled = {
        (flow["Application"], "FinishType" in flow): layout(flow) for flow in sender.pop_reports()
    }
    seen = set()
    for name in (ONE, A, B):
        for flow in recorded_flows(name):
            kind = flow["Application"], "FinishType" in flow
            if kind in modelled and ("RTT" in flow["Metric"]) == (
                "TCP" in kind or "ICMPv4" in kind
            ):
                assert layout(flow) == modelled[kind], kind
                seen.add(kind[0])
    assert seen == {"TCP", "DNS", "ARP", "ICMPv4", "VXLAN"}
