# The shapes of what the table keeps: sizes, units and who owns which memory.
#
# Everything here is plain C memory of the table's own. Rows are addressed by number, never by
# pointer, wherever a value outlives one call: 4 bytes instead of 8, and 0 means "none".

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


# What a plan, a flow and a table can have at most. Python sees these: see _table.pyi.
cpdef enum:
    MAX_TEXT_BYTES = 1024       # of a label value or UUID; a longer one skips its flow
    MAX_ROWS = 1 << 27          # row numbers share their 32 bits with flags, and some are extra
    MAX_VIEWS = 16
    MAX_VALUES = 64             # counters and gauges of one plan
    MAX_COLUMNS = 64            # labels of one plan, and keys of dynamic ones
    MAX_VIEW_VALUES = 32        # of one view
    MAX_VIEW_COLUMNS = 32
    MAX_RANKED = 1 << 16


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


cdef struct String:
    # An interned text, as it stands on a page: UTF-8, escaped for a label value.
    # 64 bytes, one cache line. `refs` counts the cells and keys that hold its number.
    uint32_t hash
    uint32_t next
    uint32_t refs               # 0 in a free row
    uint32_t length             # bytes
    char inline[48]             # the text, or a pointer to it when it is longer than this


cdef struct TimerWheel:
    # One list of row numbers a second, over as many seconds as there are slots.
    uint32_t *slots
    uint32_t mask
    uint32_t next_s             # the second whose slot comes next


cdef struct DormantList:
    # Dormant flows in the order in which they became dormant.
    uint32_t head               # the first to be forgotten
    uint32_t tail
    uint32_t count


cdef struct Flow:
    # One report stream of an agent: known by its UUID, followed by its running totals.
    # 32 bytes, 8 a counter and 4 a link (64 with the default plan).
    #
    # A dormant flow is in a list, and in neither a connection nor the wheel: `connection` has the
    # row before it, `wheel_next` the row after it, and `deadline_s` is the time at which it was
    # appended. The counters of a connection that has left are in such a row, too; its key is a hash
    # of the labels.
    uint32_t hash               # low half of the key
    uint32_t next
    uint32_t key_high           # high half of the key; the text's number of a text key
    uint32_t connection         # row of the first view, and the flags below; 0 in a free row
    uint32_t deadline_s         # becomes dormant when the table's clock reaches it
    uint32_t wheel_next         # list of the flows in one slot of the expiry wheel
    int64_t last_ms             # the newest report's `Last`, Unix time
    # int64_t totals[counters] follow, ABSENT where no report had the part; then uint32_t links: the
    # conversation and, of live flows, rows of other views and the strings that dynamic labels were
    # asked with. Flags: STRING_KEY, the UUID is no 64-bit number; LABELS_KEY, it is a connection's
    # row; DORMANT; ENDED, the latest report was the closing one.


cdef struct Connection:
    # What a page shows: one row a label tuple and view. 24 bytes, 8 a value and 4 a label
    # (88 with the default plan).
    uint32_t hash
    uint32_t next
    uint32_t deadline_s         # the latest of its flows'; 0 in a free row
    uint32_t flows              # flow rows that lead here, and the flag BACK
    uint32_t created_seq        # its number, of all rows that were ever created (modulo 2^32)
    uint32_t links[1]           # in the first view rows of others, else the list of a wheel's slot
    # int64_t values[counters + gauges] follow, then uint32_t cells[columns]. BACK, in the first
    # view: the row began with the counters of a connection that had left.


cdef struct Conversation:
    # Which capture point the flows of a conversation are taken from. It stays as long as flows do,
    # dormant ones too; while all are dormant, another point can have a row in its place.
    uint32_t hash               # low half of the key
    uint32_t next
    uint32_t key_high
    uint32_t flows              # live flow rows that lead here
    uint64_t point              # hash of the capture point
    uint32_t dormant            # dormant ones
    bint superseded             # another point has the conversation


cdef struct Cell:
    # A label value on its way into the table. Borrowed from the flow's own objects, or from what a
    # rewrite returned: valid for one batch. `text` is NULL for an integer.
    const char *text
    uint32_t length
    uint32_t hash
    uint32_t found              # the text's number, 0 while it is not known to be interned
    bint escapes                # it needs some to become a label value
    bint repeats                # it is that of the unknown flow before
    int64_t number


cdef struct LeftOut:
    # Which values of a report are left out: for the first field of each, and for the second.
    uint64_t fields[2]


cdef struct FlowKey:
    # A UUID.
    uint64_t number             # as a 64-bit number, mixed; undefined if it is not one
    const char *string          # then it is this string, borrowed from the flow; else NULL
    uint32_t length


cdef struct Report:
    # One flow of a message, read but not yet applied.
    FlowKey key
    int64_t last_ms
    uint32_t flow               # row number, 0 when the flow is not known
    bint dormant                # the flow, when the batch was read
    int skip                    # why it is not to be applied, or SKIP_NONE
    int finish                  # FinishType
    int64_t *values             # of all counters and gauges; the batch's memory
    # what follows is read of flows only that are not live
    uint32_t connection_hash    # of its labels; 0 while not all of them are interned
    int skip_new                # why it is not to be applied, if it is not live
    int worth                   # what it counts for if it is not known: see WORTH_UNREAD
    bint repeats                # a closing report whose last update is that of the one before
    int64_t age_ms              # from the flow's beginning to the update, or -1
    uint64_t conversation       # hashes
    uint64_t point
    Cell *cells                 # labels, and what dynamic ones are made of; the batch's memory
    int64_t *last_update        # what its latest update added to each counter; likewise
    # values that are left out
    bint leaves_out             # there are any: else nothing below is set
    bint uses_marks             # those that matter for the report, decided as it is applied
    bint uses_last_update
    uint32_t leaves_out_marks   # a bit for each mark
    LeftOut values_left_out
    LeftOut last_update_left_out


cdef struct Change:
    # A dynamic label that is to become another: of flows whose `slot`th key is the text `key`.
    uint32_t key
    uint32_t slot
    uint32_t column
    uint32_t cell


cdef struct Literal:
    # Bytes that are the same in every line; padded so that whole 16-byte blocks can be copied.
    char *text
    uint32_t length


cdef struct Family:
    char *heads[2]              # HELP and TYPE lines: of the text format, and of OpenMetrics
    uint32_t head_lengths[2]
    uint32_t view
    uint32_t sides              # 1 or 2 series a connection
    uint32_t values[2]          # which of the row's values, or FLOWS
    int64_t absent              # values up to this one have no series
    uint32_t decimals           # values are shown divided by ten to the power of this
    Literal *literals           # columns + 1: before, between and behind the label values
    Literal second              # what stands at `direction_at` in the second side's line


cdef struct View:
    Rows rows
    TimerWheel wheel            # of rows that leave by themselves: not of the first view
    double timeout_s
    uint32_t columns
    uint32_t cells[MAX_VIEW_COLUMNS]     # which of the plan's columns
    uint32_t counters
    uint32_t values             # counters and gauges
    uint32_t sources[MAX_VIEW_VALUES]    # which of the plan's counters, which of its gauges
    uint32_t values_at          # where values and cells begin in a row
    uint32_t cells_at
    bint identifies_connection  # flows with the same labels are of the same connection
    bint linked_from_flow       # a flow's row has the link; else its row of the first view has it
    uint32_t link               # where in either
    uint32_t direction_at       # the literal that tells the two sides apart
    uint32_t other              # the row of what found no room, or 0
    uint32_t deadline_s         # of a report of the batch at hand
    uint64_t rejected           # reports that found no room for their row
