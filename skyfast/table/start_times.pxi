# Start times: the time at which the counters of a row were 0, in Unix milliseconds.
#
# The first report of a row sets its start time. Later reports do not change it, because a changed
# start time would look like a counter reset. Reported times come from an agent's clock, which may
# be ahead. Therefore start times are limited to the local system time. This code needs the table's
# mutex.

cdef inline int64_t *start_of(const View *view, Connection *row) noexcept nogil:
    # The location of a row's start time. An unknown start time is 0. Before the row's first report,
    # the start time is NO_START.
    return <int64_t *>(<char *>row + view.start_offset)


cdef inline int64_t clamp_to_now(const TableState *table, int64_t start_ms) noexcept nogil:
    return min(start_ms, table.wall_ms) if table.wall_ms else start_ms


cdef inline int64_t start_of_report(const TableState *table, const Report *report,
                                    bint counts_total) noexcept nogil:
    # The start time of a row that is created for an unknown flow, or 0 if the report lacks the
    # time:
    #
    # * If `counts_total` is true, the flow's total is added to the row. The start time is the start
    #   of the flow.
    # * Otherwise, only the last update is added. The start time is the start of the last update.
    return clamp_to_now(table, report.start_ms if counts_total else report.update_start_ms)


cdef inline int64_t start_of_deltas(const TableState *table, const Flow *flow) noexcept nogil:
    # The start time of a row that is created for a dormant flow: the time of the flow's stored
    # totals. Must be called before `update_totals`, which changes `Flow.last_ms`.
    return clamp_to_now(table, flow.last_ms)


cdef int64_t start_of_total(const TableState *table, const Report *report,
                            uint32_t dormant_s) noexcept nogil:
    # The start time of a removed connection that is restored from a dormant flow's totals. A start
    # time later than a sample that a page already showed would look like a counter reset. Therefore
    # the result is at most the estimated time of the flow's previous report. `dormant_s` is the
    # time at which the flow became dormant.
    cdef double reported_s = dormant_s - floor(table.min_timeout_s)
    cdef int64_t start_ms = start_of_report(table, report, True)
    if table.wall_ms:
        start_ms = min(start_ms, table.wall_ms - <int64_t>((table.now - reported_s) * 1000))
    return max(start_ms, <int64_t>0)


cdef inline void set_start(const View *view, Connection *row, int64_t start_ms) noexcept nogil:
    if start_of(view, row)[0] == NO_START:
        start_of(view, row)[0] = start_ms


# ---------------------------------------------------------------------------------------------
# Saved counters: if a dormant row has the counters of a removed connection, it also has the
# connection's start time and number of new flows. Both are packed into the field `last_ms`. If the
# number of new flows needs more than NEW_FLOWS_BITS, the field is the bitwise complement of this
# number, and the start time is lost.

cdef enum:
    NEW_FLOWS_BITS = 21
    START_BITS = 42             # enough until the year 2109


cdef inline int64_t pack_saved(int64_t new_flows, int64_t start_ms) noexcept nogil:
    if new_flows >> NEW_FLOWS_BITS:
        return ~new_flows
    if start_ms < 0 or start_ms >> START_BITS:
        start_ms = 0
    return start_ms << NEW_FLOWS_BITS | new_flows


cdef inline int64_t saved_new_flows(const Flow *saved) noexcept nogil:
    if saved.last_ms < 0:
        return ~saved.last_ms
    return saved.last_ms & (((<int64_t>1) << NEW_FLOWS_BITS) - 1)


cdef inline int64_t saved_start(const Flow *saved) noexcept nogil:
    return 0 if saved.last_ms < 0 else saved.last_ms >> NEW_FLOWS_BITS


cdef inline void count_saved_new_flow(Flow *saved) noexcept nogil:
    cdef int64_t new_flows = saved_new_flows(saved)
    add(&new_flows, 1)
    saved.last_ms = pack_saved(new_flows, saved_start(saved))


# ---------------------------------------------------------------------------------------------
# Pages

cdef enum:
    # How a page shows start times.
    START_HIDDEN
    # As in OpenMetrics 1.0: a sample `…_created` after each sample of a counter, and after each
    # histogram.
    START_AS_SAMPLE
    START_INLINE                # as in OpenMetrics 2.0: `st@…` after the value


cdef struct StartText:
    char text[MAX_INTEGER_DIGITS + 44]      # ends with a newline; copied in blocks of 16 bytes
    uint32_t length             # length of `text`; 0 if the start time is unknown


cdef inline char *put_time(char *out, int64_t start_ms) noexcept nogil:
    # Writes a start time in seconds, then a newline. Writes the same text as `put_value` with three
    # decimals.
    cdef uint64_t ms = <uint64_t>start_ms % 1000
    out = put_number(out, <uint64_t>start_ms / 1000)
    if likely(ms):
        out[0] = c'.'
        out[1] = <char>(c'0' + ms / 100)
        memcpy(out + 2, DIGITS + 2 * (ms % 100), 2)
        out += 4
        while out[-1] == c'0':
            out -= 1
    out[0] = c'\n'
    return out + 1


cdef inline void put_start_text(StartText *time, int64_t start_ms) noexcept nogil:
    time.length = <uint32_t>(put_time(time.text, start_ms) - time.text) if start_ms > 0 else 0


cdef inline char *put_start(const Family *family, int starts, const char *line, const char *value,
                            char *end, const StartText *time) noexcept nogil:
    # Adds the start time to the end of a line, or writes a sample with the start time after the
    # line. `value` points to the value in the line.
    cdef size_t labels = value - line - family.name_length
    if starts == START_INLINE:
        memcpy(end - 1, b" st@", 4)
        return put(end + 3, time.text, time.length)
    end = put(end, family.created.text, family.created.length)
    memcpy(end, line + family.name_length, labels)
    return put(end + labels, time.text, time.length)
