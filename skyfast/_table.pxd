# The structs of the table: sizes, units, and owners of memory.
#
# The memory of structs is allocated with C functions. A struct refers to a row by the row's number,
# because a number takes 4 bytes and a pointer takes 8. Row number 0 means "none".

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


# Limits of a plan, a flow and a table. Python code can read them: see _table.pyi.
cpdef enum:
    MAX_TEXT_BYTES = 1024       # maximum size of a label value or UUID, in bytes
    # Maximum of `max_connections` and of `max_flows`. There are 2^28 row numbers. Half of them are
    # reserved, because a table can slightly exceed its limits.
    MAX_ROWS = 1 << 27
    MAX_VIEWS = 16
    MAX_VALUES = 64             # maximum number of counters and gauges per plan
    # Maximum number of different columns per plan. Each field that lookups use counts as a column.
    MAX_COLUMNS = 64
    MAX_VIEW_VALUES = 32        # maximum number of counters and gauges per view
    MAX_VIEW_COLUMNS = 32
    MAX_RANKED = 1 << 16        # maximum number of results of `Table.top` and `Table.top_groups`
    MAX_PARTS = 64              # maximum number of parts of a page
    MAX_BOUNDS = 20             # maximum number of upper bounds in a histogram, without +Inf


cdef struct RowHead:
    # The first fields of every kind of row.
    uint32_t hash
    # In a row in use: row number of the next row in the same bucket of the index. In a free row:
    # row number of the next free row.
    uint32_t next


cdef struct Arena:
    # Memory for slabs and index segments, in large blocks that are freed with the table.
    #
    # All blocks except the first use huge pages. Rows are visited in random order, so with small
    # pages, almost every visit of a row would miss the TLB.
    char **blocks
    uint32_t block_count
    uint32_t block_capacity     # number of pointers for which `blocks` has space
    char *free                  # start of the unused part of the newest block
    size_t free_bytes           # size of the unused part of the newest block
    size_t bytes                # total size of the slabs, segments and long strings


cdef struct Rows:
    # A slab allocator for rows of one size, with an index by hash. The index uses linear hashing:
    # it grows by one bucket at a time.
    Arena *arena
    char **slabs                # arrays of SLAB_ROWS rows; never moved, and freed with the table
    uint32_t slab_count
    uint32_t slab_capacity      # number of pointers for which `slabs` has space
    uint32_t stride             # size of a row, in bytes
    uint32_t end                # lowest row number that has never been used; rows start at 1
    uint32_t used               # number of rows in use
    uint32_t free_head          # row number of the first free row
    # Arrays of SEGMENT_BUCKETS buckets. A bucket is the row number of its first row.
    uint32_t **segments
    uint32_t segment_count
    uint32_t segment_capacity   # number of pointers for which `segments` has space
    uint32_t buckets            # number of buckets
    uint32_t mask               # mask for hashes: 2^k - 1, with buckets <= mask < 2 * buckets


cdef struct String:
    # An interned string in UTF-8. Label values are stored with their escapes. A row takes 64 bytes:
    # one cache line.
    uint32_t hash
    uint32_t next
    uint32_t refs               # number of references (see `strings.pxi`); 0 in a free row
    uint32_t length             # size of the string, in bytes
    char inline[48]             # the string, or a pointer to it if it is longer than 48 bytes


cdef struct TimerWheel:
    # A ring of slots. Each slot is for one second, and has a list of rows.
    uint32_t *slots             # row number of the first row of each list
    uint32_t mask               # number of slots - 1
    uint32_t next_s             # the second whose slot is visited next


cdef struct DormantList:
    uint32_t head               # row number of the row that was added first
    uint32_t tail               # row number of the row that was added last
    uint32_t count              # number of rows


