# The data structures of the table: sizes, units and ownership of memory.
#
# The table owns all this memory, and allocates it with C functions. Structures refer to rows by row
# number, because a number takes 4 bytes and a pointer takes 8. Row number 0 means "none".

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


# Limits of a plan, a flow and a table. Python code can read them: see _table.pyi.
cpdef enum:
    MAX_TEXT_BYTES = 1024       # maximum size of a label value or UUID, in bytes
    MAX_ROWS = 1 << 27          # half of 2^28 row numbers: a table can slightly exceed its limits
    MAX_VIEWS = 16
    MAX_VALUES = 64             # counters and gauges per plan
    MAX_COLUMNS = 64            # per plan: labels, plus fields that lookups use
    MAX_VIEW_VALUES = 32        # counters and gauges per view
    MAX_VIEW_COLUMNS = 32
    MAX_RANKED = 1 << 16
    MAX_PARTS = 64              # parts that a page can be divided into
    MAX_BOUNDS = 20             # upper bounds of the buckets of a histogram


cdef struct RowHead:
    # The first fields of every kind of row. `next` is the next row in the same bucket of the index,
    # or the next free row.
    uint32_t hash
    uint32_t next


cdef struct Arena:
    # The memory for slabs and index segments, in large blocks that are freed with the table. All
    # blocks except the first use huge pages. With small pages, almost every visit of a row would
    # miss the TLB, because rows are visited in random order.
    char **blocks
    uint32_t block_count
    uint32_t block_capacity
    char *free                  # unused part of the newest block
    size_t free_bytes
    size_t bytes                # size of the slabs, segments and long strings


cdef struct Rows:
    # A slab allocator for rows of one size, with an index by hash. The index uses linear hashing:
    # it grows by one bucket at a time.
    Arena *arena
    char **slabs                # SLAB_ROWS rows each; not moved, and freed only with the table
    uint32_t slab_count
    uint32_t slab_capacity
    uint32_t stride             # bytes per row
    uint32_t end                # lowest row number that has never been used; numbers start at 1
    uint32_t used
    uint32_t free_head
    uint32_t **segments         # SEGMENT_BUCKETS buckets each: the number of its first row
    uint32_t segment_count
    uint32_t segment_capacity
    uint32_t buckets
    uint32_t mask               # 2^k - 1, with buckets <= mask < 2 * buckets


cdef struct String:
    # An interned string in UTF-8; label values are stored with their escapes. A row takes 64 bytes:
    # one cache line.
    uint32_t hash
    uint32_t next
    uint32_t refs               # number of references (see `strings.pxi`); 0 in a free row
    uint32_t length             # bytes
    char inline[48]             # the string, or a pointer to it if it is longer than 48 bytes


cdef struct TimerWheel:
    # One list of row numbers per second, in a ring of slots.
    uint32_t *slots
    uint32_t mask
    uint32_t next_s             # the next second whose slot is visited


cdef struct DormantList:
    uint32_t head               # the row that is forgotten first
    uint32_t tail
    uint32_t count


cdef struct Flow:
    # One flow, as an agent reports it, with its latest totals. The key is the flow's UUID. A row
    # takes 32 bytes, plus 8 per counter and 4 per link (64 with the default plan).
    #
    # A dormant flow (see `_table.pyx`) is in a `DormantList`, not in a connection or the timer
    # wheel. Its `connection` is the previous row of the list, and its `wheel_next` is the next row.
    # `deadline_s` is the time at which the flow was added to the list. Instead of a flow, a dormant
    # row can store the counters of a removed connection. The key of such a row is a hash of the
    # connection's labels, and its `last_ms` is a result of `pack_saved`.
    uint32_t hash               # low half of the key
    uint32_t next
    uint32_t key_high           # high half of the key; for a string key, the string's number
    uint32_t connection         # row of the first view, and the flags below; 0 in a free row
    uint32_t deadline_s         # time of the table's clock at which the flow becomes dormant
    uint32_t wheel_next         # next flow in the same slot of the timer wheel
    int64_t last_ms             # highest `Last` of its reports, Unix milliseconds
    # After the struct: int64_t totals[counters]. A total is ABSENT if no report contained it. Then
    # uint32_t links in this order:
    # * the flow's conversation, if there are conversations
    # * only valid in live flows: the flow's rows in views with `linked_from_flow`
    # * only valid in live flows: the strings that lookups use as keys and context
    # * if there are histograms: the flags FIRST_OBSERVED and CLOSING_OBSERVED
    #
    # Flags in `connection`:
    # * STRING_KEY: the UUID is not a 64-bit number.
    # * LABELS_KEY: the key is a hash of labels; the row has the counters of a removed connection.
    # * DORMANT: the flow is not live.
    # * ENDED: the flow's latest report was its closing report.


