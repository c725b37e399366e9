# Scans of all connections. Part of `_table.pyx`, which includes it.

cdef str unescaped(str text):
    return ESCAPES.sub(lambda match: UNESCAPED[match[0]], text) if "\\" in text else text


cdef uint32_t fresh_rows(TableState *table, const Rows *rows):
    # The lowest number that was never in use by now, as any thread may ask.
    cdef uint32_t fresh
    with nogil:
        pthread_mutex_lock(&table.lock)
        fresh = rows.fresh
        pthread_mutex_unlock(&table.lock)
    return fresh


cdef uint32_t see_rows(TableState *table, uint32_t row, uint32_t strings, size_t words, uint64_t *seen,
                       uint64_t *counts) noexcept nogil:
    # Mark the values of some rows, and count those that were not marked; the row to go on
    # with, or 0. An integer of 2^16 or more shares its mark with those of its last 16 bits.
    cdef const View *view = &table.views[0]
    cdef uint32_t stop = min(view.rows.fresh, row + RENDER_ROWS)
    cdef const uint32_t *cells
    cdef Connection *connection
    cdef uint32_t i, at
    cdef uint64_t *word
    cdef uint64_t bit
    while row < stop:
        connection = connection_at(view, row)
        row += 1
        if row + AHEAD < view.rows.fresh:
            prefetch(row_at(&view.rows, row + AHEAD))
            prefetch(row_at(&view.rows, row + AHEAD) + CACHE_LINE)
        if connection.deadline_s == 0:
            continue
        cells = cells_of(view, connection)
        for i in range(view.columns):
            at = cells[i] & ~IS_STRING
            if cells[i] & IS_STRING:
                if at >= strings:     # interned since
                    continue
                at += 1 << 16
            else:
                at &= 0xFFFF
            word = &seen[i * words + at / 64]
            bit = <uint64_t>1 << at % 64
            counts[i] += not word[0] & bit
            word[0] |= bit
    return row if row < view.rows.fresh else 0


cdef bint tally_rows(TableState *table, Counter *counters, uint32_t *at, uint32_t *connections,
                     int32_t without) noexcept nogil:
    # Count some rows by the value of each label, and by all but one; False without memory.
    cdef const View *view = &table.views[0]
    cdef uint32_t stop = min(view.rows.fresh, at[0] + RENDER_ROWS)
    cdef uint32_t cells[MAX_VIEW_COLUMNS]
    cdef Connection *connection
    cdef uint32_t i
    cdef uint64_t key
    while at[0] < stop:
        connection = connection_at(view, at[0])
        at[0] += 1
        if connection.deadline_s == 0:
            continue
        connections[0] += 1
        memcpy(cells, cells_of(view, connection), 4 * view.columns)
        for i in range(view.columns):
            key = cells[i]
            if not counter_count(&counters[i], key + 1):
                return False
        if without >= 0:
            cells[without] = 0
            key = hash_bytes(<const char *>cells, 4 * view.columns, table.seed)
            if not counter_count(&counters[view.columns], key + 1):
                return False
    if at[0] >= view.rows.fresh:
        at[0] = 0
    return True


cdef list commonest(TableState *table, const Counter *counter, uint32_t count):
    # The values with most rows, from a heap of so many: a label can have a million.
    cdef list heap = []
    cdef uint32_t least = 0
    cdef size_t at
    if count == 0:
        return heap
    for at in range(counter.room):
        if counter.keys[at] == 0 or counter.counts[at] < least:
            continue
        if <uint32_t>len(heap) < count:
            heapq.heappush(heap, (counter.counts[at], counter.keys[at]))
        else:
            heapq.heappushpop(heap, (counter.counts[at], counter.keys[at]))
        if <uint32_t>len(heap) == count:
            least = heap[0][0]
    named = [(cell_text(table, cell - 1), number) for number, cell in sorted(heap, reverse=True)]
    return [(text, number) for text, number in named if text is not None]


cdef str cell_text(TableState *table, uint32_t cell):
    # None where the text has left meanwhile.
    cdef char copied[MAX_CELL]
    cdef uint32_t length
    cdef String *text
    cdef bint is_there
    if not cell & IS_STRING:
        return str(cell)
    pthread_mutex_lock(&table.lock)
    text = <String *>row_at(&table.strings, cell & ~IS_STRING)
    is_there = text.refs != 0
    if is_there:
        length = text.length
        memcpy(copied, string_bytes(text), length)
    pthread_mutex_unlock(&table.lock)
    if not is_there:
        return None
    return unescaped(copied[:length].decode())


cdef const Family *family_of_first(TableState *table, uint32_t family) except NULL:
    if family >= table.family_count or table.families[family].view != 0:
        raise IndexError("the first view has no such family")
    return &table.families[family]


