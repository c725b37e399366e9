# Looking up the rows of a batch's reports. This is the second of the three steps of `Table.update`:
# read, look up, apply.
#
# This code makes several passes over a batch, so that the CPU fetches the memory of one flow while
# it processes other flows. The code writes only to the batch, so the thread that updates the table
# runs it without the mutex. The rows of live flows stay valid while the batch is applied. The rows
# of other flows are looked up again when their reports are applied.

cdef void look_up_flows(const TableState *table, Batch *batch) noexcept nogil:
    # Sets `flow` and `dormant` of all reports.
    cdef uint32_t i, number
    cdef Report *report
    cdef const Rows *rows = &table.views[0].rows
    for i in range(batch.size):
        report = &batch.reports[i]
        if report.skip == SKIP_NONE and report.key.string == NULL:
            number = bucket_of(&table.flow_rows, <uint32_t>report.key.number)[0]
            if number:
                prefetch(row_at(&table.flow_rows, number))
                prefetch(row_at(&table.flow_rows, number) + table.flow_rows.stride - 1)
    for i in range(batch.size):
        report = &batch.reports[i]
        if report.skip == SKIP_NONE:
            report.flow = find_flow(table, &report.key)
            if report.flow:
                number = flow_at(table, report.flow).connection
                report.dormant = number & DORMANT != 0
                if likely(not report.dormant):
                    prefetch(row_at(rows, number & ROW))
                    prefetch(row_at(rows, number & ROW) + CACHE_LINE)
    if table.view_count > 1:
        for i in range(batch.size):
            report = &batch.reports[i]
            if report.skip == SKIP_NONE and report.flow and not report.dormant:
                prefetch_views(table, flow_at(table, report.flow))


cdef inline void prefetch_views(const TableState *table, Flow *flow) noexcept nogil:
    cdef Connection *connection = connection_at(&table.views[0], flow.connection & ROW)
    cdef uint32_t i, number
    for i in range(1, table.view_count):
        number = link_of(table, &table.views[i], flow, connection)[0]
        if number:
            prefetch(row_at(&table.views[i].rows, number))


cdef void look_up_labels(const TableState *table, Batch *batch) noexcept nogil:
    # Looks up the labels of flows that are not live, and prefetches the connections with these
    # labels.
    cdef uint32_t i, j, number
    cdef Report *report
    cdef const LabelValue *label_values
    cdef const LabelValue *previous = NULL
    cdef const Rows *rows = &table.views[0].rows
    for i in range(batch.size):
        if needs_labels(&batch.reports[i]):
            label_values = batch.reports[i].label_values
            for j in range(table.label_value_count):
                if label_values[j].string:      # the apply step changes `String.refs`
                    prefetch(row_at(&table.strings, label_values[j].string))
                elif label_values[j].text != NULL and not label_values[j].repeats:
                    number = bucket_of(&table.strings, label_values[j].hash)[0]
                    if number:
                        prefetch(row_at(&table.strings, number))
    for i in range(batch.size):
        report = &batch.reports[i]
        if needs_labels(report):
            report.connection_hash = look_up_strings(table, report.label_values, previous)
            previous = report.label_values
    for i in range(batch.size):
        report = &batch.reports[i]
        if needs_labels(report) and report.connection_hash:
            number = bucket_of(rows, report.connection_hash)[0]
            if number:
                prefetch(row_at(rows, number))


cdef inline bint needs_labels(const Report *report) noexcept nogil:
    return is_not_live(report) and report.skip_if_not_live == SKIP_NONE


cdef uint32_t look_up_strings(const TableState *table, LabelValue *label_values,
                              const LabelValue *previous) noexcept nogil:
    # Sets `string` in label values whose string is already interned. Values that need escapes are
    # looked up later, when the report is applied. Returns the hash of the connection's labels, or 0
    # if the label ID of any label is not known yet.
    cdef uint32_t label_ids[MAX_COLUMNS]
    cdef RowKey key
    cdef uint32_t i
    cdef bint all_found = True
    for i in range(table.label_value_count):
        if label_values[i].string:
            label_ids[i] = label_values[i].string | IS_STRING
            continue
        if label_values[i].text == NULL:
            all_found &= label_values[i].number < <int64_t>IS_STRING
            label_ids[i] = <uint32_t>label_values[i].number
            continue
        if label_values[i].repeats:
            label_values[i].string = previous[i].string
        elif not label_values[i].escapes:
            label_values[i].string = string_find(
                &table.strings, label_values[i].text, label_values[i].length, label_values[i].hash
            )
        all_found &= label_values[i].string != 0
        label_ids[i] = label_values[i].string | IS_STRING
    if not all_found:
        return 0
    row_key(table, &table.views[0], label_ids, &key)
    prefetch(bucket_of(&table.views[0].rows, key.hash))
    return key.hash
