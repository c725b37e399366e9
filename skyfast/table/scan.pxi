# Scans visit all rows of a view, for example to count label values, to rank connections or to take
# a snapshot.
#
# Any thread may scan. A scan takes the table's mutex for RENDER_ROWS rows at a time, without the
# GIL. Other threads may remove rows after the mutex is released, so the contents of rows are
# counted or copied under the mutex.

cdef struct Scan:
    const View *view
    uint32_t start              # number of the first row of the current slice
    uint32_t stop               # number of the row after the slice; 0 before the first slice
    uint32_t end                # number of the row after the last row to visit
    bint is_released            # whether `scan_release` has released the mutex in this slice


cdef inline Scan scan_until(const View *view, uint32_t end) noexcept nogil:
    cdef Scan scan
    scan.view = view
    scan.start = 1
    scan.stop = 0
    scan.end = end
    scan.is_released = False
    return scan


cdef bint scan_slice(TableState *table, Scan *scan) noexcept nogil:
    # Begins the next slice: takes the mutex, and returns True. After the last slice, releases the
    # mutex, and returns False. The first call must be made without the mutex. A caller that stops
    # before the last slice must release the mutex.
    cdef uint32_t end
    if scan.stop:
        if not scan.is_released:
            scan_release(table, scan)
        yield_lock(table)
        scan.start = scan.stop
    if scan.start >= scan.end:
        return False
    pthread_mutex_lock(&table.lock)
    scan.is_released = False
    end = min(scan.view.rows.end, scan.end)
    scan.stop = min(end, scan.start + RENDER_ROWS)
    if scan.stop == end:
        scan.end = end          # this is the last slice: rows that are added later are not visited
    return True


cdef inline void scan_release(TableState *table, Scan *scan) noexcept nogil:
    # Releases the mutex before the end of a slice, because the rows of the slice are no longer
    # needed.
    scan.is_released = True
    pthread_mutex_unlock(&table.lock)


cdef inline Connection *scan_row(const View *view, uint32_t number) noexcept nogil:
    # Returns row `number` of the slice, which may be a free row. Prefetches a later row.
    if number + AHEAD < view.rows.end:
        prefetch(row_at(&view.rows, number + AHEAD))
        prefetch(row_at(&view.rows, number + AHEAD) + CACHE_LINE)
    return connection_at(view, number)


cdef uint32_t rows_end(TableState *table, const Rows *rows) noexcept nogil:
    # Reads `rows.end` under the mutex. May be called from any thread.
    cdef uint32_t end
    pthread_mutex_lock(&table.lock)
    end = rows.end
    pthread_mutex_unlock(&table.lock)
    return end


# ---------------------------------------------------------------------------------------------
# Values of labels

cdef dict count_label_values(TableState *table, tuple names):
    # Implements `Table.label_values`.
    cdef uint32_t columns = table.views[0].columns
    cdef uint32_t i, strings
    cdef size_t words
    cdef uint64_t *seen
    cdef uint64_t *counts = NULL
    with nogil:
        strings = rows_end(table, &table.strings)
    words = (strings + (1 << 16)) / 64 + 2
    seen = <uint64_t *>allocate(words * columns * sizeof(uint64_t))
    try:
        counts = <uint64_t *>allocate(columns * sizeof(uint64_t))
        with nogil:
            count_values(table, strings, words, seen, counts)
        return {name: counts[i] for i, name in enumerate(names)}
    finally:
        free(seen)
        free(counts)


cdef void count_values(TableState *table, uint32_t strings, size_t words, uint64_t *seen,
                       uint64_t *counts) noexcept nogil:
    # Sets `counts` to the number of different values of each label. For each label, `seen` has a
    # bit set of `words` words, with a bit for each integer below 2^16 and for each string. Two
    # integers with the same low 16 bits count as one value.
    cdef const View *view = &table.views[0]
    cdef Scan scan = scan_until(view, NO_END)
    cdef Connection *row
    cdef uint32_t number
    while scan_slice(table, &scan):
        for number in range(scan.start, scan.stop):
            row = scan_row(view, number)
            if row.deadline_s != 0:
                mark_values(view, label_ids_of(view, row), strings, words, seen, counts)


