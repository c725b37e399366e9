# Rendering: writes the lines of a page, family by family.
#
# `Page.read` calls `render_lines` from any thread, without the GIL. Rendering takes the table's
# mutex for a slice of up to RENDER_ROWS rows. It changes nothing in the table. Between two slices,
# rows may be created and removed.

cdef struct Cursor:
    uint32_t now_s
    uint32_t family
    uint32_t row                # next row, or its index in `row_list`; 0: the head is next
    uint32_t page_seq           # rows with this sequence number or a later one are not on the page
    uint32_t head_index         # index of the page's format in `Family.heads`
    int starts                  # how start times are shown, for example START_HIDDEN
    uint32_t part               # index of the part that is written
    uint32_t parts              # number of parts; 1: the page is not divided into parts
    # The numbers of the rows that the page shows in one view, from index 1. This list is only used
    # if there are several parts, or if the view has bounds. The page owns the array.
    uint32_t *row_list
    uint32_t row_list_end       # index of the last row in `row_list`, plus 1
    uint32_t row_list_capacity
    const View *row_list_view   # the view of `row_list`; NULL if there is no list yet
    Bounds bounds[MAX_VIEWS]    # the bounds of each view at the time when the page began
    const char *shown_families  # one flag per family: whether it is shown; NULL shows all families


# `render_rows` is compiled three times: once for each of these kinds of lines. So notes and start
# times do not slow down plain lines.

cdef struct PlainLines:
    # Lines of an uncompressed page, without start times.
    int unused


cdef struct NotedLines:
    # Lines of a compressed page, without start times.
    Piece *note                 # the next note


cdef struct TimedLines:
    # Lines with start times.
    Piece *note                 # the next note; NULL if the page is not compressed
    int starts                  # how start times are shown, for example START_AS_SAMPLE


ctypedef fused Lines:
    PlainLines
    NotedLines
    TimedLines


cdef Cursor begin_page(TableState *table, uint32_t now_s) noexcept nogil:
    # Returns the cursor of an undivided page in the text format. May be called from any thread.
    cdef Cursor cursor
    cdef uint32_t i
    memset(&cursor, 0, sizeof(Cursor))
    cursor.now_s = now_s
    cursor.parts = 1
    pthread_mutex_lock(&table.lock)
    cursor.page_seq = <uint32_t>table.next_seq
    for i in range(table.view_count):
        cursor.bounds[i] = table.views[i].bounds
    pthread_mutex_unlock(&table.lock)
    return cursor


cdef char *render_lines(TableState *table, Cursor *cursor, char *out, const char *limit,
                        Piece **notes) noexcept nogil:
    # Writes lines until `limit` is reached or the page ends. The last lines may exceed `limit` by
    # up to `max_lines` bytes. If `notes` is not NULL, the page is compressed. Then this function
    # also writes notes (see `pieces.pxi`), and can stop at the end of a family before `limit`, so
    # that the next family gets its own Huffman codes.
    cdef const char *start = out
    cdef const Family *family
    cdef uint32_t end
    cdef bint uses_row_list
    while cursor.family < table.family_count and out < limit:
        family = &table.families[cursor.family]
        if cursor.shown_families != NULL and not cursor.shown_families[cursor.family]:
            cursor.family += 1
            continue
        uses_row_list = cursor.parts > 1 or bounds_are_set(&cursor.bounds[family.view])
        if uses_row_list and cursor.row_list_view != &table.views[family.view]:
            list_rows(table, family.view, cursor)
        if cursor.row == 0:
            memcpy(out, family.heads[cursor.head_index], family.head_lengths[cursor.head_index])
            out += family.head_lengths[cursor.head_index]
            put_note(notes, family.head_lengths[cursor.head_index], HEAD | cursor.family)
            cursor.row = 1
        lock_for_page(table)
        if not uses_row_list:
            end = table.views[family.view].rows.end
            out = render_in_format(table, cursor, family, &cursor.row, end, out, limit, notes)
        else:
            end = cursor.row_list_end
            out = render_row_list(table, cursor, family, out, limit, notes)
        if cursor.row >= end:
            cursor.family += 1
            cursor.row = 0
        pthread_mutex_unlock(&table.lock)
        yield_lock(table)
        if notes != NULL and cursor.row == 0 and out - start >= MIN_SAMPLE:
            break
    return out


