# The data structures of the table: sizes, units and ownership of memory.
#
# The table owns the memory of all these structures, and allocates the memory with C functions.
# Structures refer to rows by row number, because a number takes 4 bytes and a pointer takes 8. Row
# number 0 means "none". Pointers to rows are only used during a call.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


# Limits of a plan, a flow and a table. Python code can read them: see _table.pyi.
cpdef enum:
    MAX_TEXT_BYTES = 1024       # maximum size of a label value or UUID
    MAX_ROWS = 1 << 27          # half of all row numbers, as a table can slightly exceed its limits
    MAX_VIEWS = 16
    MAX_VALUES = 64             # counters and gauges per plan
    MAX_COLUMNS = 64            # per plan: labels, plus fields that lookups use
    MAX_VIEW_VALUES = 32        # counters and gauges per view
    MAX_VIEW_COLUMNS = 32
    MAX_RANKED = 1 << 16
    MAX_PARTS = 64              # parts that a page can be divided into
    MAX_BOUNDS = 20             # upper bounds of the buckets of a histogram


cdef struct RowHead:
    # The first fields of every kind of row. If the row is in use, `next` is the next row in the
    # same bucket of the index. If the row is free, `next` is the next free row.
    uint32_t hash
    uint32_t next


cdef struct Arena:
    # The memory for slabs and index segments. The memory is allocated in large blocks, and freed
    # with the table. All blocks except the first use huge pages, because rows are visited in random
    # order: with small pages, almost every visit would miss the TLB.
    char **blocks
    uint32_t block_count
    uint32_t block_capacity     # capacity of `blocks`
    char *free                  # unused part of the newest block
    size_t free_bytes
    size_t bytes                # size of the slabs, segments and long strings in use


cdef struct Rows:
    # A slab allocator for rows of one size, with an index by hash. The index uses linear hashing:
    # it grows by one bucket at a time. Row numbers start at 1.
    Arena *arena
    char **slabs                # SLAB_ROWS rows each; never moved, freed with the table
    uint32_t slab_count
    uint32_t slab_capacity      # capacity of `slabs`
    uint32_t stride             # bytes per row
    uint32_t end                # lowest row number that has never been used
    uint32_t used               # rows in use
    uint32_t free_head          # first row of the list of free rows
    uint32_t **segments         # SEGMENT_BUCKETS buckets each; a bucket is a row number
    uint32_t segment_count
    uint32_t segment_capacity
    uint32_t buckets            # buckets in use
    uint32_t mask               # 2^k - 1, with buckets <= mask < 2 * buckets


cdef struct String:
    # An interned string in UTF-8. Label values are stored with their escapes, as on a page. A row
    # takes 64 bytes: one cache line. `refs` counts the references to the string: a label ID or a
    # key that contains the string's number is a reference.
    uint32_t hash
    uint32_t next
    uint32_t refs               # 0 in a free row
    uint32_t length             # bytes
    char inline[48]             # the string, or a pointer to it if it is longer than 48 bytes


cdef struct TimerWheel:
    # One list of row numbers per second, in a ring of slots. If a deadline is too far ahead for the
    # ring, the row is added to the farthest slot.
    uint32_t *slots
    uint32_t mask
    uint32_t next_s             # the next second whose slot is visited


cdef struct DormantList:
    # Dormant flows in the order in which they became dormant.
    uint32_t head               # the row that is forgotten first
    uint32_t tail
    uint32_t count


cdef struct Flow:
    # One flow, as an agent reports it. The key of the row is the flow's UUID; the row stores the
    # flow's latest totals. A row takes 32 bytes, plus 8 per counter and 4 per link (64 with the
    # default plan).
    #
    # A dormant flow (see `_table.pyx`) belongs to a `DormantList`, not to a connection or the timer
    # wheel. Therefore three fields of a dormant row have another meaning. `connection` is the
    # previous row of the list. `wheel_next` is the next row of the list. `deadline_s` is the time
    # at which the flow was added to the list. Instead of a flow, a dormant row can store the
    # counters of a removed connection. The key of such a row is a hash of the connection's labels.
    # The field `last_ms` of the row contains the connection's number of new flows and start time
    # (see `pack_saved`).
    uint32_t hash               # low half of the key
    uint32_t next
    uint32_t key_high           # high half of the key; for a string key, the string's number
    uint32_t connection         # row of the first view, and the flags below; 0 in a free row
    uint32_t deadline_s         # time of the table's clock at which the flow becomes dormant
    uint32_t wheel_next         # next flow in the same slot of the timer wheel
    int64_t last_ms             # highest `Last` of its reports, Unix milliseconds
    # The struct is followed by int64_t totals[counters] and by uint32_t links. A total is ABSENT if
    # no report contained it. If there are conversations, the first link is the flow's conversation.
    # The next links are only valid for live flows: the flow's rows in views with
    # `linked_from_flow`, then the strings that lookups use as keys and context. If there are
    # histograms, the last link contains the flags FIRST_OBSERVED and CLOSING_OBSERVED, which
    # dormant flows keep.
    #
    # Flags in `connection`: STRING_KEY means that the UUID is not a 64-bit number. LABELS_KEY means
    # that the key is a hash of labels: the row has the counters of a removed connection. DORMANT
    # means that the flow is not live. ENDED means that the flow's latest report was its closing
    # report.


