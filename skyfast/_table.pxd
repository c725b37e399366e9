# The data structures of the table: sizes, units and ownership of memory.
#
# All of this is plain C memory that the table owns. References that outlive a call are row numbers,
# never pointers: 4 bytes instead of 8, and 0 means "none".

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


# Limits of a plan, a flow and a table. Python sees these: see _table.pyi.
cpdef enum:
    MAX_TEXT_BYTES = 1024       # maximum size of a label value or UUID
    MAX_ROWS = 1 << 27  # half of all row numbers, because tables can slightly exceed limits
    MAX_VIEWS = 16
    MAX_VALUES = 64             # counters and gauges per plan
    MAX_COLUMNS = 64            # labels per plan, and fields that lookups use
    MAX_VIEW_VALUES = 32        # counters and gauges per view
    MAX_VIEW_COLUMNS = 32
    MAX_RANKED = 1 << 16
    MAX_PARTS = 64              # parts that a page can be divided into
    MAX_BOUNDS = 20             # upper bounds of the buckets of a histogram


cdef struct RowHead:
    # The first fields of every kind of row. `next` links the rows of one bucket of the index. In a
    # free row, `next` links to the next free row.
    uint32_t hash
    uint32_t next


cdef struct Arena:
    # The source of slabs and index segments: memory that is allocated in large pieces and kept. All
    # pieces except the first consist of huge pages: rows are visited in random order, and with
    # small pages, every visit would also cost a page walk.
    char **pieces
    uint32_t piece_count
    uint32_t piece_capacity         # capacity of `pieces`
    char *free                  # unused part of the newest piece
    size_t free_bytes
    size_t bytes                # size of the slabs, segments and long strings in use


cdef struct Rows:
    # A slab allocator for rows of one size, together with an index by hash (linear hashing: the
    # index grows by one bucket at a time). Row numbers start at 1.
    Arena *arena
    char **slabs                # SLAB_ROWS rows each; never moved, freed with the table
    uint32_t slab_count
    uint32_t slab_capacity          # capacity of `slabs`
    uint32_t stride             # bytes per row
    uint32_t fresh              # lowest row number that has never been used
    uint32_t live               # rows in use
    uint32_t free_head          # list of free rows
    uint32_t **segments         # SEGMENT_BUCKETS buckets each; a bucket is a row number
    uint32_t segment_count
    uint32_t segment_capacity
    uint32_t buckets            # buckets in use
    uint32_t mask               # 2^k - 1, with buckets <= mask < 2 * buckets


cdef struct String:
    # An interned string in UTF-8. Label values have the escapes of a page. 64 bytes, one cache
    # line. `refs` counts the cells and keys that contain the string's number.
    uint32_t hash
    uint32_t next
    uint32_t refs               # 0 in a free row
    uint32_t length             # bytes
    char inline[48]             # the string; if it is longer than 48 bytes, a pointer to it


cdef struct TimerWheel:
    # One list of row numbers per second. The number of slots limits how many seconds there are.
    uint32_t *slots
    uint32_t mask
    uint32_t next_s             # the next second whose slot is visited


cdef struct DormantList:
    # Dormant flows in the order in which they became dormant.
    uint32_t head               # the first to be forgotten
    uint32_t tail
    uint32_t count


cdef struct Flow:
    # One report stream of an agent: its UUID as the key, and its latest totals. 32 bytes, plus 8
    # per counter and 4 per link (64 with the default plan).
    #
    # A dormant flow is in a `DormantList`, but not in a connection or the wheel. So three fields of
    # its row have a different meaning: `connection` is the previous row of the list, `wheel_next`
    # is the next row of the list, and `deadline_s` is the time at which the flow was added to the
    # list. A row in such a list can also keep the counters of a removed connection. Then the row's
    # key is a hash of the connection's labels, and `last_ms` is the connection's number of new
    # flows and its start time: see `pack_kept`.
    uint32_t hash               # low half of the key
    uint32_t next
    uint32_t key_high           # high half of the key; for a string key, the string's number
    uint32_t connection         # row of the first view, and the flags below; 0 in a free row
    uint32_t deadline_s         # time of the table's clock at which the flow becomes dormant
    uint32_t wheel_next         # next flow in the same slot of the timer wheel
    int64_t last_ms             # highest `Last` of its reports, Unix milliseconds
    # Next is int64_t totals[counters]; a total is ABSENT if no report contained it. The uint32_t
    # links follow: the conversation and, for live flows, the rows of views with `linked_from_flow`
    # and the strings that lookups use as keys and context. If there are histograms, the last link
    # has the flags FIRST_OBSERVED and CLOSING_OBSERVED, which dormant flows keep.
    #
    # Flags: with STRING_KEY, the UUID is not a 64-bit number. With LABELS_KEY, the row has the
    # counters of a removed connection. With DORMANT, the flow is not live. With ENDED, the flow's
    # latest report was its closing report.


