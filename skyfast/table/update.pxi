# Applying reports to the table's rows. This is the last of the three steps of `Table.update` (read,
# look up, apply), and the only step that changes flows and connections.
#
# `update_flows` takes the mutex to apply a batch, and releases it before the next batch.
# `apply_batch` and all code that it calls run under the mutex. The rules for adding reports to rows
# are in docs/architecture.md. If an allocation fails, the current report has no effect.

cdef enum:
    # Results of functions that apply one report, in addition to SKIP_NONE and the reasons to skip.
    APPLY_STOP = MAX_SKIPS      # the flow's type lacks needed fields: stop before this flow
    APPLY_NO_MEMORY             # out of memory: the report has no effect


cdef struct Targets:
    # The rows that a flow will link to.
    # For each view: the row, or 0 if the view is full and there are no overflow rows.
    uint32_t rows[MAX_VIEWS]
    bint created[MAX_VIEWS]     # for each view: whether the row is new


cdef Py_ssize_t update_flows(TableState *table, Batch *batch, const Reader *readers, list flows,
                             Py_ssize_t start, double now, list owned) except -1:
    # Returns the index of the first flow that was neither applied nor skipped.
    cdef Py_ssize_t position = start
    cdef int done
    begin_update(table, batch, now)
    while position < PyList_GET_SIZE(flows):
        read_reports(table, readers, flows, position, batch)
        if batch.size == 0:
            raise TypeError(f"not a flow of this table's plan: {type(flows[position]).__name__}")
        look_up_flows(table, batch)
        try:
            read_not_live(table, readers, flows, position, batch, owned)
        except BaseException:       # raised by a rewrite or a lookup
            owned.clear()
            raise
        look_up_labels(table, batch)
        lock_with_priority(table)
        done = apply_batch(table, batch)
        pthread_mutex_unlock(&table.lock)
        if batch.missed_count:
            add_missed_names(table, batch, done)
        if owned:
            owned.clear()
        if done < 0:
            raise MemoryError
        position += done
        if <uint32_t>done < batch.size:
            break
    return position


cdef void add_missed_names(TableState *table, const Batch *batch, int done) noexcept:
    # Adds rows for the results in `batch.missed` (see `names.pxi`), if their reports are among the
    # first `done` reports of the batch and were not skipped.
    cdef uint32_t i, number, position
    lock_with_priority(table)
    for i in range(batch.missed_count):
        number = batch.missed[i]
        position = number / table.lookup_count
        if <int>position < done and batch.reports[position].skip == SKIP_NONE:
            add_names_row(
                table, &table.lookups[number % table.lookup_count], batch.names[number].result,
                batch.reports[position].label_values,
            )
    pthread_mutex_unlock(&table.lock)


cdef void begin_update(TableState *table, Batch *batch, double now) noexcept nogil:
    # Sets the deadlines that the reports of this call of `Table.update` give to rows. Advances
    # empty wheels to the current time, because they may be far behind.
    cdef uint32_t i
    cdef View *view
    table.now = now
    if live_flows(table) == 0:
        table.wheel.next_s = <uint32_t>floor(now)
    if table.names.used == 0:
        table.names_wheel.next_s = <uint32_t>floor(now)
    for i in range(table.view_count):
        view = &table.views[i]
        view.deadline_s = <uint32_t>ceil(now + view.timeout_s)
        if view.rows.used == 0:
            view.wheel.next_s = <uint32_t>floor(now)
    table.met_unknown = False
    batch.oldest_ms = INT64_MAX
    batch.newest_ms = 0


cdef int apply_batch(TableState *table, Batch *batch) noexcept nogil:
    # Returns the number of reports that were applied or skipped, or -1 if out of memory.
    cdef uint32_t i
    cdef int done = <int>batch.size
    cdef Report *report
    table.batch = batch
    for i in range(batch.size):
        report = &batch.reports[i]
        if likely(report.skip == SKIP_NONE):
            if likely(report.flow != 0 and not report.dormant):
                report.skip = apply_known(table, report)
            else:
                report.skip = apply_by_state(table, report)
                if unlikely(report.skip == APPLY_STOP):
                    done = <int>i
                    break
                if unlikely(report.skip == APPLY_NO_MEMORY):
                    done = -1
                    break
            if unlikely(report.finish or report.has_omissions) and (
                report.skip == SKIP_NONE or report.skip == SKIP_LATE
                or report.skip == SKIP_ENDED or report.skip == SKIP_TABLE_FULL
            ):
                if report.finish:
                    table.finishes[report.finish & 3] += 1
                if report.has_omissions:
                    count_omitted(table, report)
        if unlikely(report.skip != SKIP_NONE):
            table.skips[report.skip] += 1
    table.batch = NULL
    for i in range(batch.strings_to_release_count):
        string_release(&table.strings, batch.strings_to_release[i])
    batch.strings_to_release_count = 0
    return done


