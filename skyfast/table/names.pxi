# Names: results of lookups, together with their interned labels.
#
# A result is a tuple of strings. The key of a row is the tuple's address in memory, together with
# `Lookup.label_set`. The row owns a reference to the tuple, so the address cannot be reused. A row
# is removed if no lookup has returned its result for `timeout_s` seconds. Only the thread that
# updates the table uses these rows. This thread takes the mutex to intern and to release strings.

cdef inline NamesRow *names_at(const TableState *table, uint32_t number) noexcept nogil:
    return <NamesRow *>row_at(&table.names, number)


cdef inline uint32_t names_hash(const Lookup *lookup, PyObject *result) noexcept nogil:
    return <uint32_t>mix64(<size_t>result + lookup.label_set)


cdef inline uint32_t find_names_row(const TableState *table, const Lookup *lookup,
                                    PyObject *result) noexcept nogil:
    cdef uint32_t number = bucket_of(&table.names, names_hash(lookup, result))[0]
    cdef NamesRow *row
    while number:
        row = names_at(table, number)
        if row.result == result and row.label_set == lookup.label_set:
            return number
        number = row.next
    return 0


cdef void add_names_row(TableState *table, const Lookup *lookup, PyObject *result,
                        const LabelValue *label_values) noexcept:
    # Adds a row for a result. `label_values` has the labels of the result. If memory runs out or if
    # there are too many rows, adds nothing. The caller must hold the mutex and the GIL: the GIL is
    # needed for the reference to the result.
    cdef uint32_t number
    cdef NamesRow *row
    if table.names.used >= MAX_NAMES or find_names_row(table, lookup, result):
        return
    number = row_new(&table.names)
    if number == 0:
        return
    row = names_at(table, number)
    row.result = NULL
    if not intern_names(table, lookup, label_values, row.strings):
        row_release(&table.names, number)
        return
    Py_INCREF(<object>result)
    row.result = result
    row.hash = names_hash(lookup, result)
    row.label_set = lookup.label_set
    row.count = lookup.columns
    row.deadline_s = table.views[0].deadline_s
    index_add(&table.names, number)
    wheel_add(&table.names_wheel, row.deadline_s, number, &row.wheel_next)


cdef bint intern_names(TableState *table, const Lookup *lookup, const LabelValue *label_values,
                       uint32_t *strings) noexcept nogil:
    # Sets `strings` to the interned labels of a result. If memory runs out, releases the references
    # to these strings, and returns False.
    cdef uint32_t i
    for i in range(lookup.columns):
        strings[i] = intern_label(table, &label_values[lookup.column + i])
        if strings[i] == 0:
            release_strings(table, strings, i)
            return False
    return True


cdef void release_strings(TableState *table, const uint32_t *strings,
                          uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        string_release(&table.strings, strings[i])


cdef bint expire_names(TableState *table, uint32_t now_s, uint32_t *max_rows) noexcept nogil:
    # Frees rows that are due, and returns whether more rows are due. A freed row keeps its
    # reference to the result until `release_results` is called, because releasing a result requires
    # the GIL.
    cdef TimerWheel *wheel = &table.names_wheel
    cdef uint32_t number
    cdef NamesRow *row
    while True:
        number = wheel_due(wheel, table.names.used, now_s, max_rows)
        if number == 0:
            return wheel.next_s <= now_s
        row = names_at(table, number)
        wheel_remove(wheel, row.wheel_next)
        if row.deadline_s > wheel.next_s:
            wheel_add(wheel, row.deadline_s, number, &row.wheel_next)
        else:
            index_remove(&table.names, number)
            release_strings(table, row.strings, row.count)
            row_release(&table.names, number)


cdef int release_results(TableState *table) except -1:
    # Releases the results of the rows that `expire_names` has freed since `release_results` was
    # last called. Newly freed rows are at the start of the list of free rows.
    cdef uint32_t number = table.names.free_head
    cdef PyObject *result
    while number and names_at(table, number).result != NULL:
        result = names_at(table, number).result
        names_at(table, number).result = NULL
        number = names_at(table, number).next
        Py_DECREF(<object>result)
    return 0


cdef int release_all_results(TableState *table) except -1:
    cdef uint32_t number
    for number in range(1, table.names.end):
        if names_at(table, number).result != NULL:
            Py_DECREF(<object>names_at(table, number).result)
    return 0