cdef struct Connection:
    # One row per label tuple and view, as pages show it. 32 bytes, plus 8 per value and 4 per label
    # (96 with the default plan).
    uint32_t hash
    uint32_t next
    uint32_t deadline_s         # latest deadline of its flows; 0 in a free row
    uint32_t flows              # number of flow rows that link here, and the flag BACK
    uint32_t created_seq        # sequence number among all rows ever created (modulo 2^32)
    uint32_t links[1]           # first view: rows of further views; else: next in wheel slot
    # Next are int64_t values[counters + gauges], an int64_t number of new flows if the view counts
    # them, an int64_t start time, the view's histograms, and uint32_t cells[columns]. BACK is only
    # used in the first view.
    # It means that the row started with the counters of a removed connection.


cdef struct NamesRow:
    # A result of a lookup, and its labels. 28 bytes, plus 4 per label.
    uint32_t hash
    uint32_t next
    PyObject *result            # the tuple; the row owns a reference
    uint32_t labels             # which labels of the result: see `Lookup.labels`
    uint32_t count              # number of these labels
    uint32_t deadline_s         # time of the table's clock at which the row is removed
    uint32_t wheel_next         # next row in the same slot of the timer wheel
    uint32_t strings[1]         # interned labels


cdef struct Conversation:
    # The capture point whose flows are counted for a conversation. The row exists as long as any
    # flow, live or dormant, links to it. While all these flows are dormant and none of them claims
    # the conversation, a row of another capture point can replace this row.
    uint32_t hash               # low half of the key
    uint32_t next
    uint32_t key_high
    uint32_t flows              # number of live flow rows that link here
    uint64_t point              # hash of the capture point
    uint32_t dormant            # number of dormant flow rows that link here
    uint32_t claimant           # the dormant flow with a claim, or 0 without claim, or SUPERSEDED


cdef struct Cell:
    # A label value of a report. The value is valid for one batch, because its text is borrowed from
    # the flow's objects, or from the result of a rewrite or lookup. `text` is NULL for an integer.
    const char *text            # also NULL if `string` is known from a names row
    uint32_t length
    uint32_t hash
    uint32_t string             # number of the interned string, 0 if not known
    bint escapes                # needs escapes as a label value
    bint repeats                # same string as in the previous flow of the batch that is not live
    int64_t number


cdef struct LeftOut:
    # The omitted values of a report. A value is read from one field or two, for example from one
    # field per direction. `fields[0]` has a bit for each value with an error in its first field;
    # `fields[1]` has a bit for each value with an error in its second field.
    uint64_t fields[2]


cdef struct FlowKey:
    # The UUID of a flow.
    uint64_t number             # `mix64` of the UUID if the UUID is a 64-bit number, else undefined
    const char *string          # NULL if the UUID is a number, else the UUID; borrowed
    uint32_t length


cdef struct Report:
    # One flow of a message, read but not yet applied.
    FlowKey key
    int64_t last_ms
    uint32_t flow               # row number, 0 if the flow is unknown
    bint dormant                # whether the flow was dormant when the batch was read
    int skip                    # reason to skip the report, or SKIP_NONE
    int finish                  # FinishType
    # All counters and gauges; owned by the batch. The last ones are only set in closing reports.
    int64_t *values
    # read only for flows that are not live
    uint32_t connection_hash    # hash of the labels; 0 unless all labels are interned
    int skip_new                # reason to skip the report if the flow is not live
    int worth                   # what the report adds if its flow is unknown: see WORTH_UNREAD
    bint repeats                # a closing report that repeats the previous last update
    int64_t age_ms              # from the flow's start to the update, or -1
    int64_t start_ms            # start of the flow, or 0; not set if `worth` is WORTH_UNREAD
    int64_t update_start_ms     # start of the last update, or 0; likewise
    uint64_t conversation       # hash of the conversation
    uint64_t point
    Cell *cells                 # labels and lookup keys; owned by the batch
    int64_t *last_update        # deltas of the last update, by counter; owned by the batch
    # omitted values
    bint leaves_out             # whether any value is omitted; if not, nothing below is set
    bint uses_marks             # whether the marks matter; set when the report is applied
    bint uses_last_update
    uint32_t leaves_out_marks   # one bit per mark
    LeftOut values_left_out
    LeftOut last_update_left_out


