# Lists of dormant flows, and the index of flows by their key. Part of `_table.pyx`, which includes
# it.
#
# A list has the numbers of the rows that are not live, in the order in which they came. The links
# are in fields that live rows use otherwise (see `Flow`), so a row is in one list at most, and in
# none while it leads to a connection. Adding, removing and finding the first take the same time
# whatever the length. Everything runs under the table's mutex.

cdef inline uint32_t flow_find(const Rows *flows, uint64_t key, uint32_t kind) noexcept nogil:
    # The row with a key of that kind (TEXT_KEY, LABELS_KEY or 0), live or dormant; or 0.
    cdef uint32_t number = bucket_of(flows, <uint32_t>key)[0]
    cdef Flow *row
    while number:
        row = <Flow *>row_at(flows, number)
        if (row.hash == <uint32_t>key and row.key_high == <uint32_t>(key >> 32)
                and row.connection & (TEXT_KEY | LABELS_KEY) == kind):
            return number
        number = row.next
    return 0


cdef uint32_t flow_new(Rows *flows, uint64_t key, uint32_t kind) noexcept nogil:
    # A row with a key, in the index and in no list; 0 without memory.
    cdef uint32_t number = row_new(flows)
    cdef Flow *row
    if number:
        row = <Flow *>row_at(flows, number)
        row.hash = <uint32_t>key
        row.key_high = <uint32_t>(key >> 32)
        row.connection = kind
        index_add(flows, number)
    return number


cdef void dormant_append(DormantList *rows, const Rows *flows, uint32_t number,
                         uint32_t now_s) noexcept nogil:
    cdef Flow *row = <Flow *>row_at(flows, number)
    row.connection = row.connection & ~ROW | DORMANT | rows.tail
    row.wheel_next = 0
    row.deadline_s = now_s
    if rows.tail:
        (<Flow *>row_at(flows, rows.tail)).wheel_next = number
    else:
        rows.head = number
    rows.tail = number
    rows.count += 1


cdef void dormant_remove(DormantList *rows, const Rows *flows, uint32_t number) noexcept nogil:
    cdef Flow *row = <Flow *>row_at(flows, number)
    cdef Flow *other
    cdef uint32_t before = row.connection & ROW
    if before:
        (<Flow *>row_at(flows, before)).wheel_next = row.wheel_next
    else:
        rows.head = row.wheel_next
    if row.wheel_next:
        other = <Flow *>row_at(flows, row.wheel_next)
        other.connection = other.connection & ~ROW | before
    else:
        rows.tail = before
    row.connection &= ~(ROW | DORMANT)
    rows.count -= 1
