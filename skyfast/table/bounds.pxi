# Bounds: a view can hide rows until their bytes or packets reach a bound.
#
# Rows do not store whether they are hidden. Each page compares the counters of rows with the
# bounds, so bounds can change at any time. Overflow rows are always shown.
#
# Before a page renders the first family of a view with bounds, `list_rows` lists the rows to show.
# The page uses this list for all families of the view. Without the list, a row that reaches a bound
# while the page is read would only be shown in some families.
#
# `Table.page`, `Table.hidden` and `Table.forecast` call this code, from any thread. Like the code
# in `scan.pxi`, it takes the table's mutex for RENDER_ROWS rows at a time.

cdef int resolve_amount(Amount *amount, const View *view, counters, plan) except -1:
    # Adds to `amount` those of `counters` that the view has, as indexes among the values of a row.
    cdef uint32_t k
    values = {value: i for i, value in enumerate((*plan.counters, *plan.gauges))}
    if len(counters) > 2:
        raise ValueError("an amount must be one counter or the sum of two")
    for counter in counters:
        for k in range(view.counters):
            if view.sources[k] == values[counter]:
                amount.values[amount.count] = k
                amount.count += 1
    return 0


cdef int check_bounds(const TableState *table, bounds) except -1:
    cdef uint32_t i
    if len(bounds) not in (0, table.view_count):
        raise ValueError("bounds must be empty, or have a pair for each view")
    for i, (min_bytes, min_packets) in enumerate(bounds):
        check_pair(&table.views[i], min_bytes, min_packets)
    return 0


cdef int check_pair(const View *view, min_bytes, min_packets) except -1:
    if not (0 <= min_bytes <= INT64_MAX and 0 <= min_packets <= INT64_MAX):
        raise ValueError(f"bounds must be 0 to {INT64_MAX}")
    if (min_bytes and not view.bytes.count) or (min_packets and not view.packets.count):
        raise ValueError("bounds for bytes or packets require a view with these counters")
    return 0


cdef int set_bounds(TableState *table, bounds) except -1:
    # The caller must call `check_bounds` first.
    cdef Bounds pairs[MAX_VIEWS]
    cdef uint32_t i
    memset(pairs, 0, sizeof(pairs))
    for i, (min_bytes, min_packets) in enumerate(bounds):
        pairs[i] = Bounds(min_bytes, min_packets)
    pthread_mutex_lock(&table.lock)
    for i in range(table.view_count):
        table.views[i].bounds = pairs[i]
    pthread_mutex_unlock(&table.lock)
    return 0


# ---------------------------------------------------------------------------------------------
# Rows

cdef inline bint bounds_are_set(const Bounds *bounds) noexcept nogil:
    return bounds.min_bytes != 0 or bounds.min_packets != 0


cdef inline uint64_t amount_of(const View *view, const Amount *amount,
                               Connection *row) noexcept nogil:
    # The bytes or packets of a row, summed over both directions, or 0 if the view does not count
    # them. These counters are never ABSENT, and the sum of two fits into 64 bits.
    cdef const int64_t *values = values_of(view, row)
    if amount.count == 2:
        return <uint64_t>values[amount.values[0]] + <uint64_t>values[amount.values[1]]
    return <uint64_t>values[amount.values[0]] if amount.count else 0


cdef inline bint reaches_bounds(const View *view, Connection *row,
                                const Bounds *bounds) noexcept nogil:
    # `or` would be a branch, and the processor could not predict which counters reach a bound. `|`
    # avoids this branch.
    cdef uint64_t least_bytes = bounds.min_bytes if bounds.min_bytes else <uint64_t>-1
    cdef uint64_t least_packets = bounds.min_packets if bounds.min_packets else <uint64_t>-1
    return ((amount_of(view, &view.bytes, row) >= least_bytes)
            | (amount_of(view, &view.packets, row) >= least_packets)
            | (row.deadline_s == NEVER_S))


cdef void list_shown(TableState *table, const View *view, const Bounds *bounds,
                     Cursor *cursor) noexcept nogil:
    # Lists the rows to show, if the view has bounds and the page is not divided into parts.
    cdef Scan scan = scan_until(view, NO_END)
    cdef Connection *row
    cdef uint32_t number
    cdef uint32_t count = 0
    while scan_slice(table, &scan):
        for number in range(scan.start, scan.stop):
            row = scan_row(view, number)
            if (row.deadline_s and created_before(row.created_seq, cursor.page_seq)
                    and count < cursor.row_list_capacity):
                cursor.row_list[count + 1] = number
                count += reaches_bounds(view, row, bounds)  # adds 0 or 1 (see `list_part`)
    cursor.row_list_end = count + 1
    cursor.row_list_view = view


