# Dormant flows: the three lists of dormant rows, reports of dormant flows, and saved counters of
# removed connections.
#
# The rows of a list are in the order in which they were added. They are linked by fields that have
# another meaning in live rows (see `Flow`). Flows that claim their conversation (see
# `conversations.pxi`) are never evicted, so they count towards `max_flows` like live flows. This
# code needs the table's mutex.

# ---------------------------------------------------------------------------------------------
# Lists

cdef void dormant_append(DormantList *rows, const Rows *flows, uint32_t number,
                         uint32_t now_s) noexcept nogil:
    cdef Flow *row = <Flow *>row_at(flows, number)
    row.connection = row.connection & ~ROW | DORMANT | rows.tail
    row.wheel_next = 0
    row.deadline_s = now_s
    if rows.tail:
        (<Flow *>row_at(flows, rows.tail)).wheel_next = number
    else:
        rows.head = number
    rows.tail = number
    rows.count += 1


cdef void dormant_remove(DormantList *rows, const Rows *flows, uint32_t number) noexcept nogil:
    cdef Flow *row = <Flow *>row_at(flows, number)
    cdef Flow *other
    cdef uint32_t before = row.connection & ROW
    if before:
        (<Flow *>row_at(flows, before)).wheel_next = row.wheel_next
    else:
        rows.head = row.wheel_next
    if row.wheel_next:
        other = <Flow *>row_at(flows, row.wheel_next)
        other.connection = other.connection & ~ROW | before
    else:
        rows.tail = before
    row.connection &= ~(ROW | DORMANT)
    rows.count -= 1


cdef void unlink_dormant(TableState *table, uint32_t number) noexcept nogil:
    cdef bint ended = flow_at(table, number).connection & ENDED != 0
    if is_claiming(table, number):
        dormant_remove(&table.claims, &table.flow_rows, number)
        conversation_at(table, links_of(table, flow_at(table, number))[0]).claimant = 0
    else:
        dormant_remove(&table.ended if ended else &table.dormant, &table.flow_rows, number)


cdef inline bint is_claiming(const TableState *table, uint32_t number) noexcept nogil:
    cdef uint32_t conversation
    if not table.has_conversations:
        return False
    conversation = links_of(table, flow_at(table, number))[0]
    return conversation != 0 and conversation_at(table, conversation).claimant == number


cdef void set_ended(TableState *table, uint32_t number, bint ended) noexcept nogil:
    # Sets or clears the flag ENDED of a flow. The flow must not be in the list `ended` or
    # `dormant`, because the flag tells in which of these two lists a flow is.
    cdef Flow *flow = flow_at(table, number)
    flow.connection = flow.connection & ~ENDED | (ENDED if ended else 0)


cdef void link_dormant(TableState *table, uint32_t number, uint32_t now_s) noexcept nogil:
    # Adds a flow to the list `ended` or `dormant`. The flow must not be in any list. Ended flows
    # have their own list, because they are forgotten first: they are kept only for reports that are
    # still in transit.
    cdef bint ended = flow_at(table, number).connection & ENDED != 0
    dormant_append(&table.ended if ended else &table.dormant, &table.flow_rows, number, now_s)


cdef void link_and_claim(TableState *table, uint32_t number) noexcept nogil:
    # Adds a flow to the list `claims`, and makes it claim its conversation. If the plan has no
    # conversations, adds the flow to `ended` or `dormant` instead. The flow must not be in any
    # list. Called after a report has been counted without making the flow live.
    cdef Conversation *conversation
    if not table.has_conversations:
        link_dormant(table, number, <uint32_t>floor(table.now))
        return
    conversation = conversation_at(table, links_of(table, flow_at(table, number))[0])
    if conversation.claimant:
        end_claim(table, conversation.claimant, <uint32_t>floor(table.now))
    conversation.claimant = number
    dormant_append(&table.claims, &table.flow_rows, number, <uint32_t>ceil(table.now))


cdef void end_claim(TableState *table, uint32_t number, uint32_t now_s) noexcept nogil:
    # Moves a flow from the list `claims` to `ended` or `dormant`.
    unlink_dormant(table, number)
    link_dormant(table, number, now_s)


cdef void forget_flow(TableState *table, uint32_t number) noexcept nogil:
    cdef Flow *flow = flow_at(table, number)
    cdef double reported_s
    if flow.connection & LABELS_KEY:
        table.saved_connections -= 1
    elif not flow.connection & ENDED and table.has_horizon:
        reported_s = max(0.0, flow.deadline_s - floor(table.min_timeout_s))
        table.horizon_s = max(table.horizon_s, reported_s)
    unlink_dormant(table, number)
    remove_flow(table, number)


