# Relabelling. Part of `_table.pyx`, which includes it.

cdef int compare_changes(const void *one, const void *other) noexcept nogil:
    cdef const Change *a = <const Change *>one
    cdef const Change *b = <const Change *>other
    return (a.key > b.key) - (a.key < b.key)


cdef int add_change(TableState *table, rewrite, str key, uint32_t slot, uint32_t column) except -1:
    cdef const char *text
    cdef uint32_t length, known, label
    cdef Change *change
    cdef void *moved
    if read_text(<PyObject *>key, &text, &length):
        return 0
    text = escaped_label(table, text, &length)
    known = string_find(&table.strings, text, length, hash_bytes32(text, length, table.seed))
    if known == 0:
        return 0                    # no flow has it
    if table.change_count == table.change_room:
        moved = realloc(table.changes, (2 * table.change_room + 64) * sizeof(Change))
        if moved == NULL:
            raise MemoryError
        table.changes = <Change *>moved
        table.change_room = 2 * table.change_room + 64
    answer = rewrite[key]
    if read_text(<PyObject *>answer, &text, &length):
        return 0
    text = escaped_label(table, text, &length)
    pthread_mutex_lock(&table.lock)
    label = string_intern(&table.strings, text, length, table.seed)
    (<String *>row_at(&table.strings, known)).refs += label != 0
    pthread_mutex_unlock(&table.lock)
    if label == 0:
        raise MemoryError
    change = &table.changes[table.change_count]
    change.key = known
    change.slot = slot
    change.column = column
    change.cell = label | IS_STRING
    table.change_count += 1
    return 0


cdef const char *escaped_label(TableState *table, const char *text, uint32_t *length) noexcept:
    if needs_escape(text, length[0]):
        length[0] = escape(text, length[0], table.escaped)
        return table.escaped
    return text


cdef void release_changes(TableState *table) noexcept nogil:
    cdef uint32_t i
    for i in range(table.change_count):
        string_release(&table.strings, table.changes[i].key)
        string_release(&table.strings, table.changes[i].cell & ~IS_STRING)
    table.change_count = 0


cdef bint apply_changes(TableState *table) noexcept nogil:
    # All leave before the first comes: their order is not to be seen.
    cdef uint32_t *moving = NULL
    cdef uint32_t *emptied
    cdef uint32_t *longer
    cdef uint32_t i, number, count = 0, room = 0, emptied_count = 0
    cdef Flow *flow
    cdef bint done = True
    for number in range(1, table.flow_rows.fresh):
        flow = flow_at(table, number)
        if flow.connection and not flow.connection & DORMANT and find_new_cells(table, flow):
            if count == room:
                room = 2 * room + 1024
                longer = <uint32_t *>realloc(moving, room * sizeof(uint32_t))
                if longer == NULL:
                    free(moving)
                    return False
                moving = longer
            moving[count] = number
            count += 1
    emptied = <uint32_t *>malloc((count + 1) * sizeof(uint32_t))
    if emptied == NULL:
        free(moving)
        return False
    for i in range(count):
        number = detach(table, <Flow *>row_at(&table.flow_rows, moving[i]))
        if number:
            emptied[emptied_count] = number
            emptied_count += 1
    for i in range(count):
        done &= attach(table, <Flow *>row_at(&table.flow_rows, moving[i]))
    for i in range(emptied_count):
        if flows_of(connection_at(&table.views[0], emptied[i])) == 0:
            free_row(table, &table.views[0], emptied[i])
            table.expired += 1
    free(moving)
    free(emptied)
    return done


cdef bint find_new_cells(TableState *table, Flow *flow) noexcept nogil:
    # Fill `new_cells`; whether there is any.
    cdef const uint32_t *keys = links_of(table, flow) + table.keys_at
    cdef uint32_t slot, low, high, middle
    cdef bint found = False
    memset(table.new_cells, 0, table.cells * sizeof(uint32_t))
    for slot in range(table.cells - table.columns):
        low = 0
        high = table.change_count
        while low < high:
            middle = (low + high) / 2
            if table.changes[middle].key < keys[slot]:
                low = middle + 1
            else:
                high = middle
        while low < table.change_count and table.changes[low].key == keys[slot]:
            if table.changes[low].slot == slot:
                table.new_cells[table.changes[low].column] = table.changes[low].cell
                found = True
            low += 1
    return found