cdef struct Connection:
    # One row of a view: a label tuple and its values, as pages show them. A row takes 32 bytes,
    # plus 8 per value and 4 per label (96 with the default plan).
    uint32_t hash
    uint32_t next
    uint32_t deadline_s         # from this time on, pages do not show the row; 0 in a free row
    uint32_t flows              # number of flow rows that link here, and the flag RESTORED
    uint32_t created_seq        # sequence number of the row's creation, modulo 2^32
    # In the first view: the rows that this row links to in other views. In any other view: the next
    # row in the same slot of the timer wheel.
    uint32_t links[1]
    # After the struct, in this order:
    # * int64_t values[counters + gauges]
    # * int64_t number of new flows, if the view counts new flows
    # * int64_t start time
    # * the view's histograms
    # * uint32_t label_ids[columns]
    #
    # Flag RESTORED: this row of the first view started with the counters of a removed connection.


cdef struct NamesRow:
    # A result of a lookup, and its labels. A row takes 36 bytes, plus 4 per label, rounded up to a
    # multiple of 8.
    uint32_t hash
    uint32_t next
    PyObject *result            # the tuple; the row owns a reference
    uint32_t label_set          # which labels of the result: see `Lookup.label_set`
    uint32_t count              # number of these labels
    uint32_t deadline_s         # time of the table's clock at which the row is removed
    uint32_t wheel_next         # next row in the same slot of the timer wheel
    uint32_t strings[1]         # interned labels


cdef struct Conversation:
    # The capture point whose flows are counted for a conversation: see `table/conversations.pxi`.
    # The row exists while any live or dormant flow links to it.
    uint32_t hash               # low half of the key
    uint32_t next
    uint32_t key_high
    uint32_t flows              # number of live flow rows that link here
    uint64_t point              # hash of the capture point
    uint32_t dormant            # number of dormant flow rows that link here
    uint32_t claimant           # row of the flow that claims the conversation, or 0, or SUPERSEDED


cdef struct LabelValue:
    # A label value of a report, only valid for one batch: its text is borrowed.
    const char *text            # NULL: the value is an integer, or `string` comes from a `NamesRow`
    uint32_t length
    uint32_t hash
    uint32_t string             # number of the interned string, 0 if not known
    bint escapes                # whether the text needs escapes as a label value
    bint repeats                # whether the previous report with labels has the same string
    int64_t number


cdef struct OmittedFields:
    # The values of a report that are omitted because a field is invalid. A value is read from one
    # or two fields, for example one per direction. `fields[0]` has a bit for each value whose first
    # field is invalid, and `fields[1]` for each value whose second field is invalid.
    uint64_t fields[2]


cdef struct FlowKey:
    uint64_t number             # hash of the UUID by `mix64`; undefined if `string` is set
    const char *string          # the UUID, borrowed; NULL if the UUID is a 64-bit number
    uint32_t length


cdef struct Report:
    # The fields of one decoded flow, as read for one batch.
    FlowKey key
    int64_t last_ms
    uint32_t flow               # row number, 0 if the flow is unknown
    bint dormant                # whether the flow was dormant when the batch was read
    int skip                    # reason to skip the report, or SKIP_NONE
    int finish                  # FinishType
    # counters, gauges, and closing gauges (only set in closing reports); owned by the batch
    int64_t *values
    # the fields up to `last_update` are only read if the flow is not live
    uint32_t connection_hash    # hash of the labels; 0 unless all labels are interned
    int skip_if_not_live        # reason to skip the report if the flow is not live
    int initial_delta           # what the report adds if its flow is unknown: INITIAL_UNREAD, ...
    bint repeats                # whether this is a closing report that repeats the previous report
    int64_t age_ms              # ms from the flow's start to its last update; -1: unknown
    int64_t start_ms            # start of the flow, or 0; not set if INITIAL_UNREAD
    int64_t update_start_ms     # start of the last update, or 0; not set if INITIAL_UNREAD
    uint64_t conversation       # hash of the conversation
    uint64_t point
    LabelValue *label_values    # labels, then strings of lookups; owned by the batch
    int64_t *last_update        # deltas of the last update, by counter; owned by the batch
    # omitted values
    bint has_omissions          # whether any value is omitted; if not, no field below is set
    # set when the report is applied: omissions are only counted in fields that the report uses
    bint uses_lifecycle
    bint uses_last_update
    uint32_t omitted_lifecycle  # one bit per omitted lifecycle field
    OmittedFields omitted_values
    OmittedFields omitted_last_update


