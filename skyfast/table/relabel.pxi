# Relabelling: flows move to other connections after the results of a rewrite have changed. Part of
# `_table.pyx`, which includes it.
#
# `Table.relabel` calls `relabel_flows`, which needs the GIL, as does `add_change`. Both take the
# table's mutex; everything else is plain C under the mutex.

cdef struct Changes:
    # Sorted by key once complete. Each change has a reference to both of its strings.
    Change *items
    uint32_t count, capacity


cdef int relabel_flows(TableState *table, list renamed, list dynamic) except -1:
    # `renamed` is that of `Table.relabel`; `dynamic` has the result of `dynamic_columns`.
    cdef Changes changes
    cdef bint done
    memset(&changes, 0, sizeof(Changes))
    try:
        for rewrite, keys in renamed:
            for column_rewrite, slot, column in dynamic:
                if column_rewrite is rewrite:
                    for key in keys:
                        add_change(table, &changes, rewrite, key, slot, column)
        if changes.count == 0:
            return 0
        qsort(changes.items, changes.count, sizeof(Change), compare_changes)
        with nogil:
            pthread_mutex_lock(&table.lock)
            done = apply_changes(table, &changes)
            pthread_mutex_unlock(&table.lock)
        if not done:
            raise MemoryError
    finally:
        pthread_mutex_lock(&table.lock)
        release_changes(table, &changes)
        pthread_mutex_unlock(&table.lock)
    return 0


# ---------------------------------------------------------------------------------------------
# Changed labels

cdef int add_change(TableState *table, Changes *changes, rewrite, str key, uint32_t slot,
                    uint32_t column) except -1:
    cdef char escaped[MAX_CELL]
    cdef const char *text
    cdef uint32_t length, known, label
    cdef Change *change
    if read_label(<PyObject *>key, escaped, &text, &length):
        return 0
    known = string_find(&table.strings, text, length, hash_bytes32(text, length, table.seed))
    if known == 0:
        return 0                    # no flow has this key
    reserve_change(changes)
    answer = rewrite[key]
    if read_label(<PyObject *>answer, escaped, &text, &length):
        return 0
    pthread_mutex_lock(&table.lock)
    label = string_intern(&table.strings, text, length, table.seed)
    (<String *>row_at(&table.strings, known)).refs += label != 0
    pthread_mutex_unlock(&table.lock)
    if label == 0:
        raise MemoryError
    change = &changes.items[changes.count]
    change.key = known
    change.slot = slot
    change.column = column
    change.cell = label | IS_STRING
    changes.count += 1
    return 0


cdef int read_label(PyObject *value, char *escaped, const char **text,
                    uint32_t *length) except -1:
    # Reads a label as it appears on a page, into `escaped` (MAX_CELL bytes) if it needs escapes.
    # Returns whether it is invalid.
    if read_text(value, text, length):
        return True
    if needs_escape(text[0], length[0]):
        length[0] = escape(text[0], length[0], escaped)
        text[0] = escaped
    return False


cdef int reserve_change(Changes *changes) except -1:
    cdef void *moved
    if changes.count == changes.capacity:
        moved = realloc(changes.items, (2 * changes.capacity + 64) * sizeof(Change))
        if moved == NULL:
            raise MemoryError
        changes.items = <Change *>moved
        changes.capacity = 2 * changes.capacity + 64
    return 0


cdef int compare_changes(const void *one, const void *other) noexcept nogil:
    cdef const Change *a = <const Change *>one
    cdef const Change *b = <const Change *>other
    return (a.key > b.key) - (a.key < b.key)


cdef void release_changes(TableState *table, Changes *changes) noexcept nogil:
    cdef uint32_t i
    for i in range(changes.count):
        string_release(&table.strings, changes.items[i].key)
        string_release(&table.strings, changes.items[i].cell & ~IS_STRING)
    free(changes.items)


# ---------------------------------------------------------------------------------------------
# Moving

