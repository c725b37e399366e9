# Top k: a min-heap with a fixed capacity finds the rows with the highest values.
#
# A heap exists only during one call of `Table.top` or `Table.top_groups`. Its memory is allocated
# before the first row is visited, so nothing is allocated under the table's mutex.

cdef struct SnapshotValues:
    # The values of a family at the time of a snapshot.
    int64_t *values             # for each row number (from 1): the value, or -1
    # For each row number: the hash of the row's labels. If the hash differs later, the row has been
    # reused.
    uint32_t *hashes
    uint32_t rows               # the highest row number, plus 1


cdef struct TopRow:
    int64_t rank                # the value by which rows are ranked
    uint32_t row
    uint32_t hash               # hash of the row's labels when the row was added to the heap


cdef struct TopK:
    const Family *family
    # Rows are ranked by the growth of their values since this snapshot. If there is no snapshot
    # (NULL), rows are ranked by their values.
    const SnapshotValues *since
    const Search *search        # only rows that match this search are ranked
    TopRow *heap                # the top rows so far; the first has the lowest rank
    uint32_t count, capacity


cdef inline bint top_k_accepts(const TopK *top, int64_t rank) noexcept nogil:
    # Whether a row with this rank belongs to the top rows so far.
    return top.count < top.capacity or (top.capacity != 0 and rank > top.heap[0].rank)


cdef inline void top_k_add(TopK *top, int64_t rank, uint32_t row,
                           uint32_t hash) noexcept nogil:
    # Adds a row to the heap. If the heap is full, this row replaces the row with the lowest rank.
    cdef TopRow *heap = top.heap
    cdef uint32_t index, child
    if top.count < top.capacity:
        index = top.count
        top.count += 1
        while index and heap[(index - 1) / 2].rank > rank:
            heap[index] = heap[(index - 1) / 2]
            index = (index - 1) / 2
    else:
        index = 0
        while True:
            child = 2 * index + 1
            if child + 1 < top.count and heap[child + 1].rank < heap[child].rank:
                child += 1
            if child >= top.count or heap[child].rank >= rank:
                break
            heap[index] = heap[child]
            index = child
    heap[index].rank = rank
    heap[index].row = row
    heap[index].hash = hash


cdef int compare_ranks(const void *one, const void *other) noexcept nogil:
    # Compares by rank (the highest rank comes first), then by row number.
    cdef const TopRow *a = <const TopRow *>one
    cdef const TopRow *b = <const TopRow *>other
    if a.rank != b.rank:
        return (a.rank < b.rank) - (a.rank > b.rank)
    return (a.row > b.row) - (a.row < b.row)