cdef struct ChangedKey:
    # A lookup key with new labels.
    uint32_t string
    uint32_t position           # in the list of keys
    bint found                  # if false, no flow in the slice has the key; the rest is not set
    bint ambiguous              # whether the labels depend on the context
    uint32_t change             # number of the change; 0 if ambiguous, or if a name is invalid


cdef struct Move:
    # A flow with new labels from one of its lookups.
    uint32_t flow
    uint32_t lookup             # index, like the next field
    uint32_t key
    uint32_t change             # number of the change; 0 if the labels stay the same


cdef struct Context:
    # An ambiguous key of a flow, and the strings that its labels depend on.
    uint32_t strings[3]         # the key, the other address, the capture point
    uint32_t move               # index of the flow's move


cdef struct Literal:
    # Bytes that are the same in every line. They are padded, so that whole 16-byte blocks can be
    # copied.
    char *text
    uint32_t length


cdef struct Histogram:
    # The distribution of a value over the flows of a row. A row has int64_t counts[bounds + 1],
    # which are the number of values in each bucket, and an int64_t sum of the values.
    int observes                # OBSERVE_FIRST, OBSERVE_TOTAL or OBSERVE_AGE
    uint32_t moment             # the flag of flows whose value must not be observed again
    uint32_t sources[2]         # indexes in `Report.values`
    uint32_t source_count
    uint32_t bounds
    int64_t limits[MAX_BOUNDS]  # the highest value in each bucket except the last
    uint32_t offset             # offset in a row, in bytes


cdef struct HistogramText:
    # The literals of a histogram's lines, in addition to those between its label values.
    Literal bucket              # the name and what precedes the first label
    Literal sum
    Literal count
    Literal created             # of the sample with the start time in OpenMetrics 1.0
    Literal name                # of the single sample in OpenMetrics 2.0
    Literal bounds[MAX_BOUNDS + 1]  # the label `le` and the end of the labels
    Literal limits[MAX_BOUNDS + 1]  # the bound in the single sample of OpenMetrics 2.0
    Literal end                     # the end of the labels without `le`


cdef struct Family:
    char *heads[3]              # metadata lines of the text format, OpenMetrics 1.0 and 2.0
    uint32_t head_lengths[3]
    uint32_t view
    uint32_t sides              # 1 or 2 series per connection
    uint32_t values[2]          # indexes of the row's values, or FLOWS
    int64_t absent              # only values above this number have a series
    uint32_t decimals           # values are divided by ten to the power of this number
    bint is_counter
    uint32_t name_length
    Literal created             # the name of the samples with start times in OpenMetrics 1.0
    Literal *literals           # columns + 1 literals: before, between and after label values
    Literal second              # replaces the literal at `direction_index` for the second side
    # A histogram has `sides` entries of `View.histograms`, from this index on, instead of values.
    uint32_t histogram
    HistogramText *text         # NULL if the family is not a histogram


cdef struct Amount:
    # The bytes or packets of a row: one counter, or the sum of two.
    uint32_t values[2]          # indexes of the row's values
    uint32_t count              # 0 if the view does not count the amount


cdef struct Bounds:
    # A row is shown if it reaches one of the bounds; 0 is no bound. Without bounds, all are shown.
    int64_t min_bytes
    int64_t min_packets


cdef struct View:
    Rows rows
    TimerWheel wheel            # rows by deadline; not used in the first view
    double timeout_s
    uint32_t columns
    uint32_t cells[MAX_VIEW_COLUMNS]     # indexes of the plan's columns
    uint32_t counters
    uint32_t values             # number of counters and gauges
    uint32_t sources[MAX_VIEW_VALUES]    # indexes of the plan's counters, then gauges
    bint counts_new_flows       # whether the number of new flows follows the counters and gauges
    Amount bytes                # both directions together, like the next
    Amount packets
    Bounds bounds               # read and written under the mutex
    Histogram *histograms
    uint32_t histogram_count
    uint32_t moments            # the moments of these histograms
    uint32_t values_offset          # offset in a row, like the next two fields
    uint32_t start_offset
    uint32_t cells_offset
    bint identifies_connection  # whether the labels tell all conversations apart
    bint linked_from_flow       # links are in flow rows, otherwise in rows of the first view
    uint32_t link               # index of this view's link in such a row
    uint32_t direction_index       # index of the literal that contains the direction
    uint32_t other              # the overflow row, or 0
    uint32_t deadline_s         # deadline that a report of the current update sets
    uint64_t rejected           # reports that required a new row when the view was full
