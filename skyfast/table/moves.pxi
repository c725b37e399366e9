# Moves: flows whose labels have changed leave their connections, and are added to the connections
# with the new labels.
#
# Step 5 of a slice of relabeling calls this code, under the table's mutex: see `relabel.pxi`.

cdef bint apply_moves(TableState *table, const Changes *changes) noexcept nogil:
    # Moves the flows of `changes`. Returns False if out of memory. All flows are detached before
    # the first flow is attached, so that the result does not depend on the order of the flows.
    cdef uint32_t new_label_ids[MAX_COLUMNS]
    cdef uint32_t *emptied
    cdef uint32_t i, flow, number, emptied_count = 0
    cdef bint done = True
    emptied = <uint32_t *>malloc((changes.move_count + 1) * sizeof(uint32_t))
    if emptied == NULL:
        return False
    i = 0
    while i < changes.move_count:
        flow = changes.moves[i].flow
        i = read_moves(table, changes, i, new_label_ids)
        number = detach(table, flow_at(table, flow), new_label_ids)
        if number:
            emptied[emptied_count] = number
            emptied_count += 1
    i = 0
    while i < changes.move_count:
        flow = changes.moves[i].flow
        i = read_moves(table, changes, i, new_label_ids)
        done &= attach(table, flow_at(table, flow), new_label_ids)
    for i in range(emptied_count):
        if flows_of(connection_at(&table.views[0], emptied[i])) == 0:
            free_row(table, &table.views[0], emptied[i])
            table.expired += 1
    free(emptied)
    return done


cdef uint32_t read_moves(const TableState *table, const Changes *changes, uint32_t first,
                         uint32_t *new_label_ids) noexcept nogil:
    # Reads all moves of one flow. `first` is the index of the first of these moves. Sets
    # `new_label_ids`, which is indexed by column: each column that the moves affect gets its new
    # label ID, and all other columns get 0. Returns the index of the next flow's first move.
    cdef uint32_t i = first, j
    cdef const Move *move
    cdef const Lookup *lookup
    cdef const uint32_t *labels
    memset(new_label_ids, 0, table.label_value_count * sizeof(uint32_t))
    while i < changes.move_count and changes.moves[i].flow == changes.moves[first].flow:
        move = &changes.moves[i]
        i += 1
        if move.change == 0:
            continue
        lookup = &table.lookups[move.lookup]
        labels = changes.label_ids + (move.change - 1) * changes.labels
        for j in range(lookup.column, lookup.column + lookup.columns):
            new_label_ids[j] = labels[changes.positions[j]]
    return i


cdef bint find_new_label_ids(const View *view, uint32_t number, const uint32_t *new_label_ids,
                             uint32_t *label_ids) noexcept nogil:
    # Finds the label IDs of a flow's new row in a view, and stores them in `label_ids`, which is
    # indexed by column of the plan. `number` is the current row. Returns whether any label changes.
    # If the current row is 0 or the overflow row, sets nothing and returns False.
    cdef const uint32_t *old
    cdef uint32_t i, column
    cdef bint differs = False
    if number == 0 or number == view.overflow:
        return False
    old = label_ids_of(view, connection_at(view, number))
    for i in range(view.columns):
        column = view.plan_columns[i]
        label_ids[column] = new_label_ids[column] if new_label_ids[column] else old[i]
        differs |= label_ids[column] != old[i]
    return differs


cdef uint32_t detach(TableState *table, Flow *flow, const uint32_t *new_label_ids) noexcept nogil:
    # Decrements the flow counts of the rows that a flow leaves. If its connection then has no
    # flows, removes the connection's row from the index (so that no flow can be attached to this
    # row), and returns the row's number. Otherwise returns 0.
    cdef uint32_t label_ids[MAX_COLUMNS]
    cdef uint32_t row = flow.connection & ROW
    cdef Connection *connection = connection_at(&table.views[0], row)
    cdef const View *view
    cdef uint32_t i, number
    cdef bint moves, link_moves
    moves = find_new_label_ids(&table.views[0], row, new_label_ids, label_ids)
    for i in range(1, table.view_count):
        view = &table.views[i]
        number = link_of(table, view, flow, connection)[0]
        link_moves = moves
        if view.linked_from_flow:
            link_moves = find_new_label_ids(view, number, new_label_ids, label_ids)
        if number and link_moves:
            connection_at(view, number).flows -= 1
    if not moves:
        return 0
    connection.flows -= 1
    if flows_of(connection):
        return 0
    index_remove(&table.views[0].rows, row)
    return row


