# Groups: the connections of a view are grouped by the values of some labels, and the values of each
# group are combined.
#
# Groups exist only during one call of `Table.top_groups`. Memory for the maximum number of groups
# is allocated before the first row is visited. Unused parts of it take no physical memory.
#
# Rows are visited in slices. If there are too many groups after a slice, the half with the lowest
# ranks is removed, and their values are added to `Groups.other`. Later connections of a removed
# group form a new group, without the values that were added to `Groups.other`.

cdef enum:
    GROUP_TEXT_BYTES = 256      # average space for the label values of a group, in bytes

cdef enum:
    # How the values of a group's connections are combined.
    COMBINE_SUM
    COMBINE_LEAST
    COMBINE_MOST


cdef struct Group:
    # After the struct, a group has one int64_t for each series: the combined value of the group's
    # connections, or ABSENT if none of them has a value.
    uint64_t hash               # hash of the label values; identifies the group
    int64_t rank                # the value by which groups are ranked, or ABSENT
    # Offset of the label values in `Groups.text`. Two bytes before each label value have its
    # length.
    uint32_t text
    uint32_t text_length        # total size of the label values and their lengths, in bytes
    uint32_t connections        # number of connections
    bint is_top                 # whether the group is kept; all other groups are added to `other`


cdef struct Groups:
    const View *view
    const uint32_t *columns     # columns of the labels by which rows are grouped
    uint32_t column_count
    uint32_t series             # number of series per connection
    int *kinds                  # by series: how values are combined, for example COMBINE_SUM
    int rank_kind               # how the connections' ranks are combined, for example COMBINE_SUM
    int64_t *values             # by series: the value of the current row
    char *groups                # `capacity` groups, then `other`
    size_t stride               # size of a group and its values, in bytes
    uint32_t count              # number of groups in use
    uint32_t limit              # maximum number of groups after a slice
    uint32_t capacity           # maximum number of groups during a slice: `limit` + RENDER_ROWS
    uint32_t *slots             # hash table of group numbers (from 1); at most half full
    uint32_t mask               # number of slots - 1
    char *text                  # label values of all groups
    size_t text_used, text_capacity
    TopRow *order               # scratch space to sort groups by rank
    bint is_full                # whether `text` had no space for a new group
    bint is_incomplete          # whether values of a top group may have been added to `other`
    Group *other                # all groups that are not among the top groups, combined


cdef inline Group *group_at(const Groups *groups, uint32_t index) noexcept nogil:
    return <Group *>(groups.groups + index * groups.stride)


cdef inline int64_t *values_of_group(Group *group) noexcept nogil:
    return <int64_t *>(<char *>group + sizeof(Group))


cdef void *allocate_lazily(size_t count, size_t size) except NULL:
    cdef void *memory = calloc(count, size)
    if memory == NULL:
        raise MemoryError
    return memory


cdef int groups_init(Groups *groups, TableState *table, const Family *ranked,
                     uint32_t limit) except -1:
    # Before the call, the caller must set `view`, `columns` and `column_count`, and set all other
    # fields to 0. Even after an exception, the caller must call `groups_destroy`.
    cdef const Family *family
    cdef uint32_t i, direction
    cdef uint32_t slots = 4
    groups.kinds = <int *>allocate(2 * table.family_count * sizeof(int))
    groups.values = <int64_t *>allocate(2 * table.family_count * sizeof(int64_t))
    for i in range(table.family_count):
        family = &table.families[i]
        if not has_values(table, family, groups.view):
            continue
        for direction in range(family.directions):
            groups.kinds[groups.series] = kind_of_series(table, family, direction)
            groups.series += 1
    groups.rank_kind = kind_of_series(table, ranked, 0)
    groups.limit = limit
    groups.capacity = limit + RENDER_ROWS
    groups.stride = sizeof(Group) + groups.series * sizeof(int64_t)
    groups.groups = <char *>allocate_lazily(groups.capacity + 1, groups.stride)
    groups.text_capacity = <size_t>groups.capacity * GROUP_TEXT_BYTES
    groups.text = <char *>allocate_lazily(groups.text_capacity, 1)
    groups.order = <TopRow *>allocate_lazily(groups.capacity, sizeof(TopRow))
    while slots < 2 * groups.capacity:
        slots *= 2
    groups.mask = slots - 1
    groups.slots = <uint32_t *>allocate_lazily(slots, sizeof(uint32_t))
    groups.other = group_at(groups, groups.capacity)
    group_init(groups, groups.other, 0)
    return 0