cdef inline void evict_surplus(TableState *table) noexcept nogil:
    # If there are more flow rows than `max_flows`, forgets up to MAX_EVICTIONS dormant rows. After
    # `max_flows` is lowered, there may be more surplus rows: `expire_dormant` forgets them.
    cdef uint32_t _row
    for _row in range(MAX_EVICTIONS):
        if likely(table.flow_rows.used <= table.max_flows) or not forget_first(table):
            break


cdef bint forget_first(TableState *table) noexcept nogil:
    # Forgets the first row of the list `ended` or `dormant`. Returns False if both are empty.
    # Usually, a row of `ended` is forgotten. However, while reports of the first ended flow may
    # still be in transit, a row of `dormant` is forgotten instead, because the traffic in late
    # reports of a forgotten flow would be counted twice.
    cdef uint32_t number = table.ended.head
    if table.dormant.head and (
        number == 0 or flow_at(table, number).deadline_s + MAX_REPORT_DELAY_S > floor(table.now)
    ):
        number = table.dormant.head
    if number:
        forget_flow(table, number)
    return number != 0


cdef inline void raise_horizon(TableState *table, double time_s) noexcept nogil:
    table.horizon_s = max(table.horizon_s, time_s) if table.has_horizon else time_s
    table.has_horizon = True


cdef list list_uuids(const TableState *table, uint32_t head):
    # The UUIDs of the flows in the list that begins with row `head`, in the order of the list.
    cdef uint32_t number = head
    cdef Flow *flow
    uuids = []
    while number:
        flow = flow_at(table, number)
        if not flow.connection & LABELS_KEY:
            uuids.append(uuid_of(table, flow))
        number = flow.wheel_next
    return uuids


# ---------------------------------------------------------------------------------------------
# Reports of dormant flows

cdef int apply_dormant(TableState *table, Report *report) noexcept nogil:
    # Returns SKIP_NONE, APPLY_STOP, APPLY_NO_MEMORY, or a reason to skip the report.
    cdef int64_t deltas[MAX_VALUES]
    cdef Flow *flow = flow_at(table, report.flow)
    cdef int change = find_deltas(table, flow, report, deltas)
    cdef bint closing = report.finish == CLOSING
    cdef uint32_t number, conversation = 0
    if change == NOTHING_NEW:
        if closing:
            if not observe_dormant(table, report):
                return APPLY_NO_MEMORY
            if is_claiming(table, report.flow):
                set_ended(table, report.flow, True)
            else:
                unlink_dormant(table, report.flow)
                set_ended(table, report.flow, True)
                link_dormant(table, report.flow, <uint32_t>floor(table.now))
        return SKIP_LATE
    if unlikely(report.skip_if_not_live != SKIP_NONE):
        return report.skip_if_not_live
    if table.has_conversations:
        conversation = find_conversation(table, report.conversation)
        if is_owned_by_other(table, conversation, report):
            forget_flow(table, report.flow)
            return SKIP_DUPLICATE
        number = links_of(table, flow)[0]
        if number and conversation_at(table, number).claimant == SUPERSEDED:
            # The packets since the flow's last report may have been counted at another capture
            # point, so the flow is treated as unknown.
            forget_flow(table, report.flow)
            report.flow = 0
            table.met_unknown = True
            return apply_unknown(table, report)
    if closing:
        if report.initial_delta == INITIAL_UNREAD:
            return APPLY_STOP
        report.omitted_lifecycle &= ~((1 << LIFECYCLE_START) | (1 << LIFECYCLE_UPDATE_START))
        report.uses_lifecycle = report.repeats
    return apply_dormant_deltas(table, report, conversation, deltas, change)


cdef int apply_dormant_deltas(TableState *table, const Report *report, uint32_t conversation,
                              const int64_t *deltas, int change) noexcept nogil:
    cdef View *first = &table.views[0]
    cdef Labels labels
    cdef RowKey key
    cdef Targets targets
    cdef uint32_t number, saved
    cdef int done
    if not intern_labels(table, report.label_values, &labels):
        return APPLY_NO_MEMORY
    row_key(table, first, labels.ids, &key)
    number = find_row(first, &key)
    saved = 0 if number else find_saved(table, key.label_ids)
    if report.finish == CLOSING and report.repeats:
        done = apply_dormant_closing(table, report, &labels, number, saved, conversation, deltas,
                                     change)
    elif number == 0 and is_full(table, first):
        done = apply_dormant_when_full(table, report, &labels, conversation, deltas, change)
    elif (number == 0 and saved == 0 and first.identifies_connection
            and report.initial_delta == INITIAL_UNREAD):
        table.met_unknown = True        # the next reports may need the missing fields, too
        done = APPLY_STOP
    elif find_or_add_all_targets(table, report, &labels, number, &conversation, &targets):
        unlink_dormant(table, report.flow)
        make_live(table, report.flow, report, &labels, &targets, conversation, saved, deltas)
        update_totals(table, flow_at(table, report.flow), report, change)
        evict_surplus(table)
        done = SKIP_NONE
    else:
        done = APPLY_NO_MEMORY
    release_interned(table, &labels)
    return done