cdef void count_omitted(TableState *table, const Report *report) noexcept nogil:
    # Counts the omitted fields of a report. Each field counts once, even if several values use it.
    cdef bint seen[MAX_FIELDS]
    cdef uint32_t i
    memset(seen, 0, sizeof(seen))
    for i in range(2 * table.all_values):
        if is_omitted(&report.omitted_values, i):
            seen[table.value_fields[i]] = True
    for i in range(LIFECYCLE_FIELDS):
        if not (i == LIFECYCLE_FINISH or report.uses_lifecycle):
            continue
        if report.omitted_lifecycle >> i & 1:
            seen[table.lifecycle_fields[i]] = True
    if report.uses_last_update:
        for i in range(2 * table.counters):
            if is_omitted(&report.omitted_last_update, i):
                seen[table.last_update_fields[i]] = True
    for i in range(MAX_FIELDS):
        table.omitted_counts[i] += seen[i]


# ---------------------------------------------------------------------------------------------
# Live flows

cdef int apply_known(TableState *table, const Report *report) noexcept nogil:
    cdef int64_t deltas[MAX_VALUES]
    cdef Flow *flow = flow_at(table, report.flow)
    cdef Connection *connection = connection_at(&table.views[0], flow.connection & ROW)
    cdef const View *view
    cdef int change = find_deltas(table, flow, report, deltas)
    cdef uint32_t i, number
    if unlikely(report.finish == CLOSING):
        flow.connection |= ENDED
    elif unlikely(flow.connection & ENDED) and report.last_ms > flow.last_ms:
        flow.connection &= ~ENDED
    if unlikely(change == NOTHING_NEW):
        observe_live(table, flow, report, IGNORE_FIRST)
        return SKIP_LATE
    update_totals(table, flow, report, change)
    flow.deadline_s = max(flow.deadline_s, table.views[0].deadline_s)
    add_deltas(table, &table.views[0], connection, deltas, report.values)
    for i in range(1, table.view_count):
        view = &table.views[i]
        number = link_of(table, view, flow, connection)[0]
        if number:
            add_deltas(table, view, connection_at(view, number), deltas, report.values)
    observe_live(table, flow, report, FIRST_IS_NEW)
    return SKIP_NONE


# ---------------------------------------------------------------------------------------------
# Unknown flows

cdef int apply_by_state(TableState *table, Report *report) noexcept nogil:
    # Applies the report of a flow that was not live when the batch was read. Since then, earlier
    # reports of the batch may have made the flow live, or evicted it.
    report.flow = find_flow(table, &report.key)
    report.uses_lifecycle = report.uses_last_update = False
    if report.flow:
        if not flow_at(table, report.flow).connection & DORMANT:
            return apply_known(table, report)
        return APPLY_STOP if report.skip_if_not_live == APPLY_STOP else apply_dormant(table, report)
    if unlikely(report.skip_if_not_live != SKIP_NONE):
        return report.skip_if_not_live
    table.met_unknown = True
    return apply_unknown(table, report)


cdef int apply_unknown(TableState *table, Report *report) noexcept nogil:
    cdef View *first = &table.views[0]
    cdef Labels labels
    cdef RowKey key
    cdef uint32_t number, saved, conversation = 0
    cdef int done
    cdef bint creates, full
    if table.has_conversations:
        conversation = find_conversation(table, report.conversation)
        if is_owned_by_other(table, conversation, report):
            return SKIP_DUPLICATE
    if report.finish == CLOSING:
        if report.initial_delta == INITIAL_UNREAD:
            return APPLY_STOP
        report.uses_lifecycle = True
    if was_never_counted(table, report):
        report.initial_delta = INITIAL_TOTAL
    elif report.repeats:
        return observe_ended(table, report)
    if not intern_labels(table, report.label_values, &labels):
        return APPLY_NO_MEMORY
    labels.connection_hash = report.connection_hash
    connection_key(table, &labels, &key)
    labels.connection_hash = key.hash
    number = find_row(first, &key)
    creates = number == 0
    saved = find_saved(table, key.label_ids) if creates else 0
    full = creates and not report.repeats and is_full(table, first)
    if full or live_flows(table) + table.claims.count >= table.max_flows:
        done = apply_overflow(table, report, &labels)
        table.rejected += full and done == SKIP_TABLE_FULL
    elif report.repeats:
        done = add_ended_flow(table, report, &labels, number, saved)
    elif report.initial_delta == INITIAL_UNREAD or (
        report.initial_delta == INITIAL_LAST_UPDATE_UNREAD
        and (table.view_count > 1 or not adds_whole_total(table, first, creates and not saved))
    ):
        done = APPLY_STOP
    else:
        if unlikely(report.has_omissions):
            report.uses_lifecycle |= table.counts_new_flows
            if needs_initial_delta(table, &labels, number, saved):
                report.uses_lifecycle = True
                report.uses_last_update = report.initial_delta == INITIAL_LAST_UPDATE
        done = add_flow(table, report, &labels, number, saved, conversation)
    release_interned(table, &labels)
    return done