cdef inline char *render_in_format(const TableState *table, const Cursor *cursor,
                                   const Family *family, uint32_t *next_row, uint32_t end,
                                   char *out, const char *limit, Piece **notes) noexcept nogil:
    # Renders at most RENDER_ROWS rows. Families of histograms have their own loop, so that they do
    # not slow down all other families.
    cdef PlainLines plain
    cdef NotedLines noted
    cdef TimedLines timed
    if family.text != NULL:
        return render_histogram_rows(table, cursor, family, next_row, end, out, limit, notes)
    if cursor.starts != START_HIDDEN and family.is_counter:
        timed.starts = cursor.starts
        timed.note = NULL if notes == NULL else notes[0]
        out = render_rows(table, cursor, family, next_row, end, out, limit, &timed)
        if notes != NULL:
            notes[0] = timed.note
    elif notes != NULL:
        noted.note = notes[0]
        out = render_rows(table, cursor, family, next_row, end, out, limit, &noted)
        notes[0] = noted.note
    else:
        out = render_rows(table, cursor, family, next_row, end, out, limit, &plain)
    return out


cdef char *render_rows(const TableState *table, const Cursor *cursor, const Family *family,
                       uint32_t *next_row, uint32_t end, char *out, const char *limit,
                       Lines *lines) noexcept nogil:
    cdef const View *view = &table.views[family.view]
    cdef uint32_t row = next_row[0]
    cdef uint32_t stop = min(end, row + RENDER_ROWS)
    cdef Connection *connection
    while row < stop and out < limit:
        prefetch_rows(table, view, row, end)
        connection = connection_at(view, row)
        if is_on_page(cursor, connection):
            out = render_connection(table, family, view, connection, out, lines)
        row += 1
    next_row[0] = row
    return out


cdef char *render_histogram_rows(const TableState *table, const Cursor *cursor,
                                 const Family *family, uint32_t *next_row, uint32_t end, char *out,
                                 const char *limit, Piece **notes) noexcept nogil:
    cdef const View *view = &table.views[family.view]
    cdef uint32_t row = next_row[0]
    cdef uint32_t stop = min(end, row + RENDER_ROWS)
    cdef Connection *connection
    while row < stop and out < limit:
        prefetch_rows(table, view, row, end)
        connection = connection_at(view, row)
        if is_on_page(cursor, connection):
            out = render_histograms(table, family, view, connection, cursor.starts, out, notes)
        row += 1
    next_row[0] = row
    return out


cdef inline bint is_on_page(const Cursor *cursor, const Connection *row) noexcept nogil:
    return (row.deadline_s > cursor.now_s
            and created_before(row.created_seq, cursor.page_seq))


cdef inline void prefetch_rows(const TableState *table, const View *view, uint32_t row,
                               uint32_t end) noexcept nogil:
    if row + 2 * AHEAD < end:
        prefetch(row_at(&view.rows, row + 2 * AHEAD))
        prefetch(row_at(&view.rows, row + 2 * AHEAD) + CACHE_LINE)
    if row + AHEAD < end:
        prefetch_strings(table, view, connection_at(view, row + AHEAD))


cdef inline void prefetch_strings(const TableState *table, const View *view,
                                  Connection *row) noexcept nogil:
    cdef const uint32_t *label_ids = label_ids_of(view, row)
    cdef uint32_t i
    if row.deadline_s:
        for i in range(view.columns):
            if label_ids[i] & IS_STRING:
                prefetch(row_at(&table.strings, label_ids[i] & ~IS_STRING))


cdef inline int64_t series_value(const Family *family, const View *view, Connection *row,
                                 uint32_t direction) noexcept nogil:
    if unlikely(family.values[direction] == FLOWS):
        return flows_of(row)
    return values_of(view, row)[family.values[direction]]