cdef int apply_dormant_closing(TableState *table, const Report *report, const Labels *labels,
                               uint32_t number, uint32_t saved, uint32_t conversation,
                               const int64_t *deltas, int change) noexcept nogil:
    # Applies a closing report that repeats a previous report. The totals in the closing report are
    # new to the table, so it has not received the previous report. The flow stays dormant.
    cdef uint32_t before = conversation
    if not ensure_conversation(table, report, &conversation):
        return APPLY_NO_MEMORY
    if not add_closing_report(table, report, report.flow, labels, number, saved, deltas, False,
                              start_of_deltas(table, flow_at(table, report.flow))):
        discard_new_conversation(table, conversation, before)
        return APPLY_NO_MEMORY
    mark_superseded(table, before, conversation)
    update_totals(table, flow_at(table, report.flow), report, change)
    unlink_dormant(table, report.flow)
    link_conversation(table, report.flow, conversation)
    evict_surplus(table)
    set_ended(table, report.flow, True)
    link_and_claim(table, report.flow)
    return SKIP_NONE


cdef int apply_dormant_when_full(TableState *table, const Report *report, const Labels *labels,
                                 uint32_t conversation, const int64_t *deltas,
                                 int change) noexcept nogil:
    # Applies a report of a dormant flow whose connection cannot be created because the first view
    # is full.
    cdef uint32_t before = conversation
    if table.has_overflow_rows:
        if not ensure_conversation(table, report, &conversation):
            return APPLY_NO_MEMORY
        if add_to_overflow(table, report, labels, deltas, False,
                           start_of_deltas(table, flow_at(table, report.flow))) == APPLY_NO_MEMORY:
            discard_new_conversation(table, conversation, before)
            return APPLY_NO_MEMORY
        mark_superseded(table, before, conversation)
        update_totals(table, flow_at(table, report.flow), report, change)
        unlink_dormant(table, report.flow)
        link_conversation(table, report.flow, conversation)
        set_ended(table, report.flow, report.finish == CLOSING)
        link_and_claim(table, report.flow)
    elif is_claiming(table, report.flow):
        set_ended(table, report.flow, report.finish == CLOSING)
    else:
        unlink_dormant(table, report.flow)
        set_ended(table, report.flow, report.finish == CLOSING)
        link_dormant(table, report.flow, <uint32_t>floor(table.now))
    table.rejected += 1
    return SKIP_TABLE_FULL


cdef int add_ended_flow(TableState *table, const Report *report, const Labels *labels,
                        uint32_t number, uint32_t saved) noexcept nogil:
    # Applies the closing report of a flow that has never been counted. The flow is stored as a
    # dormant flow, because its other reports may still be in transit.
    cdef uint32_t row = add_unknown_flow(table, report)
    if row == 0:
        return APPLY_NO_MEMORY
    if not add_closing_report(table, report, row, labels, number, saved, report.values, True,
                              start_of_report(table, report, True)):
        remove_flow(table, row)
        return APPLY_NO_MEMORY
    evict_surplus(table)
    set_ended(table, row, True)
    link_dormant(table, row, <uint32_t>floor(table.now))
    return SKIP_NONE