cdef inline bint was_never_counted(const TableState *table, const Report *report) noexcept nogil:
    # Whether an unknown flow has certainly never been counted, because it began after the horizon
    # (see `Table.horizon_s`). The start of the flow is computed from `age_ms`, which is the
    # difference of two times of the same agent. So a wrong clock of the agent does no harm.
    #
    # If the plan has conversations, the result is False: earlier reports of the flow may have been
    # skipped, because a flow of another capture point counted the same traffic. The table does not
    # remember skipped flows.
    return (table.has_horizon and report.age_ms >= 0 and not table.has_conversations
            and (table.now - report.age_ms / 1000.0 - table.flow_update_s - MAX_REPORT_DELAY_S
                 > table.horizon_s))


cdef inline bint adds_whole_total(const TableState *table, const View *view,
                                  bint creates) noexcept nogil:
    # Whether an unknown flow adds its whole total to a row even if the flow's first report was
    # missed. `creates` is true if the row is new and has no saved counters. If the table has
    # overflowed, the result is False, because an overflow row may already have a part of this
    # total.
    return creates and view.identifies_connection and not table.overflowed


cdef bint needs_initial_delta(const TableState *table, const Labels *labels, uint32_t number,
                              uint32_t saved) noexcept nogil:
    # Whether, in at least one view, the flow adds the delta selected by `initial_delta`, and not
    # its whole total. `number` is the flow's row in the first view, or 0 if this row must be
    # created. `saved` is the dormant row that has saved counters for the row to create, or 0 if
    # there is none.
    cdef const View *view
    cdef RowKey key
    cdef uint32_t i
    for i in range(table.view_count):
        view = &table.views[i]
        if i and not view.linked_from_flow and has_links(table, number):
            if connection_at(&table.views[0], number).links[view.link]:
                return True
            continue
        row_key(table, view, labels.ids, &key)
        if find_row(view, &key):
            return True
        if is_full(table, view):
            if table.has_overflow_rows:
                return True
        elif not adds_whole_total(table, view, i or not saved):
            return True
    return False


cdef int add_flow(TableState *table, const Report *report, const Labels *labels, uint32_t number,
                  uint32_t saved, uint32_t conversation) noexcept nogil:
    # Adds an unknown flow as a live flow. If memory runs out, adds nothing. For `number` and
    # `saved`, see `needs_initial_delta`.
    cdef Targets targets
    cdef uint32_t row = add_unknown_flow(table, report)
    if row == 0:
        return APPLY_NO_MEMORY
    if not find_or_add_all_targets(table, report, labels, number, &conversation, &targets):
        remove_flow(table, row)
        return APPLY_NO_MEMORY
    make_live(table, row, report, labels, &targets, conversation, saved, NULL)
    evict_surplus(table)
    return SKIP_NONE


# ---------------------------------------------------------------------------------------------
# The rows that a flow links to

cdef bint find_or_add_all_targets(TableState *table, const Report *report, const Labels *labels,
                                  uint32_t number, uint32_t *conversation,
                                  Targets *targets) noexcept nogil:
    # Like `find_or_add_targets`, but also finds or adds the conversation.
    cdef uint32_t before = conversation[0]
    if not ensure_conversation(table, report, conversation):
        return False
    if find_or_add_targets(table, labels, number, targets):
        mark_superseded(table, before, conversation[0])
        return True
    discard_new_conversation(table, conversation[0], before)
    return False


cdef bint find_or_add_targets(TableState *table, const Labels *labels, uint32_t number,
                              Targets *targets) noexcept nogil:
    # Sets `targets` to the rows with the flow's labels, and adds rows that do not exist. `number`
    # is the flow's row in the first view, or 0 if it must be added. If memory runs out, adds
    # nothing, and returns False.
    cdef View *first = &table.views[0]
    cdef RowKey key
    targets.created[0] = number == 0
    targets.rows[0] = number
    if number == 0:
        connection_key(table, labels, &key)
        targets.rows[0] = add_row(table, first, &key)
        if targets.rows[0] == 0:
            return False
    if find_or_add_further_targets(table, labels, number, targets):
        return True
    if targets.created[0]:
        remove_row(table, first, targets.rows[0])
    return False