cdef bint apply_changes(TableState *table, const Changes *changes) noexcept nogil:
    # False if out of memory. All flows are detached before the first one is attached, so that their
    # order has no effect.
    cdef uint32_t *moving = NULL
    cdef uint32_t *emptied
    cdef uint32_t i, number, count = 0, emptied_count = 0
    cdef bint done = True
    if not find_moving(table, changes, &moving, &count):
        return False
    emptied = <uint32_t *>malloc((count + 1) * sizeof(uint32_t))
    if emptied == NULL:
        free(moving)
        return False
    for i in range(count):
        number = detach(table, changes, flow_at(table, moving[i]))
        if number:
            emptied[emptied_count] = number
            emptied_count += 1
    for i in range(count):
        done &= attach(table, changes, flow_at(table, moving[i]))
    for i in range(emptied_count):
        if flows_of(connection_at(&table.views[0], emptied[i])) == 0:
            free_row(table, &table.views[0], emptied[i])
            table.expired += 1
    free(moving)
    free(emptied)
    return done


cdef bint find_moving(const TableState *table, const Changes *changes, uint32_t **moving,
                      uint32_t *count) noexcept nogil:
    # Find the live flows that have a new label. The caller frees `moving`. False if out of memory;
    # then there is nothing to free.
    cdef uint32_t new_cells[MAX_COLUMNS]
    cdef uint32_t *longer
    cdef uint32_t number, capacity = 0
    cdef Flow *flow
    for number in range(1, table.flow_rows.fresh):
        flow = flow_at(table, number)
        if (flow.connection and not flow.connection & DORMANT
                and find_new_cells(table, changes, flow, new_cells)):
            if count[0] == capacity:
                capacity = 2 * capacity + 1024
                longer = <uint32_t *>realloc(moving[0], capacity * sizeof(uint32_t))
                if longer == NULL:
                    free(moving[0])
                    return False
                moving[0] = longer
            moving[0][count[0]] = number
            count[0] += 1
    return True


cdef bint find_new_cells(const TableState *table, const Changes *changes, Flow *flow,
                         uint32_t *new_cells) noexcept nogil:
    # Sets a flow's new labels by column, 0 for labels that do not change. Returns whether any
    # changes.
    cdef const uint32_t *keys = links_of(table, flow) + table.first_key
    cdef const Change *change
    cdef uint32_t slot, low, high, middle
    cdef bint changes_any = False
    memset(new_cells, 0, table.cells * sizeof(uint32_t))
    for slot in range(table.cells - table.columns):
        low = 0
        high = changes.count
        while low < high:
            middle = (low + high) / 2
            if changes.items[middle].key < keys[slot]:
                low = middle + 1
            else:
                high = middle
        while low < changes.count and changes.items[low].key == keys[slot]:
            change = &changes.items[low]
            if change.slot == slot:
                new_cells[change.column] = change.cell
                changes_any = True
            low += 1
    return changes_any


cdef bint relabelled(const View *view, uint32_t number, const uint32_t *new_cells,
                     uint32_t *cells) noexcept nogil:
    # Fill the view's part of `cells` with the new labels of a flow in this row. Returns whether
    # they differ. Without a row, and in the overflow row, they do not.
    cdef const uint32_t *old
    cdef uint32_t i, column
    cdef bint differs = False
    if number == 0 or number == view.other:
        return False
    old = cells_of(view, connection_at(view, number))
    for i in range(view.columns):
        column = view.cells[i]
        cells[column] = new_cells[column] if new_cells[column] else old[i]
        differs |= cells[column] != old[i]
    return differs


cdef uint32_t detach(TableState *table, const Changes *changes, Flow *flow) noexcept nogil:
    # Returns the row of the first view if it has no flows any more, otherwise 0. The row is removed
    # from the index, so that other flows do not find it.
    cdef uint32_t new_cells[MAX_COLUMNS]
    cdef uint32_t cells[MAX_COLUMNS]
    cdef uint32_t row = flow.connection & ROW
    cdef Connection *connection = connection_at(&table.views[0], row)
    cdef const View *view
    cdef uint32_t i, number
    cdef bint moves
    find_new_cells(table, changes, flow, new_cells)
    moves = relabelled(&table.views[0], row, new_cells, cells)
    for i in range(1, table.view_count):
        view = &table.views[i]
        number = link_of(table, view, flow, connection)[0]
        if number and (
            relabelled(view, number, new_cells, cells) if view.linked_from_flow else moves
        ):
            connection_at(view, number).flows -= 1
    if not moves:
        return 0
    connection.flows -= 1
    if flows_of(connection):
        return 0
    index_remove(&table.views[0].rows, row)
    return row


