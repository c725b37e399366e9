# Relabeling: after names have changed, flows move to the connections with the new labels.
#
# Relabeling works in passes. An iterator yields the keys whose names have changed. A pass fetches
# some of these keys. The pass then visits all flow rows in slices: each call of `Relabeling.step`
# processes one slice. Between two slices, the table and the names can change in any way. A pass may
# miss a flow that becomes live during the pass. This does no harm, because `Table.update` gives the
# flow the new names.
#
# A slice has five steps. Steps 1, 3 and 4 need the GIL. Steps 3 and 4 also take the table's mutex,
# but only to intern new labels. Step 2 needs no mutex: it only reads the table, and no other thread
# changes the table.
#
# 1. `find_keys` finds the interned strings of the changed keys.
# 2. `find_moves` finds the live flows that use these strings as keys.
# 3. `resolve_keys` looks up the new names of the keys that these flows use.
# 4. `resolve_contexts` resolves ambiguous keys, using the context of each flow (its other address
#    and its capture point).
# 5. `apply_moves` moves the flows, under the mutex.

cdef struct RowRange:
    # The flow rows that a pass has not visited yet.
    uint32_t next               # number of the first of these rows
    uint32_t end                # number of the last of these rows, plus 1
    uint32_t latest             # number of the row with which the latest slice began


cdef struct Changes:
    # The state of one slice. A *change* is the new result of a lookup for one key. The labels of a
    # change are those elements of the result that at least one of `lookups` reads. Changes are
    # numbered from 1.
    uint32_t lookups[MAX_COLUMNS]       # indexes of the lookups whose names have changed
    uint32_t lookup_count
    uint32_t indexes[MAX_COLUMNS]       # for each label of a change: its index in a result
    uint32_t labels                     # number of labels per change
    uint32_t positions[MAX_COLUMNS]     # for each column: the position of its label in a change
    Py_ssize_t length                   # a result with fewer elements is invalid
    # The label IDs of all changes. This struct owns references to their strings until
    # `changes_destroy`.
    uint32_t *label_ids
    uint32_t change_count
    uint32_t change_capacity
    LabelValue *pending                 # labels of up to BATCH changes, not interned yet
    uint32_t pending_count              # number of changes with labels in `pending`
    ChangedKey *keys                    # sorted by the numbers of their strings
    uint32_t key_count
    Move *moves                         # the moves of one flow are adjacent
    uint32_t move_count
    uint32_t move_capacity
    Context *contexts
    uint32_t context_count
    uint32_t context_capacity


cdef bint relabel_slice(TableState *table, names, keys, list pass_keys, RowRange *rows,
                        Py_ssize_t budget) except -1:
    # Implements `Relabeling.step`. `pass_keys` has the keys of the current pass. After an
    # exception, the next call repeats the slice.
    cdef Changes changes
    cdef RowRange left
    cdef bint done
    cdef bint more = True
    budget = max(budget, <Py_ssize_t>1)
    try:
        changes_init(table, &changes, names)
        if changes.lookup_count == 0:
            return False
        if not pass_keys:
            rows.next = 1
            rows.end = table.flow_rows.end
            more = fetch_keys(table, keys, pass_keys, budget)
            if not pass_keys:
                rows.end = 1
        find_keys(table, &changes, pass_keys)
        left = rows[0]
        left.latest = left.next
        if changes.key_count == 0:
            left.next = left.end
        find_moves(table, &changes, &left, budget)
        if changes.move_count:
            resolve_keys(table, &changes, names, pass_keys)
            resolve_contexts(table, &changes, names)
            with nogil:
                lock_with_priority(table)
                done = apply_moves(table, &changes)
                pthread_mutex_unlock(&table.lock)
            if not done:
                raise MemoryError
        rows[0] = left
        if left.next == left.end:
            pass_keys.clear()
        return more or len(pass_keys) > 0
    finally:
        changes_destroy(table, &changes)


cdef int changes_init(const TableState *table, Changes *changes, names) except -1:
    cdef const Lookup *lookup
    cdef uint32_t i, j, position
    memset(changes, 0, sizeof(Changes))
    for i in range(table.lookup_count):
        lookup = &table.lookups[i]
        if lookup.names != <PyObject *>names:
            continue
        changes.lookups[changes.lookup_count] = i
        changes.lookup_count += 1
        changes.length = max(changes.length, lookup.length)
        for j in range(lookup.column, lookup.column + lookup.columns):
            position = 0
            while (position < changes.labels
                    and changes.indexes[position] != table.name_indexes[j]):
                position += 1
            if position == changes.labels:
                changes.indexes[position] = table.name_indexes[j]
                changes.labels += 1
            changes.positions[j] = position
    changes.pending = <LabelValue *>allocate(BATCH * changes.labels * sizeof(LabelValue))
    return 0


