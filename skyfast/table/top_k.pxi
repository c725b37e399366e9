# Top k: a bounded min-heap finds the rows with the highest values.
#
# A heap belongs to one call of a method, and never grows, because rows are visited under the
# table's mutex.

cdef struct SnapshotValues:
    # The values of a family when a snapshot was taken, by row number (from 1). The hash of the
    # row's labels is stored with each value, because the row can be reused later.
    int64_t *values
    uint32_t *hashes
    uint32_t rows


cdef struct TopRow:
    # The heap's root is the row with the lowest rank.
    int64_t rank
    uint32_t row
    uint32_t hash               # hash of the row's labels when the row was added to the heap


cdef struct TopK:
    const Family *family
    const SnapshotValues *since     # NULL: rows are ranked by value, not by growth
    const Search *search        # only rows that match this search are ranked
    TopRow *heap
    uint32_t count, capacity


cdef inline bint top_k_accepts(const TopK *top, int64_t rank) noexcept nogil:
    # Whether a row of this rank is among the top rows so far.
    return top.count < top.capacity or (top.capacity != 0 and rank > top.heap[0].rank)


cdef inline void top_k_add(TopK *top, int64_t rank, uint32_t row,
                           uint32_t hash) noexcept nogil:
    # If the heap is full, the new row replaces the row with the lowest rank.
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
    # Sorts by rank, the highest first, then by row number.
    cdef const TopRow *a = <const TopRow *>one
    cdef const TopRow *b = <const TopRow *>other
    if a.rank != b.rank:
        return (a.rank < b.rank) - (a.rank > b.rank)
    return (a.row > b.row) - (a.row < b.row)