cdef struct Flow:
    # One flow with its latest totals, or the saved counters of a removed connection.
    #
    # A row is *live* or *dormant* (see `_table.pyx`). Saved counters are always in a dormant row.
    # Dormant rows are in a `DormantList`. Some fields have a different meaning in dormant rows than
    # in live rows. A row takes 32 bytes, plus 8 per counter and 4 per link (64 with the default
    # plan).
    uint32_t hash               # low half of the key
    uint32_t next
    # High half of the key. The key of a flow is a hash of the UUID, if the UUID is a 64-bit number.
    # For any other UUID, the high half of the key is the number of the interned UUID. The key of
    # saved counters is a hash of the removed connection's labels.
    uint32_t key_high
    # In a live row: row number of the flow's connection in the first view, and the flags below. In
    # a dormant row: row number of the previous row in the list, and the flags below. In a free row:
    # 0.
    uint32_t connection
    # In a live row: the time of the table's clock at which the flow becomes dormant. In a dormant
    # row: the time at which the row was added to its list.
    uint32_t deadline_s
    # In a live row: row number of the next row in the same slot of the timer wheel. In a dormant
    # row: row number of the next row in the list.
    uint32_t wheel_next
    # In the row of a flow: the highest `Last` of the flow's reports, in Unix milliseconds. In a row
    # with saved counters: the number of new flows and the start time (see `pack_saved`).
    int64_t last_ms
    # After the struct: int64_t totals[counters]. A total is ABSENT if no report contained the
    # counter.
    #
    # After the totals: uint32_t links, in this order:
    # * if there are conversations: row number of the flow's conversation
    # * only valid in live rows: row number of the flow's connection, for each view with
    #   `linked_from_flow`
    # * only valid in live rows: numbers of the strings that lookups use
    # * if there are histograms: the flags FIRST_OBSERVED and CLOSING_OBSERVED
    #
    # Flags in `connection`:
    # * STRING_KEY: the UUID is not a 64-bit number.
    # * LABELS_KEY: the row has saved counters.
    # * DORMANT: the row is dormant.
    # * ENDED: the flow's latest report was its closing report.


cdef struct Connection:
    # One row of a view: a label tuple and its values, as pages show them.
    #
    # A row takes 32 bytes, plus 8 per value and 4 per label (96 in the first view of the default
    # plan). Histograms, and links to more than one view, take additional space.
    uint32_t hash
    uint32_t next
    # Pages show the row until this time of the table's clock. In a free row: 0.
    uint32_t deadline_s
    uint32_t flows              # number of the row's live flows, and the flag RESTORED
    uint32_t created_seq        # sequence number of the row, modulo 2^32 (see `connections.pxi`)
    # In the first view: row numbers of the linked rows in other views. In any other view: row
    # number of the next row in the same slot of the timer wheel.
    uint32_t links[1]
    # After the struct, in this order:
    # * int64_t values[counters + gauges]
    # * int64_t number of new flows, if the view counts new flows
    # * int64_t start time
    # * the view's histograms
    # * uint32_t label_ids[columns]
    #
    # Flag in `flows`:
    # * RESTORED: the row is in the first view, and started with the counters of a removed
    #   connection.


cdef struct NamesRow:
    # A result of a lookup, and the interned labels from this result. A row takes 36 bytes, plus 4
    # per label, rounded up to a multiple of 8.
    uint32_t hash
    uint32_t next
    PyObject *result            # the result (a tuple); the row owns a reference
    uint32_t label_set          # which items of the result are labels: see `Lookup.label_set`
    uint32_t count              # number of labels
    uint32_t deadline_s         # time of the table's clock at which the row is removed
    uint32_t wheel_next         # row number of the next row in the same slot of the timer wheel
    uint32_t strings[1]         # numbers of the interned labels


cdef struct Conversation:
    # A conversation, and the capture point whose flows are counted for the conversation (see
    # `table/conversations.pxi`). The row exists while any live or dormant flow links to the row.
    uint32_t hash               # low half of the conversation's hash
    uint32_t next
    uint32_t key_high           # high half of the conversation's hash
    uint32_t flows              # number of live flows that link to the row
    uint64_t point              # hash of the capture point
    uint32_t dormant            # number of dormant flows that link to the row
    # Row number of the flow that claims the conversation. 0: no flow claims the conversation.
    # SUPERSEDED: another row has replaced this row.
    uint32_t claimant


cdef struct LabelValue:
    # A label value of a report, or of changed names. The text is borrowed from Python objects, so
    # the struct is only valid for one batch, or until the changed names are interned.

    # The text of the value. NULL if the value is an integer, or if `string` comes from a
    # `NamesRow`.
    const char *text
    uint32_t length             # size of the text, in bytes
    uint32_t hash               # hash of the text
    uint32_t string             # number of the interned string, or 0 if the number is not known
    bint escapes                # whether the text needs escapes as a label value
    # Whether the label has the same text in the previous report of the batch. Reports whose labels
    # were not read are passed over.
    bint repeats
    int64_t number              # the value, if it is an integer


