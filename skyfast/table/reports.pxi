# Reading reports: reads the fields that the table needs from each flow of a batch. This is the
# first of the three steps of `Table.update`: read, look up, apply.
#
# This code uses Python objects, so it needs the GIL and must not run under the table's mutex. It
# writes only to the batch, and to the deadlines in `TableState.names` (the rows of lookup results:
# see `names.pxi`). The batch borrows values from the flows, from `Table.batch_objects`, and from
# these rows.

cdef inline const Reader *reader_of(const Reader *readers, PyObject *flow) noexcept:
    cdef uint32_t i
    for i in range(FLOW_TYPES):
        if Py_TYPE(flow) == readers[i].type:
            return &readers[i]
    return NULL


cdef int read_reports(const TableState *table, const Reader *readers, list flows,
                      Py_ssize_t start, Batch *batch) except -1:
    # Reads the fields that the table always needs, whether or not a flow is live. If an object in
    # `flows` has none of the types given to `set_flow_types`, the batch ends before this object.
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
    cdef int error, too_long
    report.flow = 0
    report.dormant = False
    report.has_omissions = False
    too_long = read_text(value_of(flow, &reader.uuid, reader.slots), &text, &length)
    if unlikely(too_long == SKIP_INVALID):
        return SKIP_INVALID
    if unlikely(length == 0 and too_long == SKIP_NONE):
        return SKIP_NO_UUID
    for i in range(table.requirements):
        if unlikely(read_part(flow, &reader.required[i].parts[0], reader.slots) == NULL):
            if (not reader.required[i].pair
                    or (read_part(flow, &reader.required[i].parts[1], reader.slots) == NULL)
                    != reader.required[i].absent):
                return SKIP_REQUIRED + <int>i
    for i in range(table.values):
        error = read_number(flow, &reader.totals[i], reader.slots, &report.values[i])
        if unlikely(error):
            if i < table.counters and not table.optional[i]:
                return error & ~SECOND_FIELD
            report.values[i] = ABSENT if i < table.counters else 0
            omit_value(report, &report.omitted_values, i, error)
    error = read_integer(value_of(flow, &reader.last, reader.slots), &report.last_ms)
    if unlikely(error):
        return error
    batch.newest_ms = max(batch.newest_ms, report.last_ms)
    if likely(report.last_ms):
        batch.oldest_ms = min(batch.oldest_ms, report.last_ms)
    if unlikely(read_integer(value_of(flow, &reader.finish, reader.slots), &finish)):
        finish = 0
        omit_lifecycle(report, LIFECYCLE_FINISH)
    if unlikely(too_long):          # checked last: other reasons to skip take precedence
        return too_long
    report.finish = <int>finish if finish < 4 else 4
    if unlikely(finish == CLOSING):
        for i in range(table.values, table.all_values):
            error = read_number(flow, &reader.totals[i], reader.slots, &report.values[i])
            if unlikely(error):
                report.values[i] = 0
                omit_value(report, &report.omitted_values, i, error)
    flow_key(&report.key, text, length, table.seed)
    if likely(report.key.string == NULL):
        prefetch(bucket_of(&table.flow_rows, <uint32_t>report.key.number))
    return SKIP_NONE


cdef int read_not_live(const TableState *table, const Reader *readers, list flows,
                       Py_ssize_t start, Batch *batch, list owned) except -1:
    # Reads the labels and the lifecycle fields of flows that are not live.
    cdef uint32_t i
    cdef PyObject *flow
    cdef Report *report
    cdef const Reader *reader
    cdef const LabelValue *previous = NULL
    cdef const FoundNames *names = batch.names
    cdef bint prepared = table.shards > 1 or table.lookup_count > 0
    batch.missed_count = 0
    if prepared:
        prepare_not_live(table, readers, flows, start, batch, owned)
    for i in range(batch.size):
        report = &batch.reports[i]
        if table.lookup_count and i + NAMES_AHEAD < batch.size:
            prefetch_names(table, batch, i + NAMES_AHEAD)
        if is_not_live(report) and not (prepared and report.skip_if_not_live != SKIP_NONE):
            flow = <PyObject *>PyList_GET_ITEM(flows, start + i)
            reader = reader_of(readers, flow)
            if reader.has_labels:
                report.skip_if_not_live = read_labels_and_lifecycle(
                    table, flow, reader, report, names, previous, owned
                )
            else:
                report.skip_if_not_live = APPLY_STOP
            if report.skip_if_not_live == SKIP_NONE:
                previous = report.label_values
                add_missed(table, batch, i)
        names += table.lookup_count
    return 0