cdef struct Connection:
    # One row of a view: a label tuple and its values, as pages show them. A row takes 32 bytes,
    # plus 8 per value and 4 per label (96 with the default plan).
    uint32_t hash
    uint32_t next
    uint32_t deadline_s         # latest deadline of its flows; 0 in a free row
    uint32_t flows              # number of flow rows that link here, and the flag RESTORED
    uint32_t created_seq        # sequence number of the row's creation, modulo 2^32
    uint32_t links[1]           # in the first view: rows of other views; else: next in wheel slot
    # The struct is followed by int64_t values[counters + gauges]. If the view counts new flows, an
    # int64_t with their number comes next. The row ends with an int64_t start time, the view's
    # histograms, and uint32_t label_ids[columns]. The flag RESTORED means that the row started with
    # the counters of a removed connection. Only the first view uses this flag.


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
    # The row exists while any live or dormant flow links to the row. If all these flows are dormant
    # and none of them claims the conversation, a row of another capture point can replace this row.
    uint32_t hash               # low half of the key
    uint32_t next
    uint32_t key_high
    uint32_t flows              # number of live flow rows that link here
    uint64_t point              # hash of the capture point
    uint32_t dormant            # number of dormant flow rows that link here
    uint32_t claimant           # row of the flow that claims the conversation, or 0, or SUPERSEDED


cdef struct LabelValue:
    # A label value of a report. The value is only valid for one batch: its text is borrowed from
    # the decoded flow, or from the result of a rewrite or lookup. `text` is NULL if the value is an
    # integer.
    const char *text            # also NULL if `string` was copied from a `NamesRow`
    uint32_t length
    uint32_t hash
    uint32_t string             # number of the interned string, 0 if not known
    bint escapes                # whether the text needs escapes as a label value
    bint repeats                # whether the previous report with labels has the same string
    int64_t number


cdef struct OmittedFields:
    # The values of a report that are omitted because a field is invalid. A value is read from one
    # or two fields: for example, a sum is read from one field per direction. `fields[0]` has a bit
    # for each value whose first field is invalid. `fields[1]` has a bit for each value whose second
    # field is invalid.
    uint64_t fields[2]


cdef struct FlowKey:
    # The UUID of a flow.
    uint64_t number             # hash of the UUID by `mix64`; undefined if `string` is set
    const char *string          # the UUID, borrowed; NULL if the UUID is a 64-bit number
    uint32_t length


cdef struct Report:
    # A report: the fields of one decoded flow, as read for one batch.
    FlowKey key
    int64_t last_ms
    uint32_t flow               # row number, 0 if the flow is unknown
    bint dormant                # whether the flow was dormant when the batch was read
    int skip                    # reason to skip the report, or SKIP_NONE
    int finish                  # FinishType
    # All counters, then gauges, then closing gauges, which are only set in closing reports. The
    # batch owns the array.
    int64_t *values
    # the fields up to `last_update` are only read if the flow is not live
    uint32_t connection_hash    # hash of the labels; 0 unless all labels are interned
    int skip_if_not_live        # reason to skip the report if the flow is not live
    int initial_delta           # what the report adds if its flow is unknown: INITIAL_UNREAD, ...
    bint repeats                # whether a closing report repeats the previous report's update
    int64_t age_ms              # ms from the flow's start to its last update; -1: unknown
    int64_t start_ms            # start of the flow, or 0; not set if INITIAL_UNREAD
    int64_t update_start_ms     # start of the last update, or 0; not set if INITIAL_UNREAD
    uint64_t conversation       # hash of the conversation
    uint64_t point
    LabelValue *label_values    # labels, then strings of lookups; owned by the batch
    int64_t *last_update        # deltas of the last update, by counter; owned by the batch
    # omitted values
    bint has_omissions          # whether any value is omitted; if not, no field below is set
    # whether omitted lifecycle fields are counted; set when the report is applied
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
    uint32_t change             # number (see `Changes`); 0 if ambiguous, or if a name is invalid


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
    # The distribution of a value over the flows of a row. At `offset`, a row has int64_t
    # counts[bound_count + 1], the number of values in each bucket. The int64_t sum of the values
    # follows.
    int observes                # OBSERVE_FIRST, OBSERVE_TOTAL or OBSERVE_AGE
    uint32_t event              # the event that it observes: FIRST_OBSERVED or CLOSING_OBSERVED
    uint32_t sources[2]         # indexes of the observed values in `Report.values`
    uint32_t source_count
    uint32_t bound_count
    int64_t limits[MAX_BOUNDS]  # the highest value in each bucket except the last
    uint32_t offset             # offset in a row, in bytes


cdef struct HistogramText:
    # The literals of a histogram's lines, except those between its label values. There are five
    # kinds of lines. Each of the first five literals begins one kind of line, up to the first
    # label.
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
    uint32_t decimals           # values are divided by ten to this power
    bint is_counter
    uint32_t name_length
    Literal created             # the name of the samples with start times in OpenMetrics 1.0
    Literal *literals           # columns + 1 literals: before, between and after label values
    Literal second              # replaces the literal at `direction_index` for the second direction
    # For a family of histograms, `values` is not used. The histogram of the first direction is at
    # this index of `View.histograms`, and that of the second direction follows.
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
    Amount bytes                # of both directions together
    Amount packets              # of both directions together
    Bounds bounds               # read and written under the mutex
    Histogram *histograms
    uint32_t histogram_count
    # flags (FIRST_OBSERVED, ...): the events on which at least one histogram observes flows
    uint32_t events
    uint32_t values_offset      # offset in a row, like the next two fields
    uint32_t start_offset
    uint32_t label_ids_offset
    bint identifies_connection  # whether the labels distinguish all conversations
    bint linked_from_flow       # flow rows link to this view; if not, rows of the first view do
    uint32_t link               # index of the link to this view, in the links of the linking row
    uint32_t direction_index    # index of the literal that contains the direction
    uint32_t overflow           # the overflow row, or 0
    uint32_t deadline_s         # deadline that a report of the current `update` sets
    uint64_t rejected           # reports that required a new row when the view was full
