# Reading reports: the fields that the table needs of each flow of a batch. Part of `_table.pyx`,
# which includes it. The first of the three steps of `Table.update`: read, look up, apply.
#
# This code uses Python objects, so it needs the GIL and must not run under the table's mutex. It
# reads only constant parts of the table and the index of flows, and writes only to the batch.
# Values are borrowed from the flows, or from `held`, until the batch has been applied.

cdef inline const Reader *reader_of(const Reader *readers, PyObject *flow) noexcept:
    cdef uint32_t i
    for i in range(FLOW_TYPES):
        if Py_TYPE(flow) == readers[i].type:
            return &readers[i]
    return NULL


cdef int read_reports(const TableState *table, const Reader *readers, list flows,
                      Py_ssize_t start, Batch *batch) except -1:
    # Begin a batch with the fields that known flows need. The batch ends before the first object
    # that is not a flow of the plan.
    cdef uint32_t i
    cdef uint32_t size = <uint32_t>min(PyList_GET_SIZE(flows) - start, <Py_ssize_t>BATCH)
    cdef const Reader *reader
    cdef PyObject *flow
    batch.size = 0
    for i in range(size):
        flow = <PyObject *>PyList_GET_ITEM(flows, start + i)
        reader = reader_of(readers, flow)
        if reader == NULL:
            break
        batch.reports[i].skip = read_report(table, flow, reader, batch, &batch.reports[i])
        batch.size += 1
    return 0


cdef int read_report(const TableState *table, PyObject *flow, const Reader *reader, Batch *batch,
                     Report *report) except -1:
    cdef const char *text
    cdef uint32_t length, i
    cdef int64_t finish
    cdef int wrong, too_long
    report.flow = 0
    report.dormant = False
    report.leaves_out = False
    too_long = read_text(value_of(flow, &reader.uuid, reader.slots), &text, &length)
    if unlikely(too_long == SKIP_INVALID):
        return SKIP_INVALID
    if unlikely(length == 0 and too_long == SKIP_NONE):
        return SKIP_NO_UUID
    for i in range(table.requirements):
        if unlikely(part(flow, &reader.required[i].parts[0], reader.slots) == NULL):
            if (not reader.required[i].pair
                    or (part(flow, &reader.required[i].parts[1], reader.slots) == NULL)
                    != reader.required[i].absent):
                return SKIP_REQUIRED + <int>i
    for i in range(table.values):
        wrong = read_number(flow, &reader.totals[i], reader.slots, &report.values[i])
        if unlikely(wrong):
            if i < table.counters and not table.optional[i]:
                return wrong & ~SECOND_FIELD
            report.values[i] = ABSENT if i < table.counters else 0
            leave_out(report, &report.values_left_out, i, wrong)
    wrong = read_integer(value_of(flow, &reader.last, reader.slots), &report.last_ms)
    if unlikely(wrong):
        return wrong
    batch.newest_ms = max(batch.newest_ms, report.last_ms)
    if likely(report.last_ms):
        batch.oldest_ms = min(batch.oldest_ms, report.last_ms)
    if unlikely(read_integer(value_of(flow, &reader.finish, reader.slots), &finish)):
        finish = 0
        leave_out_mark(report, MARK_FINISH)
    if unlikely(too_long):          # missing parts and invalid numbers take precedence
        return too_long
    report.finish = <int>finish if finish < 4 else 4
    flow_key(&report.key, text, length, table.seed)
    if likely(report.key.string == NULL):
        prefetch(bucket_of(&table.flow_rows, <uint32_t>report.key.number))
    return SKIP_NONE


cdef int read_unknown(const TableState *table, const Reader *readers, list flows,
                      Py_ssize_t start, Batch *batch, list held) except -1:
    # Read the labels of flows that are not live, and the fields that identify a first report.
    cdef uint32_t i
    cdef PyObject *flow
    cdef Report *report
    cdef const Cell *previous = NULL
    for i in range(batch.size):
        report = &batch.reports[i]
        if report.skip == SKIP_NONE and (report.flow == 0 or report.dormant):
            flow = <PyObject *>PyList_GET_ITEM(flows, start + i)
            report.skip_new = read_new(
                table, flow, reader_of(readers, flow), report, previous, held
            )
            if report.skip_new == SKIP_NONE:
                previous = report.cells
    return 0