cdef void groups_destroy(Groups *groups) noexcept:
    free(groups.kinds)
    free(groups.values)
    free(groups.groups)
    free(groups.text)
    free(groups.order)
    free(groups.slots)


cdef int kind_of_series(const TableState *table, const Family *family, uint32_t direction) noexcept:
    cdef const View *view = view_of(table, family)
    cdef uint32_t value
    if family.values[direction] >= view.values:     # the number of flows or of new flows
        return COMBINE_SUM
    value = view.sources[family.values[direction]]
    if value < table.counters:
        return COMBINE_SUM
    return COMBINE_LEAST if table.gauge_kinds[value] == KEEP_LEAST else COMBINE_MOST


cdef inline void combine(int64_t *total, int64_t value, int kind) noexcept nogil:
    if value == ABSENT:
        return
    if kind == COMBINE_SUM:
        add(total, value)
    elif total[0] == ABSENT:
        total[0] = value
    elif kind == COMBINE_LEAST:
        total[0] = min(total[0], value)
    else:
        total[0] = max(total[0], value)


cdef inline void group_init(const Groups *groups, Group *group, uint64_t hash) noexcept nogil:
    cdef uint32_t i
    group.hash = hash
    group.rank = ABSENT
    group.text_length = 0
    group.connections = 0
    group.is_top = False
    for i in range(groups.series):
        values_of_group(group)[i] = ABSENT


cdef void group_add(const Groups *groups, Group *group, uint32_t connections, int64_t rank,
                    const int64_t *values) noexcept nogil:
    cdef uint32_t i
    group.connections += connections
    combine(&group.rank, rank, groups.rank_kind)
    for i in range(groups.series):
        combine(&values_of_group(group)[i], values[i], groups.kinds[i])


cdef inline void group_move_to_other(Groups *groups, Group *group) noexcept nogil:
    group_add(groups, groups.other, group.connections, group.rank, values_of_group(group))


cdef void find_groups(TableState *table, const TopK *top, Groups *groups) noexcept nogil:
    cdef const View *view = groups.view
    cdef Scan scan = scan_until(view, NO_END)
    cdef Connection *row
    cdef uint32_t number
    cdef int64_t rank
    while scan_slice(table, &scan):
        for number in range(scan.start, scan.stop):
            row = scan_row(view, number)
            if row.deadline_s == 0 or not row_matches(table, row, top.search):
                continue
            rank = rank_of(view, top.family, row)
            if top.since != NULL:
                rank = growth_since(top.since, number, row, rank)
            copy_values(table, view, row, groups.values)
            group_add(groups, group_of(groups, table, row), 1, rank, groups.values)
        if groups.count > groups.limit or groups.is_full:
            # `remove_half` takes milliseconds, so it must not run under the mutex.
            pthread_mutex_unlock(&table.lock)
            remove_half(groups)
            pthread_mutex_lock(&table.lock)


cdef Group *group_of(Groups *groups, const TableState *table, Connection *row) noexcept nogil:
    # Returns the group of a row. If there is no space for the text of a new group, returns `other`.
    cdef const uint32_t *label_ids = label_ids_of(groups.view, row)
    cdef char digits[2 * MAX_INTEGER_DIGITS]
    cdef const char *text
    cdef uint64_t hash = table.seed
    cdef uint32_t i, length, slot
    cdef size_t size = 0
    cdef Group *group
    for i in range(groups.column_count):
        text = label_bytes(table, label_ids[groups.columns[i]], digits, &length)
        hash = mix64(hash_bytes(text, length, hash) + i + 1)
        size += 2 + length
    slot = hash & groups.mask
    while groups.slots[slot]:
        group = group_at(groups, groups.slots[slot] - 1)
        if group.hash == hash:
            return group
        slot = (slot + 1) & groups.mask
    if groups.text_used + size > groups.text_capacity:
        groups.is_full = groups.is_incomplete = True
        return groups.other
    group = group_at(groups, groups.count)
    group_init(groups, group, hash)
    groups.count += 1
    groups.slots[slot] = groups.count
    group.text = groups.text_used
    group.text_length = size
    for i in range(groups.column_count):
        text = label_bytes(table, label_ids[groups.columns[i]], digits, &length)
        groups.text[groups.text_used] = <char>(length & 255)
        groups.text[groups.text_used + 1] = <char>(length >> 8)
        memcpy(groups.text + groups.text_used + 2, text, length)
        groups.text_used += 2 + length
    return group


