# Overflow: each view can have one overflow row, `View.overflow`. It adds up reports for which the
# table has no space.
#
# If `TableState.has_overflow_rows` is false, such reports are not counted. This code needs the
# table's mutex.

cdef uint32_t overflow_row(TableState *table, View *view) noexcept nogil:
    # Returns the overflow row of a view, or 0 if out of memory. Creates this row on first use.
    cdef RowKey key
    cdef uint32_t string, i
    cdef Connection *row
    if view.overflow:
        return view.overflow
    string = string_intern(&table.strings, table.overflow_text, table.overflow_length, table.seed)
    if string == 0:
        return 0
    for i in range(view.columns):
        key.label_ids[i] = string | IS_STRING
    key.hash = hash_bytes32(<const char *>key.label_ids, 4 * view.columns, table.seed)
    # An ordinary flow whose labels equal `overflow_text` may have created the row.
    view.overflow = find_row(view, &key)
    if view.overflow == 0:
        view.overflow = add_row(table, view, &key)
        table.connections_created += view.overflow != 0 and view == &table.views[0]
    if view.overflow:
        row = connection_at(view, view.overflow)
        row.deadline_s = NEVER_S
        for i in range(view.counters, view.values):
            values_of(view, row)[i] = 0
    string_release(&table.strings, string)
    return view.overflow


cdef inline void set_overflowed(TableState *table, const Targets *targets) noexcept nogil:
    # Sets `TableState.overflowed` if a flow uses the overflow row of any view except the first. The
    # flag must only affect later reports, so the caller must first add the current report to the
    # flow's rows.
    cdef uint32_t i
    for i in range(1, table.view_count):
        if targets.rows[i]:
            table.overflowed |= targets.rows[i] == table.views[i].overflow


cdef int apply_overflow(TableState *table, Report *report, const Labels *labels) noexcept nogil:
    # Applies the report of an unknown flow that cannot be stored.
    cdef int done
    cdef bint adds_total
    if not table.has_overflow_rows:
        return SKIP_TABLE_FULL
    if report.initial_delta == INITIAL_UNREAD or report.initial_delta == INITIAL_LAST_UPDATE_UNREAD:
        return APPLY_STOP
    report.uses_lifecycle = True
    report.uses_last_update = report.initial_delta == INITIAL_LAST_UPDATE
    adds_total = report.initial_delta == INITIAL_TOTAL
    done = add_to_overflow(
        table, report, labels,
        report.values if adds_total else report.last_update,
        adds_total, start_of_report(table, report, adds_total),
    )
    if done == SKIP_TABLE_FULL:
        table.horizon_s = max(table.horizon_s, table.now)
    return done


cdef int add_to_overflow(TableState *table, const Report *report, const Labels *labels,
                         const int64_t *deltas, bint is_new, int64_t start_ms) noexcept nogil:
    # Adds a report to the overflow row of the first view, and in each other view, to the row with
    # the flow's labels. `start_ms` is the start time of new rows.
    cdef View *view
    cdef uint32_t rows[MAX_VIEWS]
    cdef uint32_t i
    cdef bint created
    for i in range(table.view_count):
        view = &table.views[i]
        created = False
        if i == 0:
            rows[i] = overflow_row(table, view)
        else:
            rows[i] = find_or_add_row(table, view, labels.ids, &created)
        if rows[i] == 0:
            return APPLY_NO_MEMORY
        if created:
            schedule_row(view, rows[i], view.deadline_s)
    table.overflowed = True
    table.overflow_reports += 1
    for i in range(table.view_count):
        view = &table.views[i]
        set_start(view, connection_at(view, rows[i]), start_ms)
        add_deltas(table, view, connection_at(view, rows[i]), deltas, report.values)
        if is_new:
            count_new_flow(view, connection_at(view, rows[i]))
    observe_in(table, report.flow, report, rows,
               FIRST_IS_NEW if report.flow or is_new else FIRST_IS_OLD)
    return SKIP_TABLE_FULL