cdef int read_new(const TableState *table, PyObject *flow, const Reader *reader, Report *report,
                  const Cell *previous, list held) except -1:
    # `previous` has the labels of another flow, or is NULL.
    cdef int wrong
    if table.shares > 1:
        wrong = read_conversation(flow, reader, SHARE_SEED, &report.conversation)
        if unlikely(wrong):
            return wrong
        if report.conversation % table.shares != table.share:
            return SKIP_OTHER_SHARD
    wrong = read_labels(table, flow, reader, report.cells, previous, held)
    if unlikely(wrong):
        return wrong
    if table.converses:
        wrong = read_capture_point(flow, reader, table.seed, report)
        if unlikely(wrong):
            return wrong
    report.worth = WORTH_UNREAD
    report.repeats = False
    report.age_ms = -1
    if reader.marks:
        read_marks(table, flow, reader, report)
    return SKIP_NONE


cdef inline int read_labels(const TableState *table, PyObject *flow, const Reader *reader,
                            Cell *cells, const Cell *previous, list held) except -1:
    # Many flows of a message have the same protocol and interface as the flow before, so the hashes
    # of these labels are already known.
    cdef uint32_t i
    cdef int wrong
    for i in range(table.looked_up, table.cells):
        wrong = read_cell(flow, &reader.columns[i], reader.slots, &cells[i], held)
        if unlikely(wrong):
            return wrong
        if cells[i].text != NULL:
            hash_cell(table, &cells[i], previous + i if previous != NULL else NULL)
    for i in range(table.lookup_count):
        wrong = read_names(table, flow, reader, &table.lookups[i], cells, previous, held)
        if unlikely(wrong):
            return wrong
    return SKIP_NONE


cdef inline void hash_cell(const TableState *table, Cell *cell, const Cell *previous) noexcept:
    # `previous` has the same label of another flow, or is NULL.
    cell.repeats = previous != NULL and same_string(previous, cell)
    if cell.repeats:
        cell.escapes = previous.escapes
        cell.hash = previous.hash
    else:
        cell.escapes = needs_escape(cell.text, cell.length)
        cell.hash = hash_bytes32(cell.text, cell.length, table.seed)
        prefetch(bucket_of(&table.strings, cell.hash))


cdef inline int read_cell(PyObject *flow, const Column *column, bint slots, Cell *cell,
                          list held) except -1:
    cdef PyObject *value = value_of(flow, &column.field, slots)
    cdef bint is_string = column.field.is_string
    cell.found = 0
    cell.text = NULL
    if column.rewrite != NULL and value != NULL:
        value = PyObject_GetItem(column.rewrite, value)
        held.append(<object>value)
        Py_DECREF(<object>value)
        is_string = not PyLong_CheckExact(value)
    if is_string or value == NULL:          # a missing part is an empty string
        return read_text(value, &cell.text, &cell.length)
    return read_integer(value, &cell.number)


cdef int read_names(const TableState *table, PyObject *flow, const Reader *reader,
                    const Lookup *lookup, Cell *cells, const Cell *previous, list held) except -1:
    # Read the labels of a lookup. The cells of the strings that it uses have been read.
    cdef uint32_t i
    cdef int wrong
    names = look_up(lookup, string_of(flow, reader, lookup.key))
    if names is None and lookup.has_context:
        names = (<object>lookup.names).resolve(
            string_of(flow, reader, lookup.key), string_of(flow, reader, lookup.other),
            string_of(flow, reader, lookup.point),
        )
    if unlikely(not has_names(names, lookup.length)):
        return SKIP_INVALID
    held.append(names)
    for i in range(lookup.column, lookup.column + lookup.columns):
        wrong = read_text(
            PyTuple_GET_ITEM(names, table.name_indexes[i]), &cells[i].text, &cells[i].length
        )
        if unlikely(wrong):
            return wrong
        cells[i].found = 0
        hash_cell(table, &cells[i], previous + i if previous != NULL else NULL)
    return SKIP_NONE


cdef inline object string_of(PyObject *flow, const Reader *reader, uint32_t cell):
    # A string that a lookup uses. It is empty if its part is missing.
    cdef PyObject *value = value_of(flow, &reader.columns[cell].field, reader.slots)
    return EMPTY if value == NULL else <object>value


cdef inline object look_up(const Lookup *lookup, key):
    cdef PyObject *names
    if likely(lookup.is_dict):
        names = PyDict_GetItemWithError(lookup.names, <PyObject *>key)
        if likely(names != NULL):
            return <object>names
    return (<object>lookup.names)[key]