cdef bint relabelled(TableState *table, const View *view, uint32_t number) noexcept nogil:
    # Fill the view's part of `row_cells` with the new labels of a flow in this row; whether
    # they are others. Without a row, or in that of "other", there are none.
    cdef const uint32_t *cells
    cdef uint32_t i, column
    cdef bint differs = False
    if number == 0 or number == view.other:
        return False
    cells = cells_of(view, connection_at(view, number))
    for i in range(view.columns):
        column = view.cells[i]
        table.row_cells[column] = table.new_cells[column] if table.new_cells[column] else cells[i]
        differs |= table.row_cells[column] != cells[i]
    return differs


cdef uint32_t detach(TableState *table, Flow *flow) noexcept nogil:
    # Returns the row of the first view that has no flow any more, for flows not to find, or 0.
    cdef uint32_t at = flow.connection & ROW
    cdef Connection *connection = connection_at(&table.views[0], at)
    cdef View *view
    cdef uint32_t i, number
    cdef bint moves
    find_new_cells(table, flow)
    moves = relabelled(table, &table.views[0], at)
    for i in range(1, table.view_count):
        view = &table.views[i]
        number = link_of(table, view, flow, connection)[0]
        if number and (relabelled(table, view, number) if view.linked_from_flow else moves):
            connection_at(view, number).flows -= 1
    if not moves:
        return 0
    connection.flows -= 1
    if flows_of(connection):
        return 0
    index_remove(&table.views[0].rows, at)
    return at


cdef bint attach(TableState *table, Flow *flow) noexcept nogil:
    # False without memory: then the flow keeps its labels, in some views.
    cdef View *first = &table.views[0]
    cdef View *view
    cdef uint32_t at = flow.connection & ROW
    cdef Connection *old = connection_at(first, at)
    cdef Connection *connection
    cdef uint32_t *link
    cdef uint32_t i, number, kept
    cdef bint created = False
    cdef bint leads                 # to rows of the other views already
    cdef bint done = True
    find_new_cells(table, flow)
    for i in range(1, table.view_count):
        view = &table.views[i]
        if view.linked_from_flow:
            link = link_of(table, view, flow, old)
            if relabelled(table, view, link[0]):
                done &= move_link(table, view, link, flow)
                count_flow(table, view, link[0], flow)
    if not relabelled(table, first, at):
        return done
    number = find_row(table, first, gather(table, first))
    leads = has_links(table, number)
    if number == 0:
        number = add_row(table, first, gather(table, first))
        created = number != 0
    if number == 0:
        done = False
        leads = True
        # Others that left may have made a row with the labels that this one keeps.
        memcpy(table.view_cells, cells_of(first, old), 4 * first.columns)
        number = find_row(table, first, old.hash)
        if number == 0:
            number = at
            index_add(&first.rows, at)
    connection = connection_at(first, number)
    if created:
        table.connections_created += 1
        kept = find_kept(table, table.view_cells)
        if kept:
            restore_kept(table, kept, connection)
    for i in range(1, table.view_count):
        view = &table.views[i]
        if not view.linked_from_flow:
            link = link_of(table, view, flow, connection)
            if not leads:
                link[0] = link_of(table, view, flow, old)[0]
                if relabelled(table, view, link[0]):
                    done &= move_link(table, view, link, flow)
            if link[0]:
                count_flow(table, view, link[0], flow)
    flow.connection = flow.connection & ~ROW | number
    count_flow(table, first, number, flow)
    return done


cdef bint move_link(TableState *table, View *view, uint32_t *link, const Flow *flow) noexcept nogil:
    # To the row of `row_cells`, in any view but the first; it stays without memory.
    cdef uint32_t number = find_row(table, view, gather(table, view))
    if number == 0:
        number = add_row(table, view, gather(table, view))
        if number == 0:
            return False
        file_row(view, number, due_s(table, view, flow))
    link[0] = number
    return True


cdef inline uint32_t due_s(TableState *table, const View *view, const Flow *flow) noexcept nogil:
    # The deadline that the flow's latest report gave to its row of a view.
    return flow.deadline_s + <uint32_t>ceil(view.timeout_s - table.views[0].timeout_s)


cdef void count_flow(TableState *table, View *view, uint32_t number, Flow *flow) noexcept nogil:
    cdef const int64_t *totals = <const int64_t *>(flow + 1)
    cdef Connection *row = connection_at(view, number)
    cdef int64_t *sums = <int64_t *>(<char *>row + view.values_at)
    cdef uint32_t i
    row.flows += 1
    row.deadline_s = max(row.deadline_s, due_s(table, view, flow))
    for i in range(view.counters):
        if totals[view.sources[i]] != ABSENT:
            sums[i] = max(sums[i], <int64_t>0)