cdef inline char *render_connection(const TableState *table, const Family *family,
                                    const View *view, Connection *row, char *out,
                                    Lines *lines) noexcept nogil:
    # Writes the lines of a row. The line of the second direction is a copy of the first line, with
    # another direction and another value.
    cdef const uint32_t *label_ids = label_ids_of(view, row)
    cdef const Literal *literals = family.literals
    cdef int64_t value = series_value(family, view, row, 0)
    cdef int64_t second = family.absent
    cdef char *start = out
    cdef char *direction = out
    cdef char *rest
    cdef char *line
    cdef char *begin
    cdef Piece *note = NULL
    cdef StartText time
    cdef uint32_t i
    cdef Py_ssize_t before, after
    if family.directions == 2:
        second = series_value(family, view, row, 1)
    if value <= family.absent and second <= family.absent:
        return out
    if Lines is not PlainLines:
        note = lines.note
    for i in range(view.columns):
        if i == view.direction_index:
            direction = out
        begin = put(out, literals[i].text, literals[i].length)
        out = put_label_value(begin, label_ids[i], &table.strings)
        if Lines is not PlainLines:
            if Lines is NotedLines or note != NULL:
                note += 1
                note[0] = Piece(length=<uint32_t>(out - begin), source=label_ids[i])
    if view.direction_index == view.columns:
        direction = out
    out = put(out, literals[view.columns].text, literals[view.columns].length)
    rest = direction + literals[view.direction_index].length
    before = direction - start
    after = out - rest
    begin = out
    out = put_value(begin, max(value, <int64_t>0), family.decimals)
    if Lines is not PlainLines:
        if Lines is NotedLines or note != NULL:
            lines.note[0] = Piece(length=<uint32_t>(out - begin), source=0)
    if Lines is TimedLines:
        put_start_text(&time, start_of(view, row)[0])
        if time.length:
            out = put_start(family, lines.starts, start, begin, out, &time)
            if note != NULL:
                lines.note.length |= time.length << TIME_SHIFT
    if second > family.absent:
        line = out
        memcpy(line, start, before)
        out = put(line + before, family.second.text, family.second.length)
        memcpy(out, rest, after)
        begin = out + after
        out = put_value(begin, second, family.decimals)
        if Lines is not PlainLines:
            if Lines is NotedLines or note != NULL:
                lines.note.length |= <uint32_t>(out - begin) << SECOND_SHIFT
        if Lines is TimedLines:
            if time.length:
                out = put_start(family, lines.starts, line, begin, out, &time)
        if unlikely(value <= family.absent):    # the first direction has no line
            memmove(start, line, out - line)
            out = start + (out - line)
            if Lines is not PlainLines:
                if Lines is NotedLines or note != NULL:
                    lines.note.length &= ~<uint32_t>LENGTH_MASK
    if Lines is not PlainLines:
        if Lines is NotedLines or note != NULL:
            lines.note = note + 1
    return out


# ---------------------------------------------------------------------------------------------
# Lists of rows, for pages with several parts or with bounds. A hash of a row's label values
# determines to which part the row belongs.

cdef char *render_row_list(const TableState *table, Cursor *cursor, const Family *family, char *out,
                           const char *limit, Piece **notes) noexcept nogil:
    # Renders at most RENDER_ROWS rows. Rows with consecutive numbers are rendered together, so a
    # list of nearly all rows does not slow down rendering.
    cdef const View *view = &table.views[family.view]
    cdef const uint32_t *row_list = cursor.row_list
    cdef uint32_t i = cursor.row
    cdef uint32_t stop = min(cursor.row_list_end, i + RENDER_ROWS)
    cdef uint32_t first, row, end
    while i < stop and out < limit:
        first = row = row_list[i]
        end = i + 1
        while end < stop and row_list[end] - row_list[end - 1] == 1:
            end += 1
        if end - i < AHEAD:
            prefetch_row_list(table, view, cursor, i, end)
        out = render_in_format(table, cursor, family, &row, first + end - i, out, limit, notes)
        i += row - first
    cursor.row = i
    return out