cdef bint attach(TableState *table, Flow *flow, const uint32_t *new_label_ids) noexcept nogil:
    # Adds a flow to the rows with the flow's new labels. If memory runs out, returns False, and the
    # flow may keep its old labels in some views.
    cdef uint32_t label_ids[MAX_COLUMNS]
    cdef View *view
    cdef uint32_t *link
    cdef Connection *old = connection_at(&table.views[0], flow.connection & ROW)
    cdef uint32_t i
    cdef bint done = True
    for i in range(1, table.view_count):
        view = &table.views[i]
        if view.linked_from_flow:
            link = link_of(table, view, flow, old)
            if find_new_label_ids(view, link[0], new_label_ids, label_ids):
                done &= move_link(table, view, link, flow, label_ids)
                count_flow(table, view, link[0], flow)
    if find_new_label_ids(&table.views[0], flow.connection & ROW, new_label_ids, label_ids):
        done &= move_connection(table, flow, new_label_ids, label_ids)
    return done


cdef bint move_connection(TableState *table, Flow *flow, const uint32_t *new_label_ids,
                          uint32_t *label_ids) noexcept nogil:
    # Moves a flow to the row with the labels `label_ids` in the first view, and to the rows of the
    # other views to which this row links.
    cdef View *first = &table.views[0]
    cdef View *view
    cdef RowKey key
    cdef uint32_t row = flow.connection & ROW
    cdef Connection *old = connection_at(first, row)
    cdef Connection *connection
    cdef uint32_t *link
    cdef uint32_t i, number, saved
    cdef bint created = False
    cdef bint links_are_set
    cdef bint done = True
    row_key(table, first, label_ids, &key)
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
        saved = find_saved(table, key.label_ids)
        if saved:
            restore_counters(table, saved, connection)
    for i in range(1, table.view_count):
        view = &table.views[i]
        if not view.linked_from_flow:
            link = link_of(table, view, flow, connection)
            if not links_are_set:
                link[0] = link_of(table, view, flow, old)[0]
                if find_new_label_ids(view, link[0], new_label_ids, label_ids):
                    done &= move_link(table, view, link, flow, label_ids)
            if link[0]:
                count_flow(table, view, link[0], flow)
    flow.connection = flow.connection & ~ROW | number
    count_flow(table, first, number, flow)
    return done


cdef uint32_t return_to_row(View *first, uint32_t number) noexcept nogil:
    # Called if memory ran out: the flow keeps the labels of its previous row, `number`. If the
    # index has a row with these labels, returns that row. Otherwise adds the previous row to the
    # index again, and returns the previous row.
    cdef Connection *row = connection_at(first, number)
    cdef RowKey key
    cdef uint32_t existing
    key.hash = row.hash
    memcpy(key.label_ids, label_ids_of(first, row), 4 * first.columns)
    existing = find_row(first, &key)
    if existing:
        return existing
    index_add(&first.rows, number)
    return number


cdef bint move_link(TableState *table, View *view, uint32_t *link, const Flow *flow,
                    const uint32_t *label_ids) noexcept nogil:
    # Sets `link` to the row with the labels `label_ids` in `view`. `view` must not be the first
    # view. If memory runs out, returns False, and the link does not change.
    cdef RowKey key
    cdef uint32_t number
    row_key(table, view, label_ids, &key)
    number = find_row(view, &key)
    if number == 0:
        number = add_row(table, view, &key)
        if number == 0:
            return False
        schedule_row(view, number, row_deadline_s(table, view, flow))
    link[0] = number
    return True


cdef inline uint32_t row_deadline_s(const TableState *table, const View *view,
                                    const Flow *flow) noexcept nogil:
    # The deadline that the flow's latest report gave to the flow's row in a view.
    return flow.deadline_s + <uint32_t>ceil(view.timeout_s - table.views[0].timeout_s)


cdef void count_flow(const TableState *table, const View *view, uint32_t number,
                     Flow *flow) noexcept nogil:
    # Increments the flow count of row `number`, to which a flow has moved. The flow's totals are
    # not added to the row's counters. However, if a counter of the row is ABSENT and the flow has
    # the total for it, the counter becomes 0.
    cdef const int64_t *totals = totals_of(flow)
    cdef Connection *row = connection_at(view, number)
    cdef int64_t *sums = values_of(view, row)
    cdef uint32_t i
    set_start(view, row, table.wall_ms)
    row.flows += 1
    row.deadline_s = max(row.deadline_s, row_deadline_s(table, view, flow))
    for i in range(view.counters):
        if totals[view.sources[i]] != ABSENT:
            sums[i] = max(sums[i], <int64_t>0)