cdef inline void mark_values(const View *view, const uint32_t *label_ids, uint32_t strings,
                             size_t words, uint64_t *seen, uint64_t *counts) noexcept nogil:
    cdef uint32_t i, mark
    cdef uint64_t *word
    cdef uint64_t bit
    for i in range(view.columns):
        if likely(label_ids[i] & IS_STRING):
            mark = label_ids[i] & ~IS_STRING
            if unlikely(mark >= strings):   # interned after the scan began
                continue
            mark += 1 << 16
        else:
            mark = label_ids[i] & 0xFFFF
        word = &seen[i * words + mark / 64]
        bit = <uint64_t>1 << mark % 64
        counts[i] += not word[0] & bit
        word[0] |= bit


cdef struct LabelScan:
    const View *view
    Counter counters[MAX_VIEW_COLUMNS]  # for each label: how often each of its values occurs
    # For each label: estimates how many different label tuples remain without this label.
    DistinctSample remaining[MAX_VIEW_COLUMNS]
    uint64_t *spare             # scratch space for `sample_key`
    int32_t without             # index of the label that `combinations` ignores, or -1
    # How often each combination of label values occurs, ignoring the label `without`.
    Counter combinations
    uint32_t *ids               # copies of the label IDs of a slice's rows
    uint32_t rows               # number of rows that have been counted


cdef tuple label_frequencies(TableState *table, tuple names, uint32_t view, uint32_t count,
                             int32_t without):
    # Implements `Table.cardinality`.
    cdef LabelScan labels
    cdef uint32_t columns = table.views[view].columns
    cdef size_t size = 2 * SAMPLE_KEYS * sizeof(uint64_t)
    cdef bint enough, is_exact = True
    cdef uint32_t i
    memset(&labels, 0, sizeof(LabelScan))
    labels.view = &table.views[view]
    labels.without = without
    try:
        labels.spare = <uint64_t *>allocate(size)
        labels.ids = <uint32_t *>allocate(RENDER_ROWS * columns * sizeof(uint32_t))
        for i in range(columns):
            labels.remaining[i].keys = <uint64_t *>allocate(size)
        with nogil:
            enough = count_labels(table, &labels)
        if not enough:
            raise MemoryError
        values = {}
        for i, name in enumerate(names):
            top = most_frequent(table, &labels.counters[i], count)
            remaining = min(distinct_keys(&labels.remaining[i]), <uint64_t>labels.rows)
            values[name] = labels.counters[i].used, top, remaining
            is_exact &= labels.remaining[i].level == 0
        left = None if without < 0 else labels.combinations.used
        return labels.rows, values, is_exact, left
    finally:
        for i in range(columns):
            counter_destroy(&labels.counters[i])
            free(labels.remaining[i].keys)
        counter_destroy(&labels.combinations)
        free(labels.spare)
        free(labels.ids)


cdef bint count_labels(TableState *table, LabelScan *labels) noexcept nogil:
    # Copies the label IDs of each slice, and counts them without the mutex, because growing a
    # `Counter` takes time. Returns False if out of memory.
    cdef Scan scan = scan_until(labels.view, NO_END)
    cdef uint32_t columns = labels.view.columns
    cdef Connection *row
    cdef uint32_t number, count, i
    while scan_slice(table, &scan):
        count = 0
        for number in range(scan.start, scan.stop):
            row = scan_row(labels.view, number)
            if row.deadline_s != 0:
                memcpy(labels.ids + count * columns, label_ids_of(labels.view, row), 4 * columns)
                count += 1
        scan_release(table, &scan)
        labels.rows += count
        for i in range(count):
            if not count_row(labels, labels.ids + i * columns, table.seed):
                return False
    return True


cdef inline bint count_row(LabelScan *labels, uint32_t *label_ids, uint64_t seed) noexcept nogil:
    # Counts the label IDs of a row. May overwrite an item of `label_ids`. Returns False if out of
    # memory.
    cdef uint32_t columns = labels.view.columns
    cdef uint64_t hashes[MAX_VIEW_COLUMNS]
    cdef uint64_t key, total = 0
    cdef uint32_t i
    for i in range(columns):
        key = label_ids[i]
        if not counter_count(&labels.counters[i], key + 1):
            return False
        hashes[i] = mix64(seed ^ (<uint64_t>(i + 1) << 32 | label_ids[i]))
        total += hashes[i]
    for i in range(columns):
        sample_key(&labels.remaining[i], &labels.spare, mix64(total - hashes[i]))
    if labels.without >= 0:
        label_ids[labels.without] = 0
        key = hash_bytes(<const char *>label_ids, 4 * columns, seed)
        return counter_count(&labels.combinations, key + 1)
    return True