cdef void remove_half(Groups *groups) noexcept nogil:
    cdef uint32_t count = groups.count
    cdef uint32_t i, slot
    cdef Group *group
    cdef Group *moved
    for i in range(count):
        groups.order[i] = TopRow(group_at(groups, i).rank, i, 0)
    qsort(groups.order, count, sizeof(TopRow), compare_ranks)
    for i in range(count / 2):
        group_at(groups, groups.order[i].row).is_top = True
    memset(groups.slots, 0, (groups.mask + <size_t>1) * sizeof(uint32_t))
    groups.count = 0
    groups.text_used = 0
    groups.is_full = False
    groups.is_incomplete = True
    for i in range(count):
        group = group_at(groups, i)
        if not group.is_top:
            group_move_to_other(groups, group)
            continue
        group.is_top = False
        memmove(groups.text + groups.text_used, groups.text + group.text, group.text_length)
        group.text = groups.text_used
        groups.text_used += group.text_length
        moved = group_at(groups, groups.count)
        memmove(moved, group, groups.stride)
        groups.count += 1
        slot = moved.hash & groups.mask
        while groups.slots[slot]:
            slot = (slot + 1) & groups.mask
        groups.slots[slot] = groups.count


cdef tuple top_groups(TableState *table, uint32_t family, uint32_t count, tuple columns,
                      const SnapshotValues *since, str containing, dict value_sets, uint32_t limit):
    # Implements `Table.top_groups`.
    cdef Search search
    cdef Groups groups
    cdef TopK top
    cdef uint32_t numbers[MAX_VIEW_COLUMNS]
    cdef uint32_t i
    memset(&groups, 0, sizeof(Groups))
    for i, column in enumerate(columns):
        numbers[i] = column
    groups.view = view_of(table, &table.families[family])
    groups.columns = numbers
    groups.column_count = len(columns)
    top.family = &table.families[family]
    top.since = since
    top.search = &search
    top.count = 0
    top.capacity = count
    top.heap = NULL
    try:
        search_init(&search, table, groups.view, containing, value_sets)
        groups_init(&groups, table, top.family, limit)
        top.heap = <TopRow *>allocate(count * sizeof(TopRow))
        with nogil:
            find_groups(table, &top, &groups)
            choose_groups(&groups, &top)
        entries = [shown_group(&groups, top.heap[i].row) for i in range(top.count)]
        other = groups.other.connections, *shown_values(&groups, groups.other)
        return entries, other, groups.count, bool(groups.is_incomplete)
    finally:
        search_destroy(&search)
        groups_destroy(&groups)
        free(top.heap)


cdef void choose_groups(Groups *groups, TopK *top) noexcept nogil:
    # Finds the groups with the highest ranks, and adds all other groups to `other`.
    cdef uint32_t i
    cdef int64_t rank
    for i in range(groups.count):
        rank = group_at(groups, i).rank
        if rank >= 0 and top_k_accepts(top, rank):
            top_k_add(top, rank, i, 0)
    qsort(top.heap, top.count, sizeof(TopRow), compare_ranks)
    for i in range(top.count):
        group_at(groups, top.heap[i].row).is_top = True
    for i in range(groups.count):
        if not group_at(groups, i).is_top:
            group_move_to_other(groups, group_at(groups, i))


cdef tuple shown_group(const Groups *groups, uint32_t index):
    cdef Group *group = group_at(groups, index)
    cdef const char *text = groups.text + group.text
    cdef uint32_t _, length
    cdef list labels = []
    for _ in range(groups.column_count):
        length = <uint8_t>text[0] | <uint32_t><uint8_t>text[1] << 8
        labels.append(unescaped(text[2:2 + length].decode()))
        text += 2 + length
    rank, values = shown_values(groups, group)
    return rank, tuple(labels), values, group.connections


cdef tuple shown_values(const Groups *groups, Group *group):
    # The rank and the values of a group. Each ABSENT number is replaced by None.
    cdef const int64_t *values = values_of_group(group)
    cdef uint32_t i
    shown = [values[i] if values[i] >= 0 else None for i in range(groups.series)]
    return group.rank if group.rank >= 0 else None, tuple(shown)