cdef int changes_destroy(TableState *table, Changes *changes) except -1:
    cdef uint32_t i
    lock_with_priority(table)
    for i in range(changes.change_count * changes.labels):
        if changes.label_ids[i]:
            string_release(&table.strings, changes.label_ids[i] & ~IS_STRING)
    pthread_mutex_unlock(&table.lock)
    free(changes.label_ids)
    free(changes.pending)
    free(changes.keys)
    free(changes.moves)
    free(changes.contexts)
    return 0


cdef bint reserve(void **items, uint32_t count, uint32_t *capacity, size_t size) noexcept nogil:
    # Makes space for one more item, or returns False if out of memory.
    cdef uint32_t larger = 2 * capacity[0] + 64
    cdef void *moved
    if count < capacity[0]:
        return True
    moved = realloc(items[0], larger * size)
    if moved == NULL:
        return False
    items[0] = moved
    capacity[0] = larger
    return True


# ---------------------------------------------------------------------------------------------
# Changed names

cdef bint fetch_keys(const TableState *table, keys, list pass_keys, Py_ssize_t count) except -1:
    # Fetches up to `count` keys from the iterator `keys`. If a key is an interned string, adds it
    # to `pass_keys`. Returns whether there may be more keys.
    cdef Py_ssize_t _key
    for _key in range(count):
        key = next(keys, END)
        if key is END:
            return False
        if find_label(table, key):
            pass_keys.append(key)
    return True


cdef int find_keys(const TableState *table, Changes *changes, list pass_keys) except -1:
    # Finds the strings of all keys of the pass. A key that was found in an earlier slice is looked
    # up again, because its string may have been removed since then.
    cdef uint32_t i, string
    changes.keys = <ChangedKey *>allocate(len(pass_keys) * sizeof(ChangedKey))
    for i in range(<uint32_t>len(pass_keys)):
        string = find_label(table, pass_keys[i])
        if string:
            changes.keys[changes.key_count].string = string
            changes.keys[changes.key_count].position = i
            changes.key_count += 1
    if changes.key_count:
        qsort(changes.keys, changes.key_count, sizeof(ChangedKey), compare_keys)
    return 0


cdef int resolve_keys(TableState *table, Changes *changes, names, list pass_keys) except -1:
    cdef list owned = []                # owns the results whose labels are pending
    cdef ChangedKey *key
    cdef uint32_t i
    for i in range(changes.key_count):
        key = &changes.keys[i]
        if not key.found:
            continue
        result = names[pass_keys[key.position]]
        key.ambiguous = result is None
        if result is not None:
            key.change = add_change(table, changes, result, owned)
    intern_pending(table, changes)
    return 0


cdef uint32_t find_label(const TableState *table, str key) except? 0:
    # The number of a key's interned string, or 0 if the key is not an interned string.
    cdef char escaped[MAX_LABEL_BYTES]
    cdef const char *text
    cdef uint32_t length
    if read_text(<PyObject *>key, &text, &length):
        return 0
    if needs_escape(text, length):
        length = escape(text, length, escaped)
        text = escaped
    return string_find(&table.strings, text, length, hash_bytes32(text, length, table.seed))


cdef uint32_t add_change(TableState *table, Changes *changes, result, list owned) except? 0:
    # Adds a change with the labels of `result`. These labels are pending until `intern_pending`.
    # Returns the number of the change, or 0 if `result` is invalid.
    cdef LabelValue *label_values
    cdef uint32_t i
    if not has_names(<PyObject *>result, changes.length):
        return 0
    if changes.pending_count == BATCH:
        intern_pending(table, changes)
        owned.clear()
    label_values = changes.pending + changes.pending_count * changes.labels
    for i in range(changes.labels):
        if read_text(PyTuple_GET_ITEM(<PyObject *>result, changes.indexes[i]),
                     &label_values[i].text, &label_values[i].length):
            return 0
        label_values[i].escapes = needs_escape(label_values[i].text, label_values[i].length)
    if not reserve(<void **>&changes.label_ids, changes.change_count, &changes.change_capacity,
                   changes.labels * sizeof(uint32_t)):
        raise MemoryError
    memset(changes.label_ids + changes.change_count * changes.labels, 0,
           changes.labels * sizeof(uint32_t))
    owned.append(result)
    changes.pending_count += 1
    changes.change_count += 1
    return changes.change_count


cdef int intern_pending(TableState *table, Changes *changes) except -1:
    cdef uint32_t i, string
    cdef uint32_t count = changes.pending_count * changes.labels
    cdef uint32_t *label_ids = changes.label_ids + changes.change_count * changes.labels - count
    cdef bint done = True
    if count == 0:
        return 0
    lock_with_priority(table)
    for i in range(count):
        string = intern_label(table, &changes.pending[i])
        if string == 0:
            done = False
            break
        label_ids[i] = string | IS_STRING
    pthread_mutex_unlock(&table.lock)
    changes.pending_count = 0
    if not done:
        raise MemoryError
    return 0


cdef int compare_keys(const void *one, const void *other) noexcept nogil:
    cdef uint32_t a = (<const ChangedKey *>one).string
    cdef uint32_t b = (<const ChangedKey *>other).string
    return (a > b) - (a < b)