cdef uint32_t keep_rows(TableState *table, const Family *family, uint32_t row,
                        Kept *kept) noexcept nogil:
    cdef const View *view = &table.views[0]
    cdef uint32_t stop = min(kept.rows, row + RENDER_ROWS)
    cdef Connection *connection
    while row < stop:
        if row + AHEAD < view.rows.fresh:
            prefetch(row_at(&view.rows, row + AHEAD))
        connection = connection_at(view, row)
        kept.values[row] = rank_of(table, family, connection, False)
        kept.hashes[row] = connection.hash
        row += 1
    return row


cdef inline int64_t rank_of(TableState *table, const Family *family, Connection *row,
                            bint is_gauge) noexcept nogil:
    # -1 where the row is free or has no such series.
    cdef const View *view = &table.views[0]
    cdef int64_t value, second
    if row.deadline_s == 0:
        return -1
    value = series_value(family, view, row, 0)
    if value <= family.absent:
        value = -1
    if family.sides == 2:
        second = series_value(family, view, row, 1)
        if second > family.absent:
            if is_gauge or value < 0:
                value = max(value, second)
            else:
                add(&value, second)
    return value


cdef void rank_all(TableState *table, TopK *top) noexcept nogil:
    cdef uint32_t row = 1
    while row:
        pthread_mutex_lock(&table.lock)
        row = rank_rows(table, top, row)
        pthread_mutex_unlock(&table.lock)


cdef uint32_t rank_rows(TableState *table, TopK *top, uint32_t row) noexcept nogil:
    # Look at some rows; the one to go on with, or 0.
    cdef const View *view = &table.views[0]
    cdef const Kept *since = top.since
    cdef uint32_t stop = min(view.rows.fresh, row + RENDER_ROWS)
    cdef Connection *connection
    cdef int64_t rank
    while row < stop:
        if row + AHEAD < view.rows.fresh:
            prefetch(row_at(&view.rows, row + AHEAD))
        connection = connection_at(view, row)
        rank = rank_of(table, top.family, connection, top.is_gauge)
        if since != NULL:
            if (row < since.rows and since.hashes[row] == connection.hash
                    and 0 <= since.values[row] <= rank):
                rank -= since.values[row]
            elif connection.flows & BACK:
                rank = -1           # the counter that it began with is not known
            if rank == 0:
                rank = -1
        if (rank >= 0 and (top.count < top.room
                           or (top.room and rank > top.heap[0].rank))
                and has_part(table, view, connection, top)):
            top_k_add(top, rank, row, connection.hash)
        row += 1
    return row if row < view.rows.fresh else 0


cdef bint has_part(TableState *table, const View *view, Connection *row,
                   const TopK *top) noexcept nogil:
    cdef const uint32_t *cells = cells_of(view, row)
    cdef char digits[2 * MAX_INTEGER_DIGITS]
    cdef const char *text
    cdef const String *interned
    cdef uint32_t i, length
    if top.part_length == 0:
        return True
    for i in range(view.columns):
        if cells[i] & IS_STRING:
            interned = <const String *>row_at(&table.strings, cells[i] & ~IS_STRING)
            text = string_bytes(interned)
            length = interned.length
        else:
            text = digits
            length = <uint32_t>(put_number(digits, cells[i]) - digits)
        if memmem(text, length, top.part, top.part_length) != NULL:
            return True
    return False


cdef tuple shown_row(TableState *table, const TopRow *entry, char *strings, int64_t *values):
    # Rank, labels and values of a row; None where it is gone or another's. `strings` and `values`
    # have room for its own: nothing is allocated under the lock.
    cdef const View *view = &table.views[0]
    cdef Connection *row
    cdef const uint32_t *cells
    cdef uint32_t lengths[MAX_VIEW_COLUMNS]
    cdef const String *text
    cdef const Family *family
    cdef uint32_t i, side, count = 0
    cdef bint is_there
    pthread_mutex_lock(&table.lock)
    row = connection_at(view, entry.row)
    is_there = row.deadline_s != 0 and row.hash == entry.hash
    if is_there:
        cells = cells_of(view, row)
        for i in range(view.columns):
            if cells[i] & IS_STRING:
                text = <const String *>row_at(&table.strings, cells[i] & ~IS_STRING)
                lengths[i] = text.length
                memcpy(strings + i * MAX_CELL, string_bytes(text), text.length)
            else:
                lengths[i] = <uint32_t>(
                    put_number(strings + i * MAX_CELL, cells[i]) - (strings + i * MAX_CELL)
                )
        for i in range(table.family_count):
            family = &table.families[i]
            if family.view:
                break
            for side in range(family.sides):
                values[count] = series_value(family, view, row, side)
                if values[count] <= family.absent:
                    values[count] = -1
                count += 1
    pthread_mutex_unlock(&table.lock)
    if not is_there:
        return None
    labels = [
        unescaped(strings[i * MAX_CELL:i * MAX_CELL + lengths[i]].decode())
        for i in range(view.columns)
    ]
    shown = [values[i] if values[i] >= 0 else None for i in range(count)]
    return entry.rank, tuple(labels), tuple(shown)
