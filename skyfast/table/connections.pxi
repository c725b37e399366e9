# Connection rows: creating, finding and removing rows, and adding reports to rows.
#
# Rows are changed only under the table's mutex. The thread that updates the table may read and find
# rows without the mutex.

# ---------------------------------------------------------------------------------------------
# Sequence numbers: a page only shows rows that were created before the page began. Each new row
# gets the next sequence number, modulo 2^32. `clamp_seq_age` keeps every row within 2^31 of the
# newest sequence number, so the sign of a 32-bit difference shows which row is older.

cdef inline bint created_before(uint32_t created_seq, uint32_t page_seq) noexcept nogil:
    return <int32_t>(created_seq - page_seq) < 0


cdef inline void clamp_seq_age(Connection *row, uint32_t next_seq) noexcept nogil:
    # If the sequence number of a row is below `next_seq` - MAX_SEQ_AGE, raises it to that number.
    # Must be called for every row at least once per 2^30 new rows.
    if unlikely(next_seq - row.created_seq > MAX_SEQ_AGE):
        row.created_seq = next_seq - MAX_SEQ_AGE


# ---------------------------------------------------------------------------------------------
# Fields of a row

cdef inline Connection *connection_at(const View *view, uint32_t number) noexcept nogil:
    return <Connection *>row_at(&view.rows, number)


cdef inline uint32_t *label_ids_of(const View *view, Connection *row) noexcept nogil:
    return <uint32_t *>(<char *>row + view.label_ids_offset)


cdef inline int64_t *values_of(const View *view, Connection *row) noexcept nogil:
    return <int64_t *>(<char *>row + view.values_offset)


cdef inline int64_t *new_flows_of(const View *view, Connection *row) noexcept nogil:
    # The location of the row's number of new flows. Must only be called if `view.counts_new_flows`
    # is true.
    return values_of(view, row) + view.values


cdef inline uint32_t flows_of(const Connection *row) noexcept nogil:
    return row.flows & ~RESTORED


cdef inline bint has_links(const TableState *table, uint32_t number) noexcept nogil:
    # Whether row `number` of the first view (0: no row) has valid links to rows of other views. In
    # the first view, only the overflow row can be without flows. Links of the overflow row may be
    # outdated, because rows of other views expire when they have no flows.
    return number != 0 and flows_of(connection_at(&table.views[0], number)) != 0


# ---------------------------------------------------------------------------------------------
# Rows by their labels

cdef inline bint is_full(const TableState *table, const View *view) noexcept nogil:
    return view.rows.used - (1 if view.overflow else 0) >= table.max_connections


cdef uint32_t used_rows(TableState *table, uint32_t view) noexcept nogil:
    # Takes the mutex. May be called from any thread.
    cdef uint32_t used
    lock_with_priority(table)
    used = table.views[view].rows.used
    pthread_mutex_unlock(&table.lock)
    return used


cdef uint32_t find_row(const View *view, const RowKey *key) noexcept nogil:
    cdef uint32_t number = bucket_of(&view.rows, key.hash)[0]
    cdef Connection *row
    while number:
        row = connection_at(view, number)
        if (row.hash == key.hash
                and memcmp(label_ids_of(view, row), key.label_ids, 4 * view.columns) == 0):
            return number
        number = row.next
    return 0


cdef uint32_t add_row(TableState *table, View *view, const RowKey *key) noexcept nogil:
    # Adds a row that has no flows and is not in a timer wheel. Returns the number of the row, or 0
    # if out of memory.
    cdef uint32_t number = row_new(&view.rows)
    cdef uint32_t i
    cdef int64_t *sums
    cdef Connection *row
    if number == 0:
        return 0
    row = connection_at(view, number)
    memset(row, 0, view.rows.stride)
    row.hash = key.hash
    row.created_seq = <uint32_t>table.next_seq
    table.next_seq += 1
    sums = values_of(view, row)
    for i in range(view.counters):
        if table.optional[view.sources[i]]:
            sums[i] = ABSENT
    start_of(view, row)[0] = NO_START
    memcpy(label_ids_of(view, row), key.label_ids, 4 * view.columns)
    retain_labels(table, key.label_ids, view.columns)
    index_add(&view.rows, number)
    return number


cdef uint32_t find_or_add_row(TableState *table, View *view, const uint32_t *label_ids,
                              bint *created) noexcept nogil:
    # Returns the row with these labels. If there is no such row, adds a row and sets `created`.
    # However, if the view is full, returns the view's overflow row instead. Must not be called for
    # the first view. Returns 0 in two cases:
    #
    # * Memory has run out: `created` is true, or the table has overflow rows.
    # * The view is full: `created` is false, and the table has no overflow rows.
    cdef RowKey key
    cdef uint32_t number
    row_key(table, view, label_ids, &key)
    number = find_row(view, &key)
    created[0] = False
    if number:
        return number
    if unlikely(is_full(table, view)):
        view.rejected += 1
        if not table.has_overflow_rows:
            return 0
        return overflow_row(table, view)
    created[0] = True
    return add_row(table, view, &key)


cdef inline void schedule_row(View *view, uint32_t number, uint32_t deadline_s) noexcept nogil:
    cdef Connection *row = connection_at(view, number)
    row.deadline_s = deadline_s
    wheel_add(&view.wheel, deadline_s, number, row.links)


cdef void remove_row(TableState *table, View *view, uint32_t number) noexcept nogil:
    index_remove(&view.rows, number)
    free_row(table, view, number)


cdef void free_row(TableState *table, View *view, uint32_t number) noexcept nogil:
    # The row must already have been removed from the index.
    cdef Connection *row = connection_at(view, number)
    release_labels(table, label_ids_of(view, row), view.columns)
    row.deadline_s = 0
    row_release(&view.rows, number)


# ---------------------------------------------------------------------------------------------
# Values

cdef inline void add(int64_t *total, int64_t amount) noexcept nogil:
    # A counter that reaches its maximum stays there: wrapping around would look like a reset.
    cdef int64_t base = max(total[0], <int64_t>0)
    if unlikely(amount == ABSENT):
        return
    if unlikely(base > INT64_MAX - amount):
        total[0] = INT64_MAX
    else:
        total[0] = base + amount


cdef inline bint replaces_gauge(int kind, int64_t value, int64_t current) noexcept nogil:
    # Whether `value` replaces the `current` value of a gauge. `value` must not be 0.
    if kind == KEEP_LATEST or current == 0:
        return True
    return value < current if kind == KEEP_LEAST else value > current


cdef inline void add_to_counters(const View *view, Connection *row,
                                 const int64_t *deltas) noexcept nogil:
    cdef int64_t *sums = values_of(view, row)
    cdef uint32_t i
    for i in range(view.counters):
        add(&sums[i], deltas[view.sources[i]])


cdef inline void count_new_flow(const View *view, Connection *row) noexcept nogil:
    if view.counts_new_flows:
        add(new_flows_of(view, row), 1)


cdef inline void add_deltas(const TableState *table, const View *view, Connection *row,
                            const int64_t *deltas, const int64_t *values) noexcept nogil:
    # Adds `deltas` to the counters of a row, and updates its gauges from `values`. The gauges of an
    # overflow row do not change.
    cdef int64_t *sums = values_of(view, row)
    cdef int64_t value
    cdef uint32_t i
    add_to_counters(view, row, deltas)
    for i in range(view.counters, view.values):
        value = values[view.sources[i]]
        if (value and row.deadline_s != NEVER_S
                and replaces_gauge(table.gauge_kinds[view.sources[i]], value, sums[i])):
            sums[i] = value
    row.deadline_s = max(row.deadline_s, view.deadline_s)