# ---------------------------------------------------------------------------------------------
# Flows with changed names

cdef int find_moves(const TableState *table, Changes *changes, RowRange *rows,
                    Py_ssize_t budget) except -1:
    # Finds up to `budget` live flows with a changed key, and advances `rows`.
    cdef uint64_t *changed = <uint64_t *>allocate((table.strings.end / 64 + 1) * sizeof(uint64_t))
    cdef bint done
    try:
        with nogil:
            done = scan_flows(table, changes, changed, rows, budget)
        if not done:
            raise MemoryError
    finally:
        free(changed)
    return 0


cdef bint scan_flows(const TableState *table, Changes *changes, uint64_t *changed,
                     RowRange *rows, Py_ssize_t budget) noexcept nogil:
    # Implements `find_moves`. `changed` is scratch space: a bit set with a bit for each string. All
    # bits must be 0. Returns False if out of memory.
    cdef const uint32_t *strings
    cdef uint32_t i, string
    cdef uint32_t end = <uint32_t>min(<int64_t>rows.end, rows.next + RELABEL_ROWS * <int64_t>budget)
    cdef Py_ssize_t found = 0
    cdef Flow *flow
    cdef bint moves
    for i in range(changes.key_count):
        string = changes.keys[i].string
        changed[string / 64] |= <uint64_t>1 << (string & 63)
    while rows.next < end and found < budget:
        flow = flow_at(table, rows.next)
        if flow.connection != 0 and not flow.connection & DORMANT:
            strings = links_of(table, flow) + table.first_lookup_string
            moves = False
            for i in range(changes.lookup_count):
                string = strings[table.lookups[changes.lookups[i]].key - table.columns]
                if unlikely(changed[string / 64] >> (string & 63) & 1):
                    moves = True
                    if not add_move(changes, rows.next, changes.lookups[i], string):
                        return False
            found += moves
        rows.next += 1
    return True


cdef bint add_move(Changes *changes, uint32_t flow, uint32_t lookup,
                   uint32_t string) noexcept nogil:
    # Adds a move. Returns False if out of memory.
    cdef Move *move
    if not reserve(<void **>&changes.moves, changes.move_count, &changes.move_capacity,
                   sizeof(Move)):
        return False
    move = &changes.moves[changes.move_count]
    move.flow = flow
    move.lookup = lookup
    move.key = index_of_key(changes, string)
    changes.keys[move.key].found = True
    changes.move_count += 1
    return True


cdef uint32_t index_of_key(const Changes *changes, uint32_t string) noexcept nogil:
    # The index of this string's key in `Changes.keys`. The key must exist.
    cdef uint32_t low = 0
    cdef uint32_t high = changes.key_count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) / 2
        if changes.keys[middle].string < string:
            low = middle + 1
        else:
            high = middle
    return low


# ---------------------------------------------------------------------------------------------
# Ambiguous keys

cdef int resolve_contexts(TableState *table, Changes *changes, names) except -1:
    # Sets `Move.change` in all moves. If several moves have the same ambiguous key and context, the
    # key is resolved only once.
    cdef list owned = []                # owns the results whose labels are pending
    cdef const Context *context
    cdef uint32_t i, change = 0
    find_contexts(table, changes)
    if changes.context_count:
        qsort(changes.contexts, changes.context_count, sizeof(Context), compare_contexts)
    for i in range(changes.context_count):
        context = &changes.contexts[i]
        if i == 0 or compare_contexts(context, context - 1):
            result = names.resolve(
                *[label_text(table, string) for string in context.strings[:3]]
            )
            change = add_change(table, changes, result, owned)
        changes.moves[context.move].change = change
    intern_pending(table, changes)
    return 0


cdef int find_contexts(const TableState *table, Changes *changes) except -1:
    # Sets `Move.change` in moves that need no context. Adds a context for each other move.
    cdef const ChangedKey *key
    cdef const Lookup *lookup
    cdef const uint32_t *strings
    cdef Context *context
    cdef Move *move
    cdef uint32_t i
    for i in range(changes.move_count):
        move = &changes.moves[i]
        key = &changes.keys[move.key]
        lookup = &table.lookups[move.lookup]
        move.change = key.change
        if not key.ambiguous or not lookup.has_context:
            continue
        if not reserve(<void **>&changes.contexts, changes.context_count,
                       &changes.context_capacity, sizeof(Context)):
            raise MemoryError
        strings = links_of(table, flow_at(table, move.flow)) + table.first_lookup_string
        context = &changes.contexts[changes.context_count]
        context.strings[0] = key.string
        context.strings[1] = strings[lookup.other - table.columns]
        context.strings[2] = strings[lookup.point - table.columns]
        context.move = i
        changes.context_count += 1
    return 0


cdef str label_text(const TableState *table, uint32_t string):
    return unescaped(stored_text(<const String *>row_at(&table.strings, string)))


cdef int compare_contexts(const void *one, const void *other) noexcept nogil:
    return memcmp((<const Context *>one).strings, (<const Context *>other).strings,
                  sizeof((<const Context *>one).strings))