cdef bint attach(TableState *table, const Changes *changes, Flow *flow) noexcept nogil:
    # False if out of memory: then the flow keeps its labels in some views.
    cdef uint32_t new_cells[MAX_COLUMNS]
    cdef uint32_t cells[MAX_COLUMNS]
    cdef View *view
    cdef uint32_t *link
    cdef Connection *old = connection_at(&table.views[0], flow.connection & ROW)
    cdef uint32_t i
    cdef bint done = True
    find_new_cells(table, changes, flow, new_cells)
    for i in range(1, table.view_count):
        view = &table.views[i]
        if view.linked_from_flow:
            link = link_of(table, view, flow, old)
            if relabelled(view, link[0], new_cells, cells):
                done &= move_link(table, view, link, flow, cells)
                count_flow(table, view, link[0], flow)
    if relabelled(&table.views[0], flow.connection & ROW, new_cells, cells):
        done &= move_connection(table, flow, new_cells, cells)
    return done


cdef bint move_connection(TableState *table, Flow *flow, const uint32_t *new_cells,
                          uint32_t *cells) noexcept nogil:
    # Move a flow to the row of the first view that has these labels, and to the rows it links to.
    cdef View *first = &table.views[0]
    cdef View *view
    cdef RowKey key
    cdef uint32_t row = flow.connection & ROW
    cdef Connection *old = connection_at(first, row)
    cdef Connection *connection
    cdef uint32_t *link
    cdef uint32_t i, number, kept
    cdef bint created = False
    cdef bint links_are_set         # to the rows of other views
    cdef bint done = True
    row_key(table, first, cells, &key)
    number = find_row(first, &key)
    links_are_set = has_links(table, number)
    if number == 0:
        number = add_row(table, first, &key)
        created = number != 0
    if number == 0:
        done = False
        links_are_set = True
        number = return_to_row(first, row)
    connection = connection_at(first, number)
    if created:
        table.connections_created += 1
        kept = find_kept(table, key.cells)
        if kept:
            restore_kept(table, kept, connection)
    for i in range(1, table.view_count):
        view = &table.views[i]
        if not view.linked_from_flow:
            link = link_of(table, view, flow, connection)
            if not links_are_set:
                link[0] = link_of(table, view, flow, old)[0]
                if relabelled(view, link[0], new_cells, cells):
                    done &= move_link(table, view, link, flow, cells)
            if link[0]:
                count_flow(table, view, link[0], flow)
    flow.connection = flow.connection & ~ROW | number
    count_flow(table, first, number, flow)
    return done


cdef uint32_t return_to_row(View *first, uint32_t number) noexcept nogil:
    # The row for a flow that keeps its labels: the row with these labels that is in the index, if
    # there is one, otherwise the flow's own row, put back into the index.
    cdef Connection *row = connection_at(first, number)
    cdef RowKey key
    cdef uint32_t existing
    key.hash = row.hash
    memcpy(key.cells, cells_of(first, row), 4 * first.columns)
    existing = find_row(first, &key)
    if existing:
        return existing
    index_add(&first.rows, number)
    return number


cdef bint move_link(TableState *table, View *view, uint32_t *link, const Flow *flow,
                    const uint32_t *cells) noexcept nogil:
    # Link to the row with these labels, in any view except the first. If out of memory, the link
    # does not change.
    cdef RowKey key
    cdef uint32_t number
    row_key(table, view, cells, &key)
    number = find_row(view, &key)
    if number == 0:
        number = add_row(table, view, &key)
        if number == 0:
            return False
        file_row(view, number, due_s(table, view, flow))
    link[0] = number
    return True


cdef inline uint32_t due_s(const TableState *table, const View *view,
                           const Flow *flow) noexcept nogil:
    # The deadline that the flow's latest report set for its row in a view.
    return flow.deadline_s + <uint32_t>ceil(view.timeout_s - table.views[0].timeout_s)


cdef void count_flow(const TableState *table, const View *view, uint32_t number,
                     Flow *flow) noexcept nogil:
    # Count one more flow in a row.
    cdef const int64_t *totals = totals_of(flow)
    cdef Connection *row = connection_at(view, number)
    cdef int64_t *sums = values_of(view, row)
    cdef uint32_t i
    row.flows += 1
    row.deadline_s = max(row.deadline_s, due_s(table, view, flow))
    for i in range(view.counters):
        if totals[view.sources[i]] != ABSENT:
            sums[i] = max(sums[i], <int64_t>0)