cdef bint add_closing_report(TableState *table, const Report *report, uint32_t flow,
                             const Labels *labels, uint32_t number, uint32_t saved,
                             const int64_t *deltas, bint is_new, int64_t start_ms) noexcept nogil:
    # In all views, adds `deltas` to the row with the flow's labels. The flow does not become live.
    # Returns False if out of memory. `start_ms` is the start time of new rows.
    #
    # `number` is the row in the first view. If `number` is 0, there is no such row, and `deltas`
    # are added to the saved counters of a removed connection with the flow's labels:
    #
    # * If `saved` is not 0, it is the dormant row with the saved counters.
    # * If `saved` is 0, a dormant row with saved counters is created. However, no row is created if
    #   `memory_s` is 0, or if the flow's totals are enough to restore the connection.
    cdef View *first = &table.views[0]
    cdef View *view
    cdef RowKey key
    cdef Targets targets
    cdef uint32_t i
    if number == 0 and saved == 0 and not first.identifies_connection and table.memory_s > 0:
        row_key(table, first, labels.ids, &key)
        saved = add_saved(table, key.label_ids, <uint32_t>floor(table.now))
        if saved == 0:
            return False
        flow_at(table, saved).last_ms = pack_saved(0, start_ms)
        for i in range(table.counters):
            totals_of(flow_at(table, saved))[i] = ABSENT if table.optional[i] else 0
    # If the next call runs out of memory, the new row with saved counters stays. The row does no
    # harm, because its counters are 0 or ABSENT.
    if not find_or_add_further_targets(table, labels, number, &targets):
        return False
    for i in range(1, table.view_count):
        view = &table.views[i]
        if targets.rows[i] == 0:
            continue
        if targets.created[i]:
            schedule_row(view, targets.rows[i], view.deadline_s)
        set_start(view, connection_at(view, targets.rows[i]), start_ms)
        add_deltas(table, view, connection_at(view, targets.rows[i]), deltas, report.values)
        if is_new:
            count_new_flow(view, connection_at(view, targets.rows[i]))
    set_overflowed(table, &targets)
    observe_in(table, flow, report, targets.rows, FIRST_IS_NEW)
    if number:
        add_to_counters(first, connection_at(first, number), deltas)
        if is_new:
            count_new_flow(first, connection_at(first, number))
    elif saved:
        if is_new:
            count_saved_new_flow(flow_at(table, saved))
        for i in range(first.counters):
            add(&totals_of(flow_at(table, saved))[first.sources[i]], deltas[first.sources[i]])
    return True


# ---------------------------------------------------------------------------------------------
# Saved counters: the counters of a removed connection, in a flow row whose key is a hash of the
# connection's labels

cdef uint32_t find_saved(const TableState *table, const uint32_t *label_ids) noexcept nogil:
    if table.saved_connections == 0:
        return 0
    return flow_find(&table.flow_rows, labels_key(table, label_ids), LABELS_KEY)


cdef uint64_t labels_key(const TableState *table, const uint32_t *label_ids) noexcept nogil:
    # A hash of the texts of label values. Label IDs are not hashed, because a label ID can be
    # reused for another text.
    cdef const String *string
    cdef uint64_t key = table.seed
    cdef uint32_t i
    for i in range(table.views[0].columns):
        if label_ids[i] & IS_STRING:
            string = <const String *>row_at(&table.strings, label_ids[i] & ~IS_STRING)
            key = mix64(key ^ hash_bytes(string_bytes(string), string.length, table.seed))
        else:
            key = mix64(key + label_ids[i])
    return key


cdef uint32_t add_saved(TableState *table, const uint32_t *label_ids,
                        uint32_t now_s) noexcept nogil:
    # Adds a row for the saved counters of a connection with these labels. Returns the number of the
    # row, or 0 if out of memory.
    cdef uint32_t number = flow_new(&table.flow_rows, labels_key(table, label_ids), LABELS_KEY)
    if number:
        flow_at(table, number).last_ms = 0
        if table.has_conversations:
            links_of(table, flow_at(table, number))[0] = 0
        memset(totals_of(flow_at(table, number)), 0, table.counters * sizeof(int64_t))
        dormant_append(&table.dormant, &table.flow_rows, number, now_s)
        table.saved_connections += 1
    return number


cdef void restore_counters(TableState *table, uint32_t number, Connection *row) noexcept nogil:
    cdef const View *first = &table.views[0]
    cdef const int64_t *totals = totals_of(flow_at(table, number))
    cdef int64_t *sums = values_of(first, row)
    cdef uint32_t i
    row.flows |= RESTORED
    for i in range(first.counters):
        sums[i] = totals[first.sources[i]]
    if first.counts_new_flows:
        new_flows_of(first, row)[0] = saved_new_flows(flow_at(table, number))
    start_of(first, row)[0] = saved_start(flow_at(table, number))
    forget_flow(table, number)


cdef void save_counters(TableState *table, Flow *flow, Connection *row,
                        uint32_t now_s) noexcept nogil:
    # Called when the last flow of a connection, `flow`, expires, before the connection is removed.
    # Saves nothing if the totals of `flow` are enough to restore the counters.
    cdef const View *first = &table.views[0]
    cdef const int64_t *totals = totals_of(flow)
    cdef const int64_t *sums = values_of(first, row)
    cdef bint differs = not first.identifies_connection
    cdef uint32_t i, number
    for i in range(first.counters):
        differs |= sums[i] != totals[first.sources[i]]
    if first.counts_new_flows:
        differs |= new_flows_of(first, row)[0] != 1
    if not differs or table.memory_s == 0:
        return
    number = add_saved(table, label_ids_of(first, row), now_s)
    if number:
        for i in range(first.counters):
            totals_of(flow_at(table, number))[first.sources[i]] = sums[i]
        flow_at(table, number).last_ms = pack_saved(
            new_flows_of(first, row)[0] if first.counts_new_flows else 0, start_of(first, row)[0]
        )
        evict_surplus(table)
