# Rendering: a page's lines, family by family. Part of `_table.pyx`, which includes it;
# text_format.pxi writes the values.
#
# `Page.read` calls `render_lines` from any thread, without the GIL. It takes the table's mutex for
# RENDER_ROWS rows at a time and changes only its cursor. Rows may be created and removed between
# two slices: the cursor's time and sequence number determine which of them are on the page.

cdef struct Cursor:
    # The current position in a page.
    uint32_t now_s
    uint32_t family
    uint32_t row                # 0: the family's head is next
    uint32_t page_seq           # rows created from this number on are not on the page
    uint32_t head               # index in `Family.heads`


cdef Cursor begin_page(TableState *table, uint32_t now_s) noexcept nogil:
    # A cursor at the start of a page in the text format. Callable from any thread.
    cdef Cursor cursor
    memset(&cursor, 0, sizeof(Cursor))
    cursor.now_s = now_s
    pthread_mutex_lock(&table.lock)
    cursor.page_seq = <uint32_t>table.next_seq
    pthread_mutex_unlock(&table.lock)
    return cursor


cdef char *render_lines(TableState *table, Cursor *cursor, char *out,
                        const char *limit) noexcept nogil:
    # Writes lines until `limit` is reached or the page ends. The last connection's lines, or a
    # family's head, may exceed the limit by up to `max_lines`.
    cdef const Family *family
    while cursor.family < table.family_count and out < limit:
        family = &table.families[cursor.family]
        if cursor.row == 0:
            memcpy(out, family.heads[cursor.head], family.head_lengths[cursor.head])
            out += family.head_lengths[cursor.head]
            cursor.row = 1
        pthread_mutex_lock(&table.lock)
        out = render_rows(table, cursor, family, out, limit)
        if cursor.row >= table.views[family.view].rows.fresh:
            cursor.family += 1
            cursor.row = 0
        pthread_mutex_unlock(&table.lock)
    return out


cdef char *render_rows(const TableState *table, Cursor *cursor, const Family *family, char *out,
                       const char *limit) noexcept nogil:
    cdef const View *view = &table.views[family.view]
    cdef const Rows *rows = &view.rows
    cdef uint32_t row = cursor.row
    cdef uint32_t stop = min(rows.fresh, row + RENDER_ROWS)
    cdef Connection *connection
    while row < stop and out < limit:
        if row + 2 * AHEAD < rows.fresh:
            prefetch(row_at(rows, row + 2 * AHEAD))
            prefetch(row_at(rows, row + 2 * AHEAD) + CACHE_LINE)
        if row + AHEAD < rows.fresh:
            prefetch_strings(table, view, <Connection *>row_at(rows, row + AHEAD))
        connection = <Connection *>row_at(rows, row)
        if (connection.deadline_s > cursor.now_s
                and created_before(connection.created_seq, cursor.page_seq)):
            out = render_connection(table, family, view, connection, out)
        row += 1
    cursor.row = row
    return out


cdef inline void prefetch_strings(const TableState *table, const View *view,
                                  Connection *row) noexcept nogil:
    cdef const uint32_t *cells = cells_of(view, row)
    cdef uint32_t i
    if row.deadline_s:
        for i in range(view.columns):
            if cells[i] & IS_STRING:
                prefetch(row_at(&table.strings, cells[i] & ~IS_STRING))


cdef inline int64_t series_value(const Family *family, const View *view, Connection *row,
                                 uint32_t side) noexcept nogil:
    if unlikely(family.values[side] == FLOWS):
        return flows_of(row)
    return values_of(view, row)[family.values[side]]


cdef inline char *render_connection(const TableState *table, const Family *family,
                                    const View *view, Connection *row, char *out) noexcept nogil:
    # The labels are written once; the second side's line is a copy with another direction.
    cdef const uint32_t *cells = cells_of(view, row)
    cdef const Literal *literals = family.literals
    cdef int64_t value = series_value(family, view, row, 0)
    cdef int64_t second = family.absent
    cdef char *start = out
    cdef char *direction = out
    cdef char *rest
    cdef char *first
    cdef uint32_t i
    cdef Py_ssize_t before, after
    if family.sides == 2:
        second = series_value(family, view, row, 1)
    if value <= family.absent and second <= family.absent:
        return out
    for i in range(view.columns):
        if i == view.direction_index:
            direction = out
        out = put(out, literals[i].text, literals[i].length)
        out = put_cell(out, cells[i], &table.strings)
    if view.direction_index == view.columns:
        direction = out
    out = put(out, literals[view.columns].text, literals[view.columns].length)
    rest = direction + literals[view.direction_index].length
    before = direction - start
    after = out - rest
    first = out = put_value(out, max(value, <int64_t>0), family.decimals)
    if second > family.absent:
        memcpy(out, start, before)
        out = put(out + before, family.second.text, family.second.length)
        memcpy(out, rest, after)
        out = put_value(out + after, second, family.decimals)
        if unlikely(value <= family.absent):    # only the second line is needed
            memmove(start, first, out - first)
            out = start + (out - first)
    return out
