# Connection rows: label tuples, what is added to them, and what leads to them. Part of `_table.pyx`,
# which includes it.
#
# Everything that changes reports, expires or relabels calls it. Whatever changes a row runs under the
# table's mutex.

# ---------------------------------------------------------------------------------------------
# Sequence numbers: a page shows the rows that were created before it began. Numbers of 32 bits are
# compared by their distance, so those of rows in use are kept within 2^30 of the newest.

cdef inline bint created_before(uint32_t created_seq, uint32_t page_seq) noexcept nogil:
    return <int32_t>(created_seq - page_seq) < 0


cdef inline void clamp_seq_age(Connection *row, uint32_t next_seq) noexcept nogil:
    # To be called for every row at least once in 2^30 sequence numbers.
    if unlikely(next_seq - row.created_seq > MAX_SEQ_AGE):
        row.created_seq = next_seq - MAX_SEQ_AGE


cdef inline uint32_t flows_of(const Connection *row) noexcept nogil:
    return row.flows & ~BACK


cdef inline void add(int64_t *total, int64_t amount) noexcept nogil:
    # Saturating: a counter that cannot grow stays, where wrapping would be a reset.
    cdef int64_t base = max(total[0], <int64_t>0)
    if unlikely(amount == ABSENT):
        return
    if unlikely(base > INT64_MAX - amount):
        total[0] = INT64_MAX
    else:
        total[0] = base + amount


cdef inline bint keeps(int kind, int64_t value, int64_t kept) noexcept nogil:
    # Whether a gauge of this kind takes a new value, which is not 0.
    if kind == KEEP_LATEST or kept == 0:
        return True
    return value < kept if kind == KEEP_LEAST else value > kept


cdef inline Flow *flow_at(TableState *table, uint32_t number) noexcept nogil:
    return <Flow *>row_at(&table.flow_rows, number)


cdef inline uint32_t live_flows(TableState *table) noexcept nogil:
    return table.flow_rows.live - table.dormant.count - table.ended.count


cdef inline uint32_t *links_of(TableState *table, Flow *flow) noexcept nogil:
    return <uint32_t *>(<char *>flow + table.links_at)


cdef inline uint32_t *link_of(TableState *table, const View *view, Flow *flow,
                              Connection *connection) noexcept nogil:
    # Where the number of a row of any view but the first is kept.
    if view.linked_from_flow:
        return links_of(table, flow) + view.link
    return connection.links + view.link


cdef inline Connection *connection_at(const View *view, uint32_t number) noexcept nogil:
    return <Connection *>row_at(&view.rows, number)


cdef inline uint32_t *cells_of(const View *view, Connection *row) noexcept nogil:
    return <uint32_t *>(<char *>row + view.cells_at)


cdef inline bint has_links(TableState *table, uint32_t number) noexcept nogil:
    # Whether a row of the first view, or 0, has links. That of "other" may be without flows;
    # then what it had links to may be gone.
    return number != 0 and flows_of(connection_at(&table.views[0], number)) != 0


cdef inline uint32_t gather(TableState *table, const View *view) noexcept nogil:
    # `view_cells` of `row_cells`; returns their hash.
    cdef uint32_t i
    for i in range(view.columns):
        table.view_cells[i] = table.row_cells[view.cells[i]]
    return hash_bytes32(<const char *>table.view_cells, 4 * view.columns, table.seed)


cdef uint32_t find_row(TableState *table, const View *view, uint32_t hash) noexcept nogil:
    # The row whose labels are `view_cells`, or 0.
    cdef uint32_t number = bucket_of(&view.rows, hash)[0]
    cdef Connection *row
    while number:
        row = connection_at(view, number)
        if (row.hash == hash
                and memcmp(cells_of(view, row), table.view_cells, 4 * view.columns) == 0):
            return number
        number = row.next
    return 0


cdef uint32_t add_row(TableState *table, View *view, uint32_t hash) noexcept nogil:
    # A row with the labels `view_cells`, of no flow yet and in no wheel; 0 without memory.
    cdef uint32_t number = row_new(&view.rows)
    cdef uint32_t i
    cdef int64_t *sums
    cdef Connection *row
    if number == 0:
        return 0
    row = connection_at(view, number)
    memset(row, 0, view.rows.stride)
    row.hash = hash
    row.created_seq = <uint32_t>table.next_seq
    table.next_seq += 1
    sums = <int64_t *>(<char *>row + view.values_at)
    for i in range(view.counters):
        if table.optional[view.sources[i]]:
            sums[i] = ABSENT
    memcpy(cells_of(view, row), table.view_cells, 4 * view.columns)
    retain_cells(table, table.view_cells, view.columns)
    index_add(&view.rows, number)
    return number


cdef void remove_row(TableState *table, View *view, uint32_t number) noexcept nogil:
    index_remove(&view.rows, number)
    free_row(table, view, number)


cdef void free_row(TableState *table, View *view, uint32_t number) noexcept nogil:
    cdef Connection *row = connection_at(view, number)
    release_cells(table, cells_of(view, row), view.columns)
    row.deadline_s = 0
    row_release(&view.rows, number)


cdef uint32_t find_or_add_row(TableState *table, View *view, bint *created) noexcept nogil:
    # The row of any view but the first for `row_cells`: found or made, or what stands for
    # it where there is no room for another (0 if nothing does).
    cdef uint32_t hash = gather(table, view)
    cdef uint32_t number = find_row(table, view, hash)
    created[0] = False
    if number:
        return number
    if unlikely(is_full(table, view)):
        view.rejected += 1
        if not table.overflows:
            return 0
        table.overflowed = True
        return overflow_row(table, view)
    created[0] = True
    return add_row(table, view, hash)


cdef inline bint is_full(TableState *table, const View *view) noexcept nogil:
    return view.rows.live - (1 if view.other else 0) >= table.max_connections


cdef inline void add_counters(const View *view, Connection *row,
                              const int64_t *deltas) noexcept nogil:
    cdef int64_t *sums = <int64_t *>(<char *>row + view.values_at)
    cdef uint32_t i
    for i in range(view.counters):
        add(&sums[i], deltas[view.sources[i]])


cdef inline void add_deltas(TableState *table, const View *view, Connection *row, const int64_t *deltas,
                            const int64_t *values) noexcept nogil:
    # Add a report to a row: `deltas` to its counters, of `values` what its gauges keep (those
    # of an `other` row nothing).
    cdef int64_t *sums = <int64_t *>(<char *>row + view.values_at)
    cdef int64_t value
    cdef uint32_t i
    add_counters(view, row, deltas)
    for i in range(view.counters, view.values):
        value = values[view.sources[i]]
        if (value and row.deadline_s != NEVER_S
                and keeps(table.keeps[view.sources[i]], value, sums[i])):
            sums[i] = value
    row.deadline_s = max(row.deadline_s, view.deadline_s)


cdef inline void file_row(View *view, uint32_t number,
                          uint32_t deadline_s) noexcept nogil:
    cdef Connection *row = connection_at(view, number)
    row.deadline_s = deadline_s
    wheel_file(&view.wheel, deadline_s, number, row.links)


cdef inline void retain_cells(TableState *table, const uint32_t *cells, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        if cells[i] & IS_STRING:
            (<String *>row_at(&table.strings, cells[i] & ~IS_STRING)).refs += 1


cdef void release_cells(TableState *table, const uint32_t *cells, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        if cells[i] & IS_STRING:
            string_release(&table.strings, cells[i] & ~IS_STRING)