cdef inline void add_missed(const TableState *table, Batch *batch, uint32_t number) noexcept:
    # Adds to `batch.missed` the lookup results of report `number` that have no row (see
    # `names.pxi`).
    cdef uint32_t i
    for i in range(number * table.lookup_count, (number + 1) * table.lookup_count):
        if batch.names[i].row == 0:
            batch.missed[batch.missed_count] = i
            batch.missed_count += 1


cdef inline bint is_not_live(const Report *report) noexcept nogil:
    return report.skip == SKIP_NONE and (report.flow == 0 or report.dormant)


cdef int prepare_not_live(const TableState *table, const Reader *readers, list flows,
                          Py_ssize_t start, Batch *batch, list owned) except -1:
    # Skips flows of other shards, and looks up the names of this shard's flows.
    cdef uint32_t i, j
    cdef PyObject *flow
    cdef Report *report
    cdef const Reader *reader
    cdef FoundNames *names = batch.names
    for i in range(batch.size):
        report = &batch.reports[i]
        for j in range(table.lookup_count):
            names[j].key = NULL
        if is_not_live(report):
            flow = <PyObject *>PyList_GET_ITEM(flows, start + i)
            reader = reader_of(readers, flow)
            report.skip_if_not_live = APPLY_STOP
            if reader.has_labels:
                report.skip_if_not_live = check_shard(table, flow, reader, report)
            if report.skip_if_not_live == SKIP_NONE:
                for j in range(table.lookup_count):
                    find_result(table, flow, reader, &table.lookups[j], &names[j])
        names += table.lookup_count
    find_names_rows(table, batch, owned)
    names = batch.names
    for i in range(batch.size):
        for j in range(table.lookup_count):
            if names[j].key != NULL and names[j].row == 0:
                flow = <PyObject *>PyList_GET_ITEM(flows, start + i)
                complete_names(table, flow, reader_of(readers, flow), &table.lookups[j], &names[j],
                               owned)
        names += table.lookup_count
    return 0


cdef int check_shard(const TableState *table, PyObject *flow, const Reader *reader,
                     Report *report) except -1:
    # Returns SKIP_NONE or the reason to skip the flow.
    cdef int error
    if table.shards == 1:
        return SKIP_NONE
    error = read_conversation(flow, reader, SHARD_SEED, &report.conversation)
    if error == SKIP_NONE and report.conversation % table.shards != table.shard:
        return SKIP_OTHER_SHARD
    return error


cdef inline int find_result(const TableState *table, PyObject *flow, const Reader *reader,
                            const Lookup *lookup, FoundNames *names) except -1:
    # Reads the key of a lookup. If the names are a dict, also looks up the key. If the key is
    # invalid, `names.key` stays NULL, and the flow is skipped later. Later loops do the rest of the
    # lookup, so that the CPU fetches the memory of several results at once.
    cdef PyObject *key = string_of(flow, reader, lookup.key)
    names.result = NULL
    names.row = 0
    if unlikely(not is_valid(key)):
        return 0
    names.key = key
    if likely(lookup.is_dict):
        names.result = PyDict_GetItemWithError(lookup.names, key)
        if likely(names.result != NULL):
            prefetch(bucket_of(&table.names, names_hash(lookup, names.result)))
    return 0


cdef int find_names_rows(const TableState *table, Batch *batch, list owned) except -1:
    # Finds the rows of results. A result without a row is added to `owned`, which keeps it alive if
    # other Python code removes it from the dict.
    cdef const Lookup *lookup
    cdef FoundNames *names
    cdef uint32_t i, number
    cdef uint32_t count = batch.size * table.lookup_count
    for i in range(count):
        names = &batch.names[i]
        if names.key != NULL and names.result != NULL:
            lookup = &table.lookups[i % table.lookup_count]
            number = bucket_of(&table.names, names_hash(lookup, names.result))[0]
            if number:
                prefetch(names_at(table, number))
    for i in range(count):
        names = &batch.names[i]
        if names.key != NULL and names.result != NULL:
            lookup = &table.lookups[i % table.lookup_count]
            names.row = find_names_row(table, lookup, names.result)
            if names.row == 0:
                owned.append(<object>names.result)
    return 0