cdef list most_frequent(TableState *table, const Counter *counter, uint32_t count):
    # The `count` most frequent values, each with its number of rows. A heap keeps only `count`
    # values at a time, because a label can have a million values.
    cdef list heap = []
    cdef uint32_t least = 0
    cdef size_t slot
    if count == 0:
        return heap
    for slot in range(counter.capacity):
        if counter.keys[slot] == 0 or counter.counts[slot] < least:
            continue
        if <uint32_t>len(heap) < count:
            heapq.heappush(heap, (counter.counts[slot], counter.keys[slot]))
        else:
            heapq.heappushpop(heap, (counter.counts[slot], counter.keys[slot]))
        if <uint32_t>len(heap) == count:
            least = heap[0][0]
    named = [
        (label_id_text(table, key - 1, NULL), number) for number, key in sorted(heap, reverse=True)
    ]
    return [(text, number) for text, number in named if text is not None]


cdef list values_on_page(TableState *table, list columns, const Cursor *cursor):
    # Implements `Page.distinct_values`. `columns` has a pair for each view with the label: the
    # index of the view, and the column of the label in this view.
    cdef Counter counter
    cdef uint32_t view, column, hash
    cdef uint64_t key
    cdef size_t slot
    cdef bint enough
    cdef dict found = {}
    counter_init(&counter)
    try:
        for view, column in columns:
            with nogil:
                enough = count_page_labels(table, &table.views[view], column, cursor.page_seq,
                                           &counter)
            if not enough:
                raise MemoryError
        for slot in range(counter.capacity):
            if counter.keys[slot]:
                key = counter.keys[slot] - 1
                hash = <uint32_t>(key >> 32)
                found[label_id_text(table, <uint32_t>key, &hash)] = None
    finally:
        counter_destroy(&counter)
    found.pop(None, None)
    return list(found)


cdef bint count_page_labels(TableState *table, const View *view, uint32_t column,
                            uint32_t page_seq, Counter *counter) noexcept nogil:
    # Adds the values of one label to `counter`. Returns False if out of memory. A key of the
    # counter consists of a label ID and the hash of its string. The hash is needed because the
    # number of a string can be reused after the mutex is released. Rows past their deadline are
    # also counted, because a report can extend the deadline before the page reaches the row.
    cdef Scan scan = scan_until(view, NO_END)
    cdef Connection *row
    cdef String *string
    cdef uint32_t number, label_id
    cdef uint64_t key
    while scan_slice(table, &scan):
        for number in range(scan.start, scan.stop):
            row = scan_row(view, number)
            if row.deadline_s == 0 or not created_before(row.created_seq, page_seq):
                continue
            key = label_id = label_ids_of(view, row)[column]
            if label_id & IS_STRING:
                string = <String *>row_at(&table.strings, label_id & ~IS_STRING)
                key |= <uint64_t>string.hash << 32
            if not counter_count(counter, key + 1):
                pthread_mutex_unlock(&table.lock)
                return False
    return True


cdef str label_id_text(TableState *table, uint32_t label_id, const uint32_t *hash):
    # The text of a label value, or None if its string has been removed. `hash` points to the hash
    # that the string had during the scan. If another string has reused the number, its hash
    # differs, so the result is also None. If `hash` is NULL, reuse is not detected.
    cdef char copied[MAX_LABEL_BYTES]
    cdef uint32_t length
    cdef String *string
    cdef bint exists
    if not label_id & IS_STRING:
        return str(label_id)
    pthread_mutex_lock(&table.lock)
    string = <String *>row_at(&table.strings, label_id & ~IS_STRING)
    exists = string.refs != 0 and (hash == NULL or string.hash == hash[0])
    if exists:
        length = string.length
        memcpy(copied, string_bytes(string), length)
    pthread_mutex_unlock(&table.lock)
    if not exists:
        return None
    return unescaped(copied[:length].decode())


cdef str unescaped(str text):
    return ESCAPES.sub(lambda match: UNESCAPED[match[0]], text) if "\\" in text else text


# ---------------------------------------------------------------------------------------------
# Values of connections

cdef const Family *ranked_family(TableState *table, uint32_t family) except NULL:
    if family >= table.family_count:
        raise IndexError("the table has no such family")
    if table.families[family].text != NULL:
        raise ValueError("connections cannot be ranked by a histogram")
    return &table.families[family]