cdef struct ChangedKey:
    # A lookup key whose labels have changed.
    uint32_t string
    uint32_t position           # index in the list of keys
    bint found                  # if false, no flow has the key, and no field below is set
    bint ambiguous              # whether the labels depend on the context
    uint32_t change             # number of the change (see `Changes`); 0: ambiguous or invalid


cdef struct Move:
    # A flow whose labels may change, because one of its lookups has a changed key. A flow with
    # several changed keys has several moves.
    uint32_t flow
    uint32_t lookup             # index in `TableState.lookups`
    uint32_t key                # index in `Changes.keys`
    uint32_t change             # number of the change; 0 if the labels stay the same


cdef struct Context:
    # An ambiguous key of a flow, and the strings that its labels depend on.
    uint32_t strings[3]         # the key, the other address, the capture point
    uint32_t move               # index in `Changes.moves`


cdef struct Literal:
    # A constant part of a line. The text is padded, so that whole 16-byte blocks can be copied.
    char *text
    uint32_t length


cdef struct Histogram:
    # At `offset`, a row has int64_t counts[bound_count + 1] and the int64_t sum of the values.
    int observes                # OBSERVE_FIRST, OBSERVE_TOTAL or OBSERVE_AGE
    uint32_t event              # observes flows on this event: FIRST_OBSERVED or CLOSING_OBSERVED
    uint32_t sources[2]         # indexes of the observed values in `Report.values`
    uint32_t source_count
    uint32_t bound_count
    int64_t limits[MAX_BOUNDS]  # the highest value in each bucket except the last
    uint32_t offset             # offset in a row, in bytes


cdef struct HistogramText:
    # The literals of a histogram's lines, except those between its label values. The first five are
    # the beginnings of five kinds of lines, up to the first label.
    Literal bucket
    Literal sum
    Literal count
    Literal created             # for the sample with the start time in OpenMetrics 1.0
    Literal name                # for the single sample of OpenMetrics 2.0
    Literal bounds[MAX_BOUNDS + 1]  # the label `le` and the end of the labels
    Literal limits[MAX_BOUNDS + 1]  # the bound in the single sample of OpenMetrics 2.0
    Literal end                 # the end of the labels in lines without `le`


cdef struct Family:
    char *heads[3]              # metadata lines for the text format, OpenMetrics 1.0 and 2.0
    uint32_t head_lengths[3]
    uint32_t view
    uint32_t directions         # series per connection: 1, or 2 with a direction label
    uint32_t values[2]          # indexes of the row's values, or FLOWS
    int64_t absent              # only values above this number have a series
    uint32_t decimals           # values are divided by 10^decimals
    bint is_counter
    uint32_t name_length
    Literal created             # the name of the samples with start times in OpenMetrics 1.0
    Literal *literals           # columns + 1 literals: before, between and after label values
    Literal second              # replaces the literal at `direction_index` for the second direction
    # In a family of histograms, `values` is not used. The histogram of the first direction has this
    # index in `View.histograms`. The histogram of the second direction has the next index.
    uint32_t histogram
    HistogramText *text         # NULL if the family is not a histogram


cdef struct Amount:
    # The bytes or packets of a row: one counter, or the sum of two.
    uint32_t values[2]          # indexes of the row's values
    uint32_t count              # 0 if the view does not count the amount


cdef struct Bounds:
    # A page shows a row if the row reaches at least one of these bounds. 0 means no bound. If both
    # bounds are 0, all rows are shown.
    int64_t min_bytes
    int64_t min_packets


cdef struct View:
    Rows rows
    TimerWheel wheel            # rows by deadline; not used in the first view
    double timeout_s
    uint32_t columns
    uint32_t plan_columns[MAX_VIEW_COLUMNS]  # indexes of the plan's columns
    uint32_t counters
    uint32_t values             # number of counters and gauges
    uint32_t sources[MAX_VIEW_VALUES]    # indexes of the plan's counters, then gauges
    bint counts_new_flows       # whether the number of new flows follows the counters and gauges
    Amount bytes
    Amount packets
    Bounds bounds               # a writer needs the GIL and the mutex, a reader one of them
    Histogram *histograms
    uint32_t histogram_count
    # flags (FIRST_OBSERVED, ...): the events on which at least one histogram observes flows
    uint32_t events
    uint32_t values_offset      # offset in a row, like the next two fields
    uint32_t start_offset
    uint32_t label_ids_offset
    bint identifies_connection  # whether the labels include both addresses and both ports
    bint linked_from_flow       # whether flow rows link to this view; if not, connection rows do
    uint32_t link               # index of the link to this view, in the links of the linking row
    uint32_t direction_index    # index of the literal that contains the direction
    uint32_t overflow
    uint32_t deadline_s         # deadline for rows with a report in the current call of `update`
    uint64_t rejected           # reports that required a new row when the view was full