cdef inline bint has_names(names, Py_ssize_t length):
    # Whether the result of a lookup is a tuple that has at least this length.
    return PyTuple_CheckExact(names) and PyTuple_GET_SIZE(names) >= length


cdef int read_capture_point(PyObject *flow, const Reader *reader, uint64_t seed,
                            Report *report) except -1:
    # Hashes of the conversation and of its capture point.
    cdef const char *text
    cdef uint32_t length
    cdef int wrong = read_text(value_of(flow, &reader.point, reader.slots), &text, &length)
    if unlikely(wrong):
        return wrong
    report.point = hash_bytes(text, length, seed)
    return read_conversation(flow, reader, seed, &report.conversation)


cdef int read_conversation(PyObject *flow, const Reader *reader, uint64_t seed,
                           uint64_t *hash) except -1:
    # The hash is the same for both directions.
    cdef uint64_t hashes[3]                 # hashes of the protocol and of each end
    cdef const char *text
    cdef uint32_t length, i
    cdef int64_t port
    cdef int wrong
    for i in range(3):
        wrong = read_text(
            value_of(flow, &reader.conversation[2 * i - 1 if i else 0], reader.slots),
            &text, &length,
        )
        if unlikely(wrong):
            return wrong
        hashes[i] = hash_bytes(text, length, seed)
    for i in range(1, 3):
        wrong = read_integer(value_of(flow, &reader.conversation[2 * i], reader.slots), &port)
        if unlikely(wrong):
            return wrong
        hashes[i] = mix64(hashes[i] ^ <uint64_t>port)
    hash[0] = mix64(
        hashes[0] ^ mix64(min(hashes[1], hashes[2])) ^ max(hashes[1], hashes[2])
    )
    return SKIP_NONE


cdef int read_marks(const TableState *table, PyObject *flow, const Reader *reader,
                    Report *report) except -1:
    # Set what the report counts for if the flow is unknown, and `last_update` if that is what its
    # latest update added. `last_update` is zero if it cannot be determined whether the report is
    # the first.
    cdef int64_t start, update_start, update_last
    cdef bint wrong_start, wrong_update_start, wrong_last
    # With an invalid FinishType, it may be a closing report that repeats the one before.
    cdef bint wrong_finish = report.leaves_out and report.leaves_out_marks >> MARK_FINISH & 1
    cdef uint32_t i
    report.worth = WORTH_TOTAL
    if part(flow, &reader.update_start, reader.slots) == NULL and likely(not wrong_finish):
        return 0
    wrong_start = read_integer(value_of(flow, &reader.start, reader.slots), &start)
    wrong_update_start = read_integer(
        value_of(flow, &reader.update_start, reader.slots), &update_start
    )
    wrong_last = read_integer(value_of(flow, &reader.update_last, reader.slots), &update_last)
    if unlikely(wrong_start or wrong_update_start or wrong_last):
        if wrong_start:
            leave_out_mark(report, MARK_START)
        if wrong_update_start:
            leave_out_mark(report, MARK_UPDATE_START)
        if wrong_last:
            leave_out_mark(report, MARK_UPDATE_LAST)
    report.repeats = (report.finish == CLOSING
                      and (wrong_last or update_last != report.last_ms))
    if not wrong_start and not wrong_last and update_last >= start:
        report.age_ms = update_last - start
    for i in range(table.counters):
        report.last_update[i] = min(report.values[i], <int64_t>0)   # ABSENT if the total is
    report.worth = WORTH_LAST_UPDATE
    if unlikely(wrong_start or wrong_update_start or wrong_finish):
        if not report.repeats:
            report.age_ms = -1
    elif update_start == start:
        report.worth = WORTH_TOTAL
    elif not reader.full:
        report.worth = WORTH_LAST_UPDATE_UNREAD
    else:
        read_last_update(table, flow, reader, report)
    return 0


cdef int read_last_update(const TableState *table, PyObject *flow, const Reader *reader,
                          Report *report) except -1:
    cdef uint32_t i
    cdef int wrong
    for i in range(table.counters):
        if reader.last_update[i].read and report.last_update[i] == 0:
            wrong = read_number(
                flow, &reader.last_update[i], reader.slots, &report.last_update[i]
            )
            if unlikely(wrong):
                report.last_update[i] = 0
                leave_out(report, &report.last_update_left_out, i, wrong)
    return 0
