# Flow rows: their keys, totals and links.
#
# Rows are changed only under the table's mutex. The thread that updates the table may read and find
# rows without the mutex.

cdef inline Flow *flow_at(const TableState *table, uint32_t number) noexcept nogil:
    return <Flow *>row_at(&table.flow_rows, number)


cdef inline int64_t *totals_of(Flow *flow) noexcept nogil:
    return <int64_t *>(flow + 1)


cdef inline uint32_t *links_of(const TableState *table, Flow *flow) noexcept nogil:
    return <uint32_t *>(<char *>flow + table.links_offset)


cdef inline uint32_t *link_of(const TableState *table, const View *view, Flow *flow,
                              Connection *connection) noexcept nogil:
    # The location of a flow's link to its row of `view`: in `flow`, or in `connection` (the flow's
    # row of the first view). `view` must not be the first view.
    if view.linked_from_flow:
        return links_of(table, flow) + view.link
    return connection.links + view.link


cdef inline uint32_t *flags_of(const TableState *table, Flow *flow) noexcept nogil:
    # The location of the flags FIRST_OBSERVED and CLOSING_OBSERVED. Flow rows have these flags only
    # if the plan has histograms.
    return links_of(table, flow) + table.flags_link


cdef inline uint32_t dormant_rows(const TableState *table) noexcept nogil:
    return table.dormant.count + table.ended.count + table.claims.count


cdef inline uint32_t live_flows(const TableState *table) noexcept nogil:
    return table.flow_rows.used - dormant_rows(table)


# ---------------------------------------------------------------------------------------------
# Keys

cdef inline void flow_key(FlowKey *key, const char *uuid, uint32_t length,
                          uint64_t seed) noexcept nogil:
    cdef uint64_t number
    key.string = NULL
    if likely(parse_uuid(uuid, length, &number)):
        key.number = mix64(number ^ seed)
    else:
        key.string = uuid
        key.length = length


cdef inline uint64_t string_key(uint32_t string) noexcept nogil:
    # The key of a flow whose UUID is an interned string. The high half of the key is the string's
    # number, and the low half is a hash of this number.
    return (<uint64_t>string << 32) | <uint32_t>mix64(string)


cdef inline uint32_t flow_find(const Rows *flows, uint64_t key, uint32_t kind) noexcept nogil:
    # `kind` tells what the key was made from, as in `Flow.connection`: STRING_KEY, LABELS_KEY, or 0
    # for a UUID that is a 64-bit number.
    cdef uint32_t number = bucket_of(flows, <uint32_t>key)[0]
    cdef Flow *row
    while number:
        row = <Flow *>row_at(flows, number)
        if (row.hash == <uint32_t>key and row.key_high == <uint32_t>(key >> 32)
                and row.connection & (STRING_KEY | LABELS_KEY) == kind):
            return number
        number = row.next
    return 0


cdef uint32_t flow_new(Rows *flows, uint64_t key, uint32_t kind) noexcept nogil:
    # Adds a row to the index, but neither to a list of dormant flows nor to the timer wheel.
    # Returns the number of the row, or 0 if out of memory.
    cdef uint32_t number = row_new(flows)
    cdef Flow *row
    if number:
        row = <Flow *>row_at(flows, number)
        row.hash = <uint32_t>key
        row.key_high = <uint32_t>(key >> 32)
        row.connection = kind
        index_add(flows, number)
    return number


cdef str uuid_of(const TableState *table, const Flow *flow):
    cdef uint64_t key
    if flow.connection & STRING_KEY:
        return stored_text(<String *>row_at(&table.strings, flow.key_high))
    key = (<uint64_t>flow.key_high << 32) | flow.hash
    return f"{unmix64(key) ^ table.seed:x}"


cdef list live_uuids(const TableState *table, uint32_t first, uint32_t end):
    # The UUIDs of the live flows in the rows from `first` up to but not including `end`.
    cdef uint32_t number
    cdef Flow *flow
    uuids = []
    for number in range(first, end):
        flow = flow_at(table, number)
        if flow.connection != 0 and not flow.connection & DORMANT:
            uuids.append(uuid_of(table, flow))
    return uuids


cdef uint32_t find_flow(const TableState *table, const FlowKey *key) noexcept nogil:
    cdef uint32_t string
    if likely(key.string == NULL):
        return flow_find(&table.flow_rows, key.number, 0)
    string = string_find(
        &table.strings, key.string, key.length,
        hash_bytes32(key.string, key.length, table.seed),
    )
    if string == 0:
        return 0
    return flow_find(&table.flow_rows, string_key(string), STRING_KEY)