cdef int complete_names(const TableState *table, PyObject *flow, const Reader *reader,
                        const Lookup *lookup, FoundNames *names, list owned) except -1:
    # If `find_result` has not found a result, looks up the key. If the key is ambiguous, resolves
    # it with the flow's other address and capture point (the context). If a string of the context
    # is invalid, sets `names.result` to NULL, and the flow is skipped later.
    cdef PyObject *other
    cdef PyObject *point
    if names.result == NULL:
        names.result = add_owned((<object>lookup.names)[<object>names.key], owned)
        names.row = find_names_row(table, lookup, names.result)
    if names.result == <PyObject *>None and lookup.has_context:
        other = string_of(flow, reader, lookup.other)
        point = string_of(flow, reader, lookup.point)
        if unlikely(not is_valid(other) or not is_valid(point)):
            names.result = NULL
            return 0
        names.result = add_owned(
            (<object>lookup.names).resolve(<object>names.key, <object>other, <object>point), owned
        )
        names.row = find_names_row(table, lookup, names.result)
    prefetch(names.result)
    prefetch(<char *>names.result + CACHE_LINE)
    return 0


cdef inline PyObject *add_owned(value, list owned) except NULL:
    owned.append(value)
    return <PyObject *>value


cdef inline PyObject *string_of(PyObject *flow, const Reader *reader,
                                uint32_t column) except NULL:
    # The value of a string field. If the flow lacks the part with this field, the value is empty.
    cdef PyObject *value = value_of(flow, &reader.columns[column].field, reader.slots)
    return <PyObject *>EMPTY if value == NULL else value


cdef inline bint is_valid(PyObject *value) noexcept:
    # Whether a value is a string that is not too long. Its size in bytes is checked later.
    return PyUnicode_CheckExact(value) and PyUnicode_GET_LENGTH(value) <= MAX_TEXT_BYTES


cdef void prefetch_names(const TableState *table, const Batch *batch, uint32_t number) noexcept:
    cdef const Report *report = &batch.reports[number]
    cdef const Lookup *lookup
    cdef const FoundNames *names
    cdef uint32_t i, j
    cdef char *name
    if not is_not_live(report) or report.skip_if_not_live != SKIP_NONE:
        return
    for j in range(table.lookup_count):
        lookup = &table.lookups[j]
        names = &batch.names[number * table.lookup_count + j]
        if names.row == 0 and has_names(names.result, lookup.length):
            for i in range(lookup.column, lookup.column + lookup.columns):
                name = <char *>PyTuple_GET_ITEM(names.result, table.name_indexes[i])
                prefetch(name)
                prefetch(name + CACHE_LINE - 8)


cdef int read_labels_and_lifecycle(const TableState *table, PyObject *flow, const Reader *reader,
                                   Report *report, const FoundNames *names,
                                   const LabelValue *previous, list owned) except -1:
    # Returns SKIP_NONE or the reason to skip the flow. `previous` has the labels of an earlier flow
    # of the batch, or is NULL.
    cdef int error = read_labels(table, flow, reader, report.label_values, names, previous, owned)
    if unlikely(error):
        return error
    if table.has_conversations:
        error = read_capture_point(flow, reader, table.seed, report)
        if unlikely(error):
            return error
    report.initial_delta = INITIAL_UNREAD
    report.repeats = False
    report.age_ms = -1
    if reader.has_lifecycle:
        read_lifecycle(table, flow, reader, report)
    return SKIP_NONE


