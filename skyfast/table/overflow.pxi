# Overflow: the rows of what found no room. Part of `_table.pyx`, which includes it.

cdef uint32_t overflow_row(TableState *table, View *view) noexcept nogil:
    # The row of what found no room, made when it is first needed; 0 without memory. It is
    # known by its deadline.
    cdef uint32_t text, i, hash
    cdef Connection *row
    if view.other:
        return view.other
    text = string_intern(&table.strings, table.other_text, table.other_length, table.seed)
    if text == 0:
        return 0
    for i in range(view.columns):
        table.view_cells[i] = text | IS_STRING
    hash = hash_bytes32(<const char *>table.view_cells, 4 * view.columns, table.seed)
    view.other = find_row(table, view, hash)     # a flow may have such labels
    if view.other == 0:
        view.other = add_row(table, view, hash)
        table.connections_created += view.other != 0 and view == &table.views[0]
    if view.other:
        row = connection_at(view, view.other)
        row.deadline_s = NEVER_S
        for i in range(view.counters, view.values):
            (<int64_t *>(<char *>row + view.values_at))[i] = 0
    string_release(&table.strings, text)
    return view.other


cdef int apply_overflow(TableState *table, Report *report, const int64_t *values,
                        const int64_t *last_update) noexcept nogil:
    # An unknown flow that is not kept: what its report counts for goes to the first view's
    # `other` row, and to its own rows of the other views.
    cdef int wrong
    if not table.overflows:
        return SKIP_TABLE_FULL
    if report.worth == WORTH_UNREAD or report.worth == WORTH_LAST_UPDATE_UNREAD:
        return APPLY_STOP
    report.uses_marks = True
    report.uses_last_update = report.worth == WORTH_LAST_UPDATE
    wrong = add_to_overflow(
        table, values if report.worth == WORTH_TOTAL else last_update, values
    )
    if wrong == SKIP_TABLE_FULL:
        table.horizon_s = max(table.horizon_s, table.now)
    return wrong


cdef int add_to_overflow(TableState *table, const int64_t *deltas, const int64_t *values) noexcept nogil:
    cdef View *view
    cdef uint32_t i
    for i in range(table.view_count):
        view = &table.views[i]
        table.created[i] = False
        table.targets[i] = find_or_add_row(table, view, &table.created[i]) if i else overflow_row(table, view)
        if table.targets[i] == 0:
            return APPLY_NO_MEMORY
        if table.created[i]:
            file_row(view, table.targets[i], view.deadline_s)
    table.overflowed = True
    table.overflow_reports += 1
    for i in range(table.view_count):
        view = &table.views[i]
        add_deltas(table, view, connection_at(view, table.targets[i]), deltas, values)
    return SKIP_TABLE_FULL