cdef inline void prefetch_row_list(const TableState *table, const View *view, const Cursor *cursor,
                                   uint32_t start, uint32_t end) noexcept nogil:
    # Like `prefetch_rows`, but for the rows in `Cursor.row_list`.
    cdef const Rows *rows = &view.rows
    cdef const uint32_t *row_list = cursor.row_list
    cdef uint32_t i
    for i in range(start, end):
        if i + 2 * AHEAD < cursor.row_list_end:
            prefetch(row_at(rows, row_list[i + 2 * AHEAD]))
            prefetch(row_at(rows, row_list[i + 2 * AHEAD]) + CACHE_LINE)
        if i + AHEAD < cursor.row_list_end:
            prefetch_strings(table, view, <Connection *>row_at(rows, row_list[i + AHEAD]))


cdef void list_rows(TableState *table, uint32_t number, Cursor *cursor) noexcept nogil:
    # Rows past their deadline are also listed, because a report can extend the deadline before the
    # page reaches the row.
    cdef const View *view = &table.views[number]
    cdef const Bounds *bounds = &cursor.bounds[number]
    if cursor.parts == 1:
        list_shown(table, view, bounds, cursor)
    elif bounds_are_set(bounds):
        list_shown_part(table, view, bounds, cursor)
    else:
        list_part(table, view, cursor)


cdef void list_part(TableState *table, const View *view, Cursor *cursor) noexcept nogil:
    # Lists the rows to show. The page is divided into parts, and the view has no bounds.
    cdef Scan scan = scan_until(view, NO_END)
    cdef Connection *row
    cdef uint32_t number
    cdef uint32_t count = 0
    while scan_slice(table, &scan):
        for number in range(scan.start, scan.stop):
            if number + AHEAD / 2 < view.rows.end:
                prefetch_strings(table, view, connection_at(view, number + AHEAD / 2))
            row = scan_row(view, number)
            if (row.deadline_s and created_before(row.created_seq, cursor.page_seq)
                    and count < cursor.row_list_capacity):
                # The number is always written to the list, but `count` only increases if the row
                # belongs to the part. This is faster than a branch that the processor cannot
                # predict.
                cursor.row_list[count + 1] = number
                count += part_of(table, view, row, cursor.parts) == cursor.part
    cursor.row_list_end = count + 1
    cursor.row_list_view = view


cdef uint32_t max_view_rows(TableState *table) noexcept nogil:
    # An upper bound of the number of rows in any view.
    cdef uint32_t i, most = 0
    pthread_mutex_lock(&table.lock)
    for i in range(table.view_count):
        most = max(most, table.views[i].rows.end)
    pthread_mutex_unlock(&table.lock)
    return most


cdef uint64_t LOW_BYTES[9]          # at index n: a mask of the first n bytes of a word
for _length in range(9):
    LOW_BYTES[_length] = (1 << 8 * _length) - 1


cdef inline uint32_t part_of(const TableState *table, const View *view, Connection *row,
                             uint32_t parts) noexcept nogil:
    # The part of a row depends only on its label values, so it never changes. The hashes in the
    # table are not used, because they differ between processes. The hash of a label value does not
    # depend on the values of other labels, so the processor can compute several hashes at once.
    cdef const uint32_t *label_ids = label_ids_of(view, row)
    cdef const String *string
    cdef uint64_t total = 0
    cdef uint64_t seed = 0
    cdef uint32_t i
    for i in range(view.columns):
        seed += PART_SEED
        if label_ids[i] & IS_STRING:
            string = <const String *>row_at(&table.strings, label_ids[i] & ~IS_STRING)
            total += part_hash(string, seed)
        else:
            total += part_step(seed, label_ids[i])
    return <uint32_t>((mix64(total) >> 32) * parts >> 32)


cdef inline uint64_t part_hash(const String *string, uint64_t h) noexcept nogil:
    # Reads whole words, even beyond the end of the string. Bytes after the end count as 0.
    cdef const char *text = string_bytes(string)
    cdef uint32_t length = string.length
    cdef uint64_t word
    while length > 8:
        memcpy(&word, text, 8)
        h = part_step(h, word)
        text += 8
        length -= 8
    memcpy(&word, text, 8)
    return part_step(h, word & LOW_BYTES[length])


cdef inline uint64_t part_step(uint64_t h, uint64_t word) noexcept nogil:
    h = (h ^ word) * PART_SEED
    return h ^ (h >> 32)