cdef inline int read_labels(const TableState *table, PyObject *flow, const Reader *reader,
                            LabelValue *label_values, const FoundNames *names,
                            const LabelValue *previous, list owned) except -1:
    # If a label has the same value as in `previous`, its hash is copied. This is often the case:
    # for example, many consecutive flows have the same protocol and interface.
    cdef uint32_t i
    cdef int error
    for i in range(table.lookup_columns, table.columns):
        error = read_label(table, flow, reader, i, label_values, previous, owned)
        if unlikely(error):
            return error
    for i in range(table.columns, table.label_value_count):
        if table.key_is_column[i]:
            label_values[i] = label_values[table.key_columns[i]]
            continue
        error = read_label(table, flow, reader, i, label_values, previous, owned)
        if unlikely(error):
            return error
    for i in range(table.lookup_count):
        error = read_names(table, &table.lookups[i], &names[i], label_values, previous)
        if unlikely(error):
            return error
    return SKIP_NONE


cdef inline void hash_label(const TableState *table, LabelValue *label,
                            const LabelValue *previous) noexcept:
    # `previous` is the value of the same label in an earlier flow of the batch, or NULL.
    label.repeats = previous != NULL and same_string(previous, label)
    if label.repeats:
        label.escapes = previous.escapes
        label.hash = previous.hash
    else:
        label.escapes = needs_escape(label.text, label.length)
        label.hash = hash_bytes32(label.text, label.length, table.seed)
        prefetch(bucket_of(&table.strings, label.hash))


cdef inline int read_label(const TableState *table, PyObject *flow, const Reader *reader,
                           uint32_t number, LabelValue *label_values,
                           const LabelValue *previous, list owned) except -1:
    cdef LabelValue *label = &label_values[number]
    cdef int error = read_value(flow, &reader.columns[number], reader.slots, label, owned)
    if error == SKIP_NONE and label.text != NULL:
        hash_label(table, label, previous + number if previous != NULL else NULL)
    return error


cdef inline int read_value(PyObject *flow, const Column *column, bint slots, LabelValue *label,
                           list owned) except -1:
    cdef PyObject *value = value_of(flow, &column.field, slots)
    cdef bint is_string = column.field.is_string
    label.string = 0
    label.text = NULL
    if column.rewrite != NULL and value != NULL:
        value = PyObject_GetItem(column.rewrite, value)
        owned.append(<object>value)
        Py_DECREF(<object>value)
        is_string = not PyLong_CheckExact(value)
    if is_string or value == NULL:          # if the part is missing (NULL), the text is empty
        return read_text(value, &label.text, &label.length)
    return read_integer(value, &label.number)


cdef int read_names(const TableState *table, const Lookup *lookup, const FoundNames *names,
                    LabelValue *label_values, const LabelValue *previous) except -1:
    # Reads the labels of a result. If the result has a row, its labels are already interned: their
    # `string` is set, and their `text` is NULL.
    cdef NamesRow *row
    cdef uint32_t i
    cdef int error
    if likely(names.row):
        row = names_at(table, names.row)
        row.deadline_s = max(row.deadline_s, table.views[0].deadline_s)
        for i in range(lookup.columns):
            label_values[lookup.column + i].text = NULL
            label_values[lookup.column + i].string = row.strings[i]
        return SKIP_NONE
    if unlikely(not has_names(names.result, lookup.length)):
        return SKIP_INVALID
    for i in range(lookup.column, lookup.column + lookup.columns):
        error = read_text(
            PyTuple_GET_ITEM(names.result, table.name_indexes[i]),
            &label_values[i].text, &label_values[i].length,
        )
        if unlikely(error):
            return error
        label_values[i].string = 0
        hash_label(table, &label_values[i], previous + i if previous != NULL else NULL)
    return SKIP_NONE


cdef inline bint has_names(PyObject *names, Py_ssize_t length) noexcept:
    return names != NULL and PyTuple_CheckExact(names) and PyTuple_GET_SIZE(names) >= length


cdef int read_capture_point(PyObject *flow, const Reader *reader, uint64_t seed,
                            Report *report) except -1:
    # Sets the hashes of the capture point and of the conversation. Returns SKIP_NONE or the reason
    # to skip the flow.
    cdef const char *text
    cdef uint32_t length
    cdef int error = read_text(value_of(flow, &reader.point, reader.slots), &text, &length)
    if unlikely(error):
        return error
    report.point = hash_bytes(text, length, seed)
    return read_conversation(flow, reader, seed, &report.conversation)