cdef bint find_or_add_further_targets(TableState *table, const Labels *labels, uint32_t number,
                                      Targets *targets) noexcept nogil:
    # Like `find_or_add_targets`, but for all views except the first.
    cdef View *view
    cdef uint32_t i
    for i in range(1, table.view_count):
        view = &table.views[i]
        targets.created[i] = False
        if not view.linked_from_flow and has_links(table, number):
            targets.rows[i] = connection_at(&table.views[0], number).links[view.link]
            continue
        targets.rows[i] = find_or_add_row(table, view, labels.ids, &targets.created[i])
        if targets.rows[i] == 0 and (targets.created[i] or table.has_overflow_rows):
            while i > 1:
                i -= 1
                if targets.created[i]:
                    remove_row(table, &table.views[i], targets.rows[i])
            return False
    return True


cdef void make_live(TableState *table, uint32_t row, const Report *report, const Labels *labels,
                    const Targets *targets, uint32_t conversation, uint32_t saved,
                    const int64_t *deltas) noexcept nogil:
    # Links a flow to its rows, and adds its report to these rows:
    #
    # * A dormant flow adds `deltas`.
    # * An unknown flow adds its total or its last update, and `deltas` is NULL.
    #
    # `saved` is the dormant row that has saved counters for a new row of the first view, or 0.
    cdef Flow *flow = flow_at(table, row)
    cdef Connection *connection = connection_at(&table.views[0], targets.rows[0])
    cdef Connection *target
    cdef const int64_t *added
    cdef View *view
    cdef uint32_t *links = links_of(table, flow)
    cdef uint32_t dormant_s = flow.deadline_s
    cdef uint32_t i
    cdef int64_t start_ms
    flow.connection = flow.connection & STRING_KEY | targets.rows[0]
    if report.finish == CLOSING:
        flow.connection |= ENDED
    flow.deadline_s = table.views[0].deadline_s
    wheel_add(&table.wheel, flow.deadline_s, row, &flow.wheel_next)
    if conversation:
        conversation_at(table, conversation).flows += 1
        if links[0]:
            conversation_at(table, links[0]).dormant -= 1
            release_conversation(table, links[0])
        links[0] = conversation
    for i in range(table.columns, table.label_value_count):
        links[table.first_lookup_string + i - table.columns] = labels.ids[i] & ~IS_STRING
    retain_labels(table, labels.ids + table.columns, table.label_value_count - table.columns)
    for i in range(table.view_count):
        view = &table.views[i]
        if i:
            link_of(table, view, flow, connection)[0] = targets.rows[i]
            if targets.rows[i] == 0:
                continue
        target = connection_at(view, targets.rows[i])
        if i and targets.created[i]:
            schedule_row(view, targets.rows[i], view.deadline_s)
        target.flows += 1
        if deltas != NULL:
            added = deltas
            start_ms = start_of_deltas(table, flow)
        elif (report.initial_delta == INITIAL_TOTAL
                or adds_whole_total(table, view, targets.created[i] and (i or not saved))):
            added = report.values
            start_ms = start_of_report(table, report, True)
        else:
            added = report.last_update
            start_ms = start_of_report(table, report, False)
        if i == 0 and targets.created[0]:
            if saved:
                restore_counters(table, saved, target)
            elif deltas != NULL and view.identifies_connection:
                target.flows |= RESTORED
                add_to_counters(view, target, totals_of(flow))
                # The removed row had counted exactly one new flow: if not, its counters would have
                # been saved.
                count_new_flow(view, target)
                start_ms = start_of_total(table, report, dormant_s)
        set_start(view, target, start_ms)
        add_deltas(table, view, target, added, report.values)
    if (unlikely(table.counts_new_flows) and deltas == NULL
            and report.initial_delta == INITIAL_TOTAL):
        for i in range(table.view_count):
            if targets.rows[i]:
                count_new_flow(&table.views[i], connection_at(&table.views[i], targets.rows[i]))
    observe_live(
        table, flow, report,
        FIRST_IS_NEW if deltas != NULL or report.initial_delta == INITIAL_TOTAL else FIRST_IS_OLD,
    )
    table.connections_created += targets.created[0]
    set_overflowed(table, targets)