cdef struct OmittedFields:
    # Values that are omitted from a report because a field is invalid. A value is read from one or
    # two fields, for example one per direction.

    # Item 0 has a bit for each value whose first field is invalid. Item 1 has a bit for each value
    # whose second field is invalid.
    uint64_t fields[2]


cdef struct FlowKey:
    uint64_t number             # hash of the UUID; undefined if `string` is not NULL
    const char *string          # the UUID, borrowed; NULL if the UUID is a 64-bit number
    uint32_t length             # size of `string`, in bytes; undefined if `string` is NULL


cdef struct Report:
    # The fields of one decoded flow, as read for one batch.
    FlowKey key
    int64_t last_ms
    uint32_t flow               # row number of the flow, or 0 if the flow is unknown
    bint dormant                # whether the flow was dormant when the batch was read
    int skip                    # SKIP_NONE, or a reason to skip the report
    int finish                  # FinishType; higher values are stored as 4
    # Values of the counters, then the gauges, then the closing gauges. Closing gauges are only set
    # in closing reports. The batch owns the array.
    int64_t *values

    # The fields from here to `last_update` are only set if the flow was not live when the batch was
    # read.

    # Hash of the labels of the first view, or 0 if not known.
    uint32_t connection_hash
    # SKIP_NONE, APPLY_STOP, or a reason to skip the report. Ignored if an earlier report of the
    # batch makes the flow live.
    int skip_if_not_live
    int initial_delta           # what the report adds if its flow is unknown: INITIAL_UNREAD, ...
    # Whether this is a closing report that repeats the last update of the flow's previous report.
    bint repeats
    # Time from the flow's start to the flow's last update, in milliseconds, or -1 if unknown.
    int64_t age_ms
    # Start of the flow in Unix milliseconds, or 0 if unknown. Not set if `initial_delta` is
    # INITIAL_UNREAD.
    int64_t start_ms
    # Start of the flow's last update in Unix milliseconds, or 0 if unknown. Not set if
    # `initial_delta` is INITIAL_UNREAD.
    int64_t update_start_ms
    uint64_t conversation       # hash of the conversation
    uint64_t point              # hash of the capture point
    LabelValue *label_values    # labels, then strings that lookups use; owned by the batch
    int64_t *last_update        # deltas of the last update, by counter; owned by the batch

    # Omitted values. Omissions in fields that the report does not use are not counted.

    bint has_omissions          # whether any value is omitted; if not, `omitted_...` are not set
    # Whether the report uses lifecycle fields other than FinishType. Set when the report is
    # applied.
    bint uses_lifecycle
    # Whether the report uses values of the last update. Set when the report is applied.
    bint uses_last_update
    uint32_t omitted_lifecycle  # one bit per omitted lifecycle field
    OmittedFields omitted_values
    OmittedFields omitted_last_update


cdef struct ChangedKey:
    # A lookup key whose labels have changed.
    uint32_t string             # number of the key's interned string
    uint32_t position           # index of the key in `Relabeling.pass_keys`
    # Whether a flow with the key has been found. If not, the next two fields are not set.
    bint found
    bint ambiguous              # whether the labels of the key depend on a `Context`
    # Number of the change with the new labels (see `Changes`). 0 if the key is ambiguous, or if its
    # names are invalid.
    uint32_t change


cdef struct Move:
    # A flow and one of its lookups: the labels of the flow's key in this lookup have changed. A
    # flow has one move for each such lookup.
    uint32_t flow               # row number of the flow
    uint32_t lookup             # index of the lookup in `TableState.lookups`
    uint32_t key                # index of the key in `Changes.keys`
    uint32_t change             # number of the change; 0 if the labels stay the same


cdef struct Context:
    # An ambiguous key of a flow, and the strings on which the labels of the key depend.
    uint32_t strings[3]         # numbers of the strings: key, other address, capture point
    uint32_t move               # index of the flow's move in `Changes.moves`


cdef struct Literal:
    # A constant part of a line.
    char *text                  # followed by padding, so that blocks of 16 bytes can be copied
    uint32_t length             # size of the text without padding, in bytes


cdef struct Histogram:
    int observes                # OBSERVE_FIRST, OBSERVE_TOTAL or OBSERVE_AGE
    uint32_t event              # event of the observation: FIRST_OBSERVED or CLOSING_OBSERVED
    # Indexes of the observed values in `Report.values`. Two observed values are added up.
    uint32_t sources[2]
    uint32_t source_count       # number of observed values: 1 or 2
    uint32_t bound_count        # number of upper bounds, without +Inf
    int64_t limits[MAX_BOUNDS]  # inclusive upper limit of each bucket except the last
    # Offset of the histogram in a row, in bytes. At this offset, a row has
    # int64_t counts[bound_count + 1], then the int64_t sum of the observed values.
    uint32_t offset


