# Expiry: flows become dormant at their deadlines, connections without flows are removed, and
# dormant flows are forgotten.
#
# `Table.expire` calls `expire_slice`, which takes the table's mutex. To release the mutex soon, a
# call visits at most `max_rows` rows and slots of timer wheels. For each visit, the functions
# decrease `max_rows` by one.

cdef bint expire_slice(TableState *table, uint32_t now_s, uint32_t max_rows) noexcept nogil:
    # Returns whether more rows may be due, because `max_rows` is used up.
    cdef bint more
    lock_with_priority(table)
    more = expire_locked(table, now_s, max_rows)
    pthread_mutex_unlock(&table.lock)
    return more


cdef bint expire_locked(TableState *table, uint32_t now_s, uint32_t max_rows) noexcept nogil:
    cdef uint32_t i
    cdef Connection *row
    table.now = max(table.now, <double>now_s)
    # Flows expire before the rows of views, because a row must not expire before its flows.
    if expire_flows(table, now_s, &max_rows) or expire_dormant(table, now_s, &max_rows):
        return True
    for i in range(table.view_count):
        if table.views[i].overflow:
            row = connection_at(&table.views[i], table.views[i].overflow)
            clamp_seq_age(row, <uint32_t>table.next_seq)
        if i and expire_rows(table, &table.views[i], now_s, &max_rows):
            return True
    return expire_names(table, now_s, &max_rows)


cdef bint expire_flows(TableState *table, uint32_t now_s, uint32_t *max_rows) noexcept nogil:
    # Returns whether more flows are due.
    cdef TimerWheel *wheel = &table.wheel
    cdef uint32_t number
    cdef Flow *flow
    cdef Connection *connection
    while True:
        number = wheel_due(wheel, live_flows(table), now_s, max_rows)
        if number == 0:
            return wheel.next_s <= now_s
        flow = flow_at(table, number)
        wheel_remove(wheel, flow.wheel_next)
        if flow.wheel_next:
            prefetch(row_at(&table.flow_rows, flow.wheel_next))
        if flow.deadline_s > wheel.next_s:
            wheel_add(wheel, flow.deadline_s, number, &flow.wheel_next)
            connection = connection_at(&table.views[0], flow.connection & ROW)
            clamp_seq_age(connection, <uint32_t>table.next_seq)
        else:
            make_dormant(table, flow, number, now_s)


cdef bint expire_dormant(TableState *table, uint32_t now_s, uint32_t *max_rows) noexcept nogil:
    # Ends claims, and forgets dormant flows. Returns whether more flows are due.
    cdef DormantList *rows
    cdef double memory_s
    cdef uint32_t i, number
    while oldest_claim_is_over(table, now_s):
        if max_rows[0] == 0:
            return True
        max_rows[0] -= 1
        number = table.claims.head
        end_claim(table, number, now_s)
        if flow_at(table, number).connection & ENDED or table.memory_s == 0:
            forget_flow(table, number)
    while table.flow_rows.used > table.max_flows and (table.ended.head or table.dormant.head):
        if max_rows[0] == 0:
            return True
        max_rows[0] -= 1
        forget_first(table)
    for i in range(2):
        rows = &table.ended if i else &table.dormant
        memory_s = ceil(table.views[0].timeout_s if i else table.memory_s)
        while rows.head:
            number = rows.head
            if flow_at(table, number).deadline_s + memory_s > now_s:
                break
            if max_rows[0] == 0:
                return True
            max_rows[0] -= 1
            prefetch_after(table, number)
            forget_flow(table, number)
    return False


cdef inline bint oldest_claim_is_over(const TableState *table, uint32_t now_s) noexcept nogil:
    return (table.claims.head != 0 and flow_at(table, table.claims.head).deadline_s
            + ceil(table.views[0].timeout_s) <= now_s)


cdef inline void prefetch_after(const TableState *table, uint32_t number) noexcept nogil:
    # Prefetches the index bucket of the row that follows row `number` in a list, and the row after
    # that one. The rows of a list are scattered in memory, so they are usually not in the CPU's
    # cache.
    cdef uint32_t next = flow_at(table, number).wheel_next
    if next:
        prefetch(bucket_of(&table.flow_rows, flow_at(table, next).hash))
        next = flow_at(table, next).wheel_next
        if next:
            prefetch(flow_at(table, next))


cdef bint expire_rows(TableState *table, View *view, uint32_t now_s,
                      uint32_t *max_rows) noexcept nogil:
    # Must not be called for the first view. Returns whether more rows are due.
    cdef TimerWheel *wheel = &view.wheel
    cdef uint32_t number
    cdef Connection *row
    while True:
        number = wheel_due(wheel, view.rows.used, now_s, max_rows)
        if number == 0:
            return wheel.next_s <= now_s
        row = connection_at(view, number)
        wheel_remove(wheel, row.links[0])
        if row.links[0]:
            prefetch(connection_at(view, row.links[0]))
        if row.flows and row.deadline_s <= wheel.next_s:
            row.deadline_s = wheel.next_s + 1       # no row expires before its last live flow
        if row.deadline_s > wheel.next_s:
            wheel_add(wheel, row.deadline_s, number, row.links)
            clamp_seq_age(row, <uint32_t>table.next_seq)
        else:
            remove_row(table, view, number)


cdef void make_dormant(TableState *table, Flow *flow, uint32_t number,
                       uint32_t now_s) noexcept nogil:
    cdef uint32_t connection_row = flow.connection & ROW
    cdef Connection *connection = connection_at(&table.views[0], connection_row)
    cdef uint32_t *links = links_of(table, flow)
    cdef bint ended = flow.connection & ENDED != 0
    cdef uint32_t i, link
    for i in range(1, table.view_count):
        link = link_of(table, &table.views[i], flow, connection)[0]
        if link:
            connection_at(&table.views[i], link).flows -= 1
    if table.has_conversations:
        conversation_at(table, links[0]).flows -= 1
        conversation_at(table, links[0]).dormant += 1
    for i in range(table.label_value_count - table.columns):
        string_release(&table.strings, links[table.first_lookup_string + i])
    link_dormant(table, number, now_s)
    connection.flows -= 1
    if flows_of(connection) == 0 and connection_row != table.views[0].overflow:
        save_counters(table, flow, connection, now_s)
        remove_row(table, &table.views[0], connection_row)
        table.expired += 1
    if table.memory_s == 0 and not ended:
        forget_flow(table, number)