cdef uint32_t add_unknown_flow(TableState *table, const Report *report) noexcept nogil:
    # Adds a row that is neither live nor in a list of dormant flows. Returns the number of the row,
    # or 0 if out of memory.
    cdef uint64_t key = report.key.number
    cdef uint32_t string = 0
    cdef uint32_t row
    if report.key.string != NULL:
        string = string_intern(
            &table.strings, report.key.string, report.key.length, table.seed
        )
        if string == 0:
            return 0
        key = string_key(string)
    row = flow_new(&table.flow_rows, key, STRING_KEY if string else 0)
    if row == 0:
        if string:
            string_release(&table.strings, string)
        return 0
    flow_at(table, row).last_ms = report.last_ms
    if table.has_conversations:
        links_of(table, flow_at(table, row))[0] = 0
    if table.events:
        flags_of(table, flow_at(table, row))[0] = 0
    memcpy(totals_of(flow_at(table, row)), report.values, table.counters * sizeof(int64_t))
    return row


cdef void remove_flow(TableState *table, uint32_t number) noexcept nogil:
    # The row must be neither live nor in a list of dormant flows.
    cdef Flow *flow = flow_at(table, number)
    cdef Batch *batch = table.batch
    if table.has_conversations and links_of(table, flow)[0]:
        conversation_at(table, links_of(table, flow)[0]).dormant -= 1
        release_conversation(table, links_of(table, flow)[0])
    index_remove(&table.flow_rows, number)
    if flow.connection & STRING_KEY:
        if batch != NULL:
            batch.strings_to_release[batch.strings_to_release_count] = flow.key_high
            batch.strings_to_release_count += 1
        else:
            string_release(&table.strings, flow.key_high)
    flow.connection = 0
    row_release(&table.flow_rows, number)


# ---------------------------------------------------------------------------------------------
# Totals

cdef inline int find_deltas(const TableState *table, Flow *flow, const Report *report,
                            int64_t *deltas) noexcept nogil:
    # Returns how a report changes the totals of a flow: NOTHING_NEW, GREW or STARTED_OVER. Sets
    # `deltas` unless the result is NOTHING_NEW.
    cdef const int64_t *totals = totals_of(flow)
    cdef const int64_t *values = report.values
    cdef int64_t total
    cdef bint newer = report.last_ms > flow.last_ms
    cdef bint higher = False
    cdef bint lower = False
    cdef uint32_t i
    for i in range(table.counters):
        # If the report lacks the counter, its value is ABSENT (-1), and must count as neither
        # higher nor lower than the total. The signed number -1 is never higher than a total.
        # Converted to an unsigned number, -1 is never lower than a total.
        total = max(totals[i], <int64_t>0)
        higher |= values[i] > total
        lower |= <uint64_t>values[i] < <uint64_t>total
    if unlikely(not newer and not higher):
        return NOTHING_NEW
    if unlikely(newer and lower):
        for i in range(table.counters):
            deltas[i] = values[i]
        return STARTED_OVER
    for i in range(table.counters):
        deltas[i] = min(values[i], <int64_t>0)
        if values[i] > totals[i]:
            deltas[i] = values[i] - max(totals[i], <int64_t>0)
    return GREW


cdef inline void update_totals(const TableState *table, Flow *flow, const Report *report,
                               int change) noexcept nogil:
    cdef int64_t *totals = totals_of(flow)
    cdef uint32_t i
    for i in range(table.counters):
        if report.values[i] > totals[i] or change == STARTED_OVER:
            totals[i] = report.values[i]
    flow.last_ms = max(flow.last_ms, report.last_ms)


cdef tuple known_totals(const TableState *table, const char *uuid, uint32_t length):
    # Implements `Table.known_totals`.
    cdef FlowKey key
    cdef uint32_t i, number
    cdef Flow *flow
    flow_key(&key, uuid, length, table.seed)
    number = find_flow(table, &key)
    if number == 0:
        return None
    flow = flow_at(table, number)
    reported_s = <double>flow.deadline_s
    if flow.connection & DORMANT:
        reported_s -= floor(table.min_timeout_s)
    else:
        reported_s -= floor(table.views[0].timeout_s)
    totals = tuple(totals_of(flow)[i] for i in range(table.counters))
    return totals, flow.last_ms, reported_s
