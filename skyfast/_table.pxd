# The shapes of what the table keeps: sizes, units and who owns which memory.
#
# Everything here is plain C memory of the table's own. Rows are addressed by number, never by
# pointer, wherever a value outlives one call: 4 bytes instead of 8, and 0 means "none".

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef struct RowHead:
    # What every kind of row begins with. `next` chains the rows of one bucket of the index
    # and, in rows that are not in use, the list of free rows.
    uint32_t hash
    uint32_t next


cdef struct Arena:
    # Where slabs and index segments come from: memory that is asked for in large pieces and kept.
    # Pieces are of huge pages from the second on, for rows are visited in no order, and with
    # small pages every visit would cost a page walk beside the row itself.
    char **pieces
    uint32_t piece_count
    uint32_t piece_room         # pointers allocated in `pieces`
    char *free                  # what is left of the newest piece
    size_t free_bytes
    size_t bytes                # handed out


cdef struct Rows:
    # A slab allocator of rows of one size together with an index by hash (linear hashing:
    # it grows by one bucket at a time). Row numbers start at 1.
    Arena *arena
    char **slabs                # SLAB_ROWS rows each; never moved, never given back
    uint32_t slab_count
    uint32_t slab_room          # pointers allocated in `slabs`
    uint32_t stride             # bytes a row
    uint32_t fresh              # the lowest number that was never in use
    uint32_t live               # rows in use
    uint32_t free_head          # list of rows that were in use and are not
    uint32_t **segments         # SEGMENT_BUCKETS first row numbers each
    uint32_t segment_count
    uint32_t segment_room
    uint32_t buckets            # in use
    uint32_t mask               # 2^k - 1, with buckets <= 2^k < 2 * buckets + 1


cdef struct Text:
    # An interned text, as it stands on a page: UTF-8, escaped for a label value.
    # 64 bytes, one cache line. `refs` counts the cells and keys that hold its number.
    uint32_t hash
    uint32_t next
    uint32_t refs               # 0 in a free row
    uint32_t length             # bytes
    char inline[48]             # the text, or a pointer to it when it is longer than this


cdef struct Flow:
    # One report stream of an agent: known by its UUID, followed by its running totals.
    # 32 bytes and 8 a counter (64 with the default plan).
    uint32_t hash               # low half of the key
    uint32_t next
    uint32_t key_high           # high half of the key; the text's number of a text key
    uint32_t connection         # row number, with TEXT_KEY set when the key is a text
    uint32_t deadline_s         # leaves when the table's clock reaches it
    uint32_t wheel_next         # list of the flows in one slot of the expiry wheel
    int64_t last_ms             # the newest report's `Last`, Unix time
    # int64_t totals[counters] follow


cdef struct Connection:
    # What a page shows: one row a label tuple. 24 bytes, 8 a value and 4 a label
    # (88 with the default plan).
    uint32_t hash
    uint32_t next
    uint32_t deadline_s         # the latest of its flows'
    uint32_t flows              # flow rows that point here; 0 in a free row
    uint64_t birth              # how many connections were born before this one
    # int64_t values[counters + gauges] follow, then uint32_t cells[columns]


cdef struct Cell:
    # A label value on its way into the table. Borrowed from the flow's own objects: valid only
    # while the caller's list is. `text` is NULL for an integer.
    const char *text
    uint32_t length
    uint32_t hash
    uint32_t found              # the text's number, 0 while it is not known to be interned
    bint escapes                # it needs some to become a label value
    bint repeats                # it is that of the unknown flow before
    int64_t number


cdef struct Report:
    # One flow of a message, read but not yet applied.
    uint64_t key
    int64_t last_ms
    const char *key_text        # not NULL: the UUID is no 64-bit number, but this text
    uint32_t key_length
    uint32_t flow               # row number, 0 when the flow is not known
    uint32_t connection_hash    # of its labels; 0 while not all of them are interned
    int skip                    # why it is not to be applied, or SKIP_NONE
    int skip_new                # likewise, if it is not known: read of unknown flows only
    int finish                  # FinishType
    bint has_amounts            # whether what follows was read at all
    bint first                  # its total is all news
    int skip_amounts            # why what the last update added cannot be used, or SKIP_NONE


cdef struct Literal:
    # Bytes that are the same in every line; padded so that whole 16-byte blocks can be copied.
    char *text
    uint32_t length


cdef struct Family:
    char *head                  # HELP and TYPE lines
    uint32_t head_length
    uint32_t sides              # 1 or 2 series a connection
    uint32_t values[2]          # which of the connection's values
    bint omit_zero
    Literal *literals           # columns + 1: before, between and behind the label values
    Literal second              # what stands at `direction_at` in the second side's line
