# Labels: the label values of flows, as label IDs.
#
# A *label ID* represents a label value in 32 bits. It is either the number of an interned string
# with the flag IS_STRING, or a small integer. Code that changes the table's strings needs the
# table's mutex. The thread that updates the table may call `row_key` without the mutex, because
# `row_key` changes nothing.

cdef struct Labels:
    # label IDs of all columns of the plan, then label IDs of the strings that lookups use
    uint32_t ids[MAX_COLUMNS]
    uint32_t interned[MAX_COLUMNS]      # strings to which this struct owns a reference
    uint32_t interned_count             # number of strings in `interned`
    uint32_t connection_hash            # hash of the key in the first view; 0 if not known


cdef struct RowKey:
    uint32_t hash
    uint32_t label_ids[MAX_VIEW_COLUMNS]


cdef inline void row_key(const TableState *table, const View *view, const uint32_t *label_ids,
                         RowKey *key) noexcept nogil:
    # `label_ids` has the label IDs of all columns of the plan.
    cdef uint32_t i
    for i in range(view.columns):
        key.label_ids[i] = label_ids[view.plan_columns[i]]
    key.hash = hash_bytes32(<const char *>key.label_ids, 4 * view.columns, table.seed)


cdef inline void connection_key(const TableState *table, const Labels *labels,
                                RowKey *key) noexcept nogil:
    # Reuses the hash if it is known, because hashing many labels takes as long as a search in the
    # index.
    cdef const View *view = &table.views[0]
    cdef uint32_t i
    if labels.connection_hash == 0:
        row_key(table, view, labels.ids, key)
        return
    for i in range(view.columns):
        key.label_ids[i] = labels.ids[view.plan_columns[i]]
    key.hash = labels.connection_hash


cdef bint intern_labels(TableState *table, const LabelValue *label_values,
                        Labels *labels) noexcept nogil:
    # Sets `labels`, which are valid until `release_interned`. A reference is added to each string,
    # except to strings whose number is already in `label_values`: these strings are not removed
    # while a batch is applied. If memory runs out, returns False, and the caller must not call
    # `release_interned`.
    cdef char digits[32]
    cdef uint32_t i, length, number
    labels.interned_count = 0
    labels.connection_hash = 0
    for i in range(table.label_value_count):
        if likely(label_values[i].string != 0):
            labels.ids[i] = label_values[i].string | IS_STRING
            continue
        if label_values[i].text != NULL:
            number = intern_label(table, &label_values[i])
        elif label_values[i].number < <int64_t>IS_STRING:
            labels.ids[i] = <uint32_t>label_values[i].number
            continue
        else:                           # an integer that is too large for a label ID
            length = <uint32_t>(put_number(digits, label_values[i].number) - digits)
            number = string_intern(&table.strings, digits, length, table.seed)
        if number == 0:
            release_interned(table, labels)
            return False
        labels.ids[i] = number | IS_STRING
        labels.interned[labels.interned_count] = number
        labels.interned_count += 1
    return True


cdef uint32_t intern_label(TableState *table, const LabelValue *label) noexcept nogil:
    cdef char escaped[MAX_LABEL_BYTES]
    cdef uint32_t length
    if likely(not label.escapes):
        return string_intern(&table.strings, label.text, label.length, table.seed)
    length = escape(label.text, label.length, escaped)
    return string_intern(&table.strings, escaped, length, table.seed)


cdef void release_interned(TableState *table, const Labels *labels) noexcept nogil:
    cdef uint32_t i
    for i in range(labels.interned_count):
        string_release(&table.strings, labels.interned[i])


cdef inline void retain_labels(TableState *table, const uint32_t *label_ids,
                               uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        if label_ids[i] & IS_STRING:
            (<String *>row_at(&table.strings, label_ids[i] & ~IS_STRING)).refs += 1


cdef void release_labels(TableState *table, const uint32_t *label_ids,
                         uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        if label_ids[i] & IS_STRING:
            string_release(&table.strings, label_ids[i] & ~IS_STRING)