cdef void list_shown_part(TableState *table, const View *view, const Bounds *bounds,
                          Cursor *cursor) noexcept nogil:
    # Lists the rows to show, if the view has bounds and the page is divided into parts. Bounds are
    # checked first, because `part_of` is slow.
    cdef Scan scan = scan_until(view, NO_END)
    cdef Connection *row
    cdef uint32_t number
    cdef uint32_t count = 0
    while scan_slice(table, &scan):
        for number in range(scan.start, scan.stop):
            row = scan_row(view, number)
            if (row.deadline_s and created_before(row.created_seq, cursor.page_seq)
                    and reaches_bounds(view, row, bounds) and count < cursor.row_list_capacity):
                cursor.row_list[count + 1] = number
                count += part_of(table, view, row, cursor.parts) == cursor.part
    cursor.row_list_end = count + 1
    cursor.row_list_view = view


# ---------------------------------------------------------------------------------------------
# Sums over rows

cdef struct RowSums:
    uint64_t rows
    uint64_t series             # number of series of the rows
    uint64_t bytes_low          # low 64 bits of the sum of the rows' bytes
    uint64_t bytes_high         # high 64 bits of the sum of the rows' bytes


cdef inline void add_amount(RowSums *sums, uint64_t amount) noexcept nogil:
    sums.bytes_low += amount
    sums.bytes_high += sums.bytes_low < amount


cdef object bytes_of(const RowSums *sums):
    cdef object high = sums.bytes_high
    return high << 64 | sums.bytes_low


cdef list hidden_rows(TableState *table, uint32_t now_s):
    # Implements `Table.hidden`.
    cdef RowSums hidden
    cdef Bounds bounds
    cdef uint32_t i
    result = []
    for i in range(table.view_count):
        bounds = table.views[i].bounds
        if not bounds_are_set(&bounds):
            result.append(None)
            continue
        memset(&hidden, 0, sizeof(RowSums))
        with nogil:
            sum_hidden(table, &table.views[i], &bounds, now_s, &hidden)
        result.append((hidden.rows, bytes_of(&hidden)))
    return result


cdef void sum_hidden(TableState *table, const View *view, const Bounds *bounds, uint32_t now_s,
                     RowSums *hidden) noexcept nogil:
    cdef Scan scan = scan_until(view, NO_END)
    cdef Connection *row
    cdef uint32_t number
    while scan_slice(table, &scan):
        for number in range(scan.start, scan.stop):
            row = scan_row(view, number)
            if row.deadline_s > now_s and not reaches_bounds(view, row, bounds):
                hidden.rows += 1
                add_amount(hidden, amount_of(view, &view.bytes, row))


cdef list forecast_view(TableState *table, uint32_t view, uint32_t now_s, list pairs):
    # Implements `Table.forecast`.
    cdef uint32_t count = len(pairs)
    cdef uint32_t i
    cdef Bounds *bounds = NULL
    cdef RowSums *shown = <RowSums *>allocate(count * sizeof(RowSums))
    try:
        bounds = <Bounds *>allocate(count * sizeof(Bounds))
        for i, (min_bytes, min_packets) in enumerate(pairs):
            check_pair(&table.views[view], min_bytes, min_packets)
            bounds[i] = Bounds(min_bytes, min_packets)
        with nogil:
            sum_shown(table, view, bounds, count, now_s, shown)
        return [(shown[i].rows, shown[i].series, bytes_of(&shown[i])) for i in range(count)]
    finally:
        free(bounds)
        free(shown)


cdef void sum_shown(TableState *table, uint32_t number, const Bounds *bounds, uint32_t count,
                    uint32_t now_s, RowSums *shown) noexcept nogil:
    cdef const View *view = &table.views[number]
    cdef Scan scan = scan_until(view, NO_END)
    cdef Connection *row
    cdef uint32_t i, j, series
    cdef uint64_t amount
    while scan_slice(table, &scan):
        for i in range(scan.start, scan.stop):
            row = scan_row(view, i)
            if row.deadline_s <= now_s:
                continue
            series = series_of_row(table, number, row)
            amount = amount_of(view, &view.bytes, row)
            for j in range(count):
                if not bounds_are_set(&bounds[j]) or reaches_bounds(view, row, &bounds[j]):
                    shown[j].rows += 1
                    shown[j].series += series
                    add_amount(&shown[j], amount)


cdef uint32_t series_of_row(const TableState *table, uint32_t view,
                            Connection *row) noexcept nogil:
    cdef const Family *family
    cdef uint32_t i, direction, count = 0
    for i in range(table.family_count):
        family = &table.families[i]
        if family.view == view and family.text != NULL:
            count += histogram_lines(family, &table.views[view])
        elif family.view == view:
            for direction in range(family.directions):
                count += series_value(family, &table.views[view], row, direction) > family.absent
    return count