cdef int read_conversation(PyObject *flow, const Reader *reader, uint64_t seed,
                           uint64_t *hash) except -1:
    # Computes a hash that is the same for both directions of a conversation.
    cdef uint64_t hashes[3]                 # the hash of the protocol, then the hash of each end
    cdef const char *text
    cdef uint32_t length, i
    cdef int64_t port
    cdef int error
    for i in range(3):
        error = read_text(
            value_of(flow, &reader.conversation[2 * i - 1 if i else 0], reader.slots),
            &text, &length,
        )
        if unlikely(error):
            return error
        hashes[i] = hash_bytes(text, length, seed)
    for i in range(1, 3):
        error = read_integer(value_of(flow, &reader.conversation[2 * i], reader.slots), &port)
        if unlikely(error):
            return error
        hashes[i] = mix64(hashes[i] ^ <uint64_t>port)
    hash[0] = mix64(
        hashes[0] ^ mix64(min(hashes[1], hashes[2])) ^ max(hashes[1], hashes[2])
    )
    return SKIP_NONE


cdef int read_lifecycle(const TableState *table, PyObject *flow, const Reader *reader,
                        Report *report) except -1:
    # Sets `report.initial_delta`: what the report adds if the flow is unknown. If the report adds
    # its last update, also sets `report.last_update`. If the fields do not show whether this is the
    # flow's first report, all deltas in `last_update` are 0 or ABSENT.
    cdef int64_t start, update_start, update_last
    cdef bint invalid_start = read_integer(value_of(flow, &reader.start, reader.slots), &start)
    cdef bint invalid_update_start, invalid_last
    # If FinishType is invalid, this may be a closing report, and its last update may repeat the
    # previous report.
    cdef bint invalid_finish = (
        report.has_omissions and report.omitted_lifecycle >> LIFECYCLE_FINISH & 1
    )
    cdef uint32_t i
    report.initial_delta = INITIAL_TOTAL
    report.start_ms = 0 if invalid_start else start
    report.update_start_ms = 0
    if read_part(flow, &reader.update_start, reader.slots) == NULL and likely(not invalid_finish):
        return 0
    invalid_update_start = read_integer(
        value_of(flow, &reader.update_start, reader.slots), &update_start
    )
    invalid_last = read_integer(value_of(flow, &reader.update_last, reader.slots), &update_last)
    if unlikely(invalid_start or invalid_update_start or invalid_last):
        if invalid_start:
            omit_lifecycle(report, LIFECYCLE_START)
        if invalid_update_start:
            omit_lifecycle(report, LIFECYCLE_UPDATE_START)
        if invalid_last:
            omit_lifecycle(report, LIFECYCLE_UPDATE_LAST)
    if not invalid_update_start:
        report.update_start_ms = update_start
    report.repeats = (report.finish == CLOSING
                      and (invalid_last or update_last != report.last_ms))
    if not invalid_start and not invalid_last and update_last >= start:
        report.age_ms = update_last - start
    for i in range(table.counters):
        # If the total is ABSENT, the delta is also ABSENT. If not, the delta is 0.
        report.last_update[i] = min(report.values[i], <int64_t>0)
    report.initial_delta = INITIAL_LAST_UPDATE
    if unlikely(invalid_start or invalid_update_start or invalid_finish):
        if not report.repeats:
            report.age_ms = -1
    elif update_start == start:
        report.initial_delta = INITIAL_TOTAL
    elif not reader.has_last_update:
        report.initial_delta = INITIAL_LAST_UPDATE_UNREAD
    else:
        read_last_update(table, flow, reader, report)
    return 0


cdef int read_last_update(const TableState *table, PyObject *flow, const Reader *reader,
                          Report *report) except -1:
    cdef uint32_t i
    cdef int error
    for i in range(table.counters):
        if reader.last_update[i].is_read and report.last_update[i] == 0:
            error = read_number(
                flow, &reader.last_update[i], reader.slots, &report.last_update[i]
            )
            if unlikely(error):
                report.last_update[i] = 0
                omit_value(report, &report.omitted_last_update, i, error)
    return 0