cdef struct HistogramText:
    # The literals of a histogram's lines, except the literals between label values.
    Literal bucket              # beginning of a bucket's line, up to the first label
    Literal sum                 # beginning of the sum's line, up to the first label
    Literal count               # beginning of the count's line, up to the first label
    # In OpenMetrics 1.0: beginning of the line with the start time, up to the first label.
    Literal created
    Literal name                # in OpenMetrics 2.0: beginning of the line, up to the first label
    Literal bounds[MAX_BOUNDS + 1]  # by bucket: the label `le` and the end of the labels
    Literal limits[MAX_BOUNDS + 1]  # in OpenMetrics 2.0, by bucket: the bound in the line
    Literal end                 # the end of the labels in lines without `le`


cdef struct Family:
    # The series of one metric name in one view.

    # Metadata lines, by format: the text format, OpenMetrics 1.0, OpenMetrics 2.0.
    char *heads[3]
    uint32_t head_lengths[3]    # sizes of the metadata lines, in bytes
    uint32_t view               # index of the view
    uint32_t directions         # number of series per connection: 1, or 2 with a direction label
    # By direction: index among the values of a row. Two indexes are special: `View.values` means
    # the number of new flows, and FLOWS the number of live flows. Not used in a family of
    # histograms.
    uint32_t values[2]
    int64_t absent              # a series exists only if its value is above this number
    uint32_t decimals           # pages show values divided by 10^decimals
    bint is_counter
    uint32_t name_length        # size of the metric name, in bytes
    Literal created             # in OpenMetrics 1.0: name of the samples with start times
    # An array of columns + 1 literals: one before each label value, and one before the sample's
    # value.
    Literal *literals
    # The literal that contains the second value of the direction label. In lines of the second
    # direction, it replaces the literal at `View.direction_index`.
    Literal second
    # Only used in a family of histograms: index among `View.histograms`, for the first direction.
    # The second direction has the next index.
    uint32_t histogram
    HistogramText *text         # NULL if the family is not a histogram


cdef struct Amount:
    # The bytes or packets of a row: one counter, or the sum of two.
    uint32_t values[2]          # indexes of the counters among the values of the row
    uint32_t count              # number of counters; 0 if the view does not count the amount


cdef struct Bounds:
    # A page shows a row if the row reaches at least one bound. A bound of 0 is ignored. If both
    # bounds are 0, all rows are shown.
    int64_t min_bytes
    int64_t min_packets


cdef struct View:
    Rows rows
    TimerWheel wheel            # the view's rows by deadline; not used in the first view
    double timeout_s
    uint32_t columns            # number of columns
    uint32_t plan_columns[MAX_VIEW_COLUMNS]  # by column: index of the column in the plan
    uint32_t counters           # number of counters
    uint32_t values             # number of counters and gauges
    # By value: index among the values of the plan (the counters, then the gauges).
    uint32_t sources[MAX_VIEW_VALUES]
    bint counts_new_flows       # whether rows have a number of new flows after their gauges
    Amount bytes
    Amount packets
    # Code that changes the bounds must have both the GIL and the mutex. Code that reads the bounds
    # must have the GIL, the mutex, or both.
    Bounds bounds
    Histogram *histograms
    uint32_t histogram_count
    # Flags (FIRST_OBSERVED, ...) of the events on which at least one histogram observes flows.
    uint32_t events
    uint32_t values_offset      # offset of the values in a row, in bytes
    uint32_t start_offset       # offset of the start time in a row, in bytes
    uint32_t label_ids_offset   # offset of the label IDs in a row, in bytes
    bint identifies_connection  # whether the labels include both addresses and both ports
    # Whether flow rows link to rows of this view. If not, rows of the first view link to rows of
    # this view. Not used in the first view.
    bint linked_from_flow
    # A row that links to a row of this view has this link at this index of its links.
    uint32_t link
    uint32_t direction_index    # in `Family.literals`: index of the literal with the direction
    uint32_t overflow           # row number of the overflow row, or 0 if there is none yet
    uint32_t deadline_s         # deadline that rows get from reports of the latest `update`
    # Number of reports that required a new row while the view was full. Not used in the first view.
    uint64_t rejected