cdef inline const View *view_of(const TableState *table, const Family *family) noexcept nogil:
    return &table.views[family.view]


cdef inline int64_t rank_of(const View *view, const Family *family,
                            Connection *row) noexcept nogil:
    # The value by which a row is ranked, or -1 if the row is free or has no value of the family.
    cdef int64_t value, second
    if row.deadline_s == 0:
        return -1
    value = series_value(family, view, row, 0)
    if value <= family.absent:
        value = -1
    if family.directions == 2:
        second = series_value(family, view, row, 1)
        if second > family.absent:
            if value < 0 or not family.is_counter:
                value = max(value, second)
            else:
                add(&value, second)
    return value


cdef int take_snapshot(TableState *table, uint32_t family, SnapshotValues *snapshot) except -1:
    # Takes a snapshot of the values of a family. The caller must free the arrays of the snapshot,
    # even after an exception.
    cdef const View *view = view_of(table, &table.families[family])
    with nogil:
        snapshot.rows = rows_end(table, &view.rows)
    snapshot.values = <int64_t *>malloc(snapshot.rows * sizeof(int64_t))
    snapshot.hashes = <uint32_t *>malloc(snapshot.rows * sizeof(uint32_t))
    if snapshot.values == NULL or snapshot.hashes == NULL:
        raise MemoryError
    with nogil:
        fill_snapshot(table, &table.families[family], snapshot)
    return 0


cdef void fill_snapshot(TableState *table, const Family *family,
                        SnapshotValues *snapshot) noexcept nogil:
    cdef const View *view = view_of(table, family)
    cdef Scan scan = scan_until(view, snapshot.rows)
    cdef Connection *row
    cdef uint32_t number
    while scan_slice(table, &scan):
        for number in range(scan.start, scan.stop):
            row = scan_row(view, number)
            snapshot.values[number] = rank_of(view, family, row)
            snapshot.hashes[number] = row.hash


cdef list top_rows(TableState *table, uint32_t family, uint32_t count, const SnapshotValues *since,
                   str containing, dict value_sets):
    # Implements `Table.top`.
    cdef const View *view = view_of(table, &table.families[family])
    cdef Search search
    cdef TopK top
    cdef uint32_t i
    cdef char *copies = NULL
    cdef int64_t *values = NULL
    top.family = &table.families[family]
    top.since = since
    top.search = &search
    top.count = 0
    top.capacity = count
    top.heap = NULL
    try:
        search_init(&search, table, view, containing, value_sets)
        top.heap = <TopRow *>allocate(count * sizeof(TopRow))
        copies = <char *>allocate(view.columns * MAX_LABEL_BYTES)
        values = <int64_t *>allocate(2 * table.family_count * sizeof(int64_t))
        with nogil:
            find_top(table, &top)
        qsort(top.heap, top.count, sizeof(TopRow), compare_ranks)
        rows = [shown_row(table, view, &top.heap[i], copies, values) for i in range(top.count)]
        return [row for row in rows if row is not None]
    finally:
        search_destroy(&search)
        free(top.heap)
        free(copies)
        free(values)


cdef void find_top(TableState *table, TopK *top) noexcept nogil:
    cdef const View *view = view_of(table, top.family)
    cdef Scan scan = scan_until(view, NO_END)
    cdef Connection *row
    cdef uint32_t number
    cdef int64_t rank
    while scan_slice(table, &scan):
        for number in range(scan.start, scan.stop):
            row = scan_row(view, number)
            rank = rank_of(view, top.family, row)
            if top.since != NULL:
                rank = growth_since(top.since, number, row, rank)
            if rank >= 0 and top_k_accepts(top, rank) and row_matches(table, row, top.search):
                top_k_add(top, rank, number, row.hash)


cdef inline int64_t growth_since(const SnapshotValues *since, uint32_t number,
                                 const Connection *row, int64_t value) noexcept nogil:
    # The growth of a row's counter since a snapshot, or -1 if the growth is 0 or unknown. `value`
    # is the current value. If the snapshot has no value of this row, the growth of a row that
    # started at 0 is `value`, and the growth of any other row is unknown.
    cdef int64_t growth = value
    if (number < since.rows and 0 <= since.values[number] <= value
            and since.hashes[number] == row.hash):
        growth -= since.values[number]
    elif row.flows & RESTORED:
        return -1               # unknown: the row started with a removed connection's counters
    return growth if growth else -1


cdef inline const char *label_bytes(const TableState *table, uint32_t label_id, char *digits,
                                    uint32_t *length) noexcept nogil:
    # A label value as it appears on a page. An integer is written to `digits`, which must have
    # space for 2 * MAX_INTEGER_DIGITS bytes.
    cdef const String *string
    if label_id & IS_STRING:
        string = <const String *>row_at(&table.strings, label_id & ~IS_STRING)
        length[0] = string.length
        return string_bytes(string)
    length[0] = <uint32_t>(put_number(digits, label_id) - digits)
    return digits


cdef bint row_matches(const TableState *table, Connection *row,
                      const Search *search) noexcept nogil:
    # Whether a label value of the row is one of the searched values, or contains the searched text.
    cdef const uint32_t *label_ids = label_ids_of(search.view, row)
    cdef uint64_t *word
    cdef uint64_t bit
    cdef size_t position
    cdef uint32_t i
    if search.size == 0:
        return True
    for i in range(search.view.columns):
        position = label_ids[i] & ~IS_STRING
        if label_ids[i] & IS_STRING:
            position += SMALL_INTEGERS
        elif position >= SMALL_INTEGERS:
            position = 64 * search.words
        if unlikely(position >= 64 * search.words):
            # The value has no bit in `misses`, because it is a large integer, or a string that was
            # interned after the search began.
            if label_matches(table, label_ids[i], search, i):
                return True
            continue
        word = &search.misses[i * search.words + position / 64]
        bit = <uint64_t>1 << position % 64
        if word[0] & bit:
            continue
        if label_matches(table, label_ids[i], search, i):
            return True
        word[0] |= bit
    return False


cdef bint label_matches(const TableState *table, uint32_t label_id, const Search *search,
                        uint32_t column) noexcept nogil:
    cdef char digits[2 * MAX_INTEGER_DIGITS]
    cdef const char *text
    cdef uint32_t length
    if (search.value_sets != NULL and label_id & IS_STRING
            and value_set_contains(&search.value_sets[column],
                                   <const String *>row_at(&table.strings, label_id & ~IS_STRING))):
        return True
    text = label_bytes(table, label_id, digits, &length)
    return text_matches(search, text, length)


cdef tuple shown_row(TableState *table, const View *view, const TopRow *entry, char *copies,
                     int64_t *values):
    # Returns what `Table.top` returns for one row, or None if the row has been removed or reused.
    # `copies` and `values` are scratch space, because nothing may be allocated under the mutex.
    cdef Connection *row
    cdef char digits[2 * MAX_INTEGER_DIGITS]
    cdef const char *text
    cdef uint32_t lengths[MAX_VIEW_COLUMNS]
    cdef uint32_t i, count = 0
    cdef bint exists, is_shown = True
    pthread_mutex_lock(&table.lock)
    row = connection_at(view, entry.row)
    exists = row.deadline_s != 0 and row.hash == entry.hash
    if exists:
        for i in range(view.columns):
            text = label_bytes(table, label_ids_of(view, row)[i], digits, &lengths[i])
            memcpy(copies + i * MAX_LABEL_BYTES, text, lengths[i])
        count = copy_values(table, view, row, values)
        is_shown = not bounds_are_set(&view.bounds) or reaches_bounds(view, row, &view.bounds)
    pthread_mutex_unlock(&table.lock)
    if not exists:
        return None
    labels = [
        unescaped(copies[i * MAX_LABEL_BYTES:i * MAX_LABEL_BYTES + lengths[i]].decode())
        for i in range(view.columns)
    ]
    shown = [values[i] if values[i] >= 0 else None for i in range(count)]
    return entry.rank, tuple(labels), tuple(shown), is_shown


cdef inline bint has_values(const TableState *table, const Family *family,
                            const View *view) noexcept nogil:
    return view_of(table, family) == view and family.text == NULL


cdef uint32_t copy_values(const TableState *table, const View *view, Connection *row,
                          int64_t *values) noexcept nogil:
    # For each series of the view, copies the row's value to `values`. A missing value becomes -1.
    # Returns the number of values.
    cdef const Family *family
    cdef uint32_t i, direction, count = 0
    for i in range(table.family_count):
        family = &table.families[i]
        if not has_values(table, family, view):
            continue
        for direction in range(family.directions):
            values[count] = series_value(family, view, row, direction)
            if values[count] <= family.absent:
                values[count] = -1
            count += 1
    return count
