# Histograms: the distribution of a value over the flows of a row.
#
# Each histogram observes flows on one of two *events*: a flow's first value above 0, or a flow's
# closing report. A flow row has a flag for each event, so that the flow is observed only once per
# event. The first view has no histograms. An observation needs the table's mutex, and extends the
# deadline of the row that has the histogram.

cdef enum:
    # What to do with the observed value if it is above 0 and the flow lacks the flag
    # FIRST_OBSERVED.
    FIRST_IS_NEW                # observe the value
    FIRST_IS_OLD                # only set the flag: an earlier report may have had the first value
    IGNORE_FIRST                # do nothing, because the report has no new totals


cdef inline int64_t *counts_of(const Histogram *histogram, Connection *row) noexcept nogil:
    # For one row: the number of observations in each bucket of a histogram (not cumulative). In
    # memory, the sum of the observed values is stored directly after these counts.
    return <int64_t *>(<char *>row + histogram.offset)


# ---------------------------------------------------------------------------------------------
# Observing reports that are added to rows

cdef inline void observe_live(TableState *table, Flow *flow, const Report *report,
                              int first) noexcept nogil:
    if unlikely(table.events):
        observe_links(table, flow, report, due_events(table, flags_of(table, flow), report, first))


cdef void observe_links(TableState *table, Flow *flow, const Report *report,
                        uint32_t due) noexcept nogil:
    cdef Connection *connection = connection_at(&table.views[0], flow.connection & ROW)
    cdef View *view
    cdef uint32_t i, number
    if due == 0:
        return
    for i in range(1, table.view_count):
        view = &table.views[i]
        if view.events & due:
            number = link_of(table, view, flow, connection)[0]
            if number:
                observe_in_row(view, connection_at(view, number), report, due)


cdef void observe_in(TableState *table, uint32_t flow, const Report *report, const uint32_t *rows,
                     int first) noexcept nogil:
    # `rows` has the flow's row in each view, or 0 if the view has no row for the flow. `flow` is
    # the flow row, or 0 if the flow is not stored.
    cdef uint32_t unknown = 0
    cdef uint32_t due, i
    cdef View *view
    if likely(table.events == 0):
        return
    due = due_events(
        table, flags_of(table, flow_at(table, flow)) if flow else &unknown, report, first
    )
    for i in range(1, table.view_count):
        view = &table.views[i]
        if view.events & due and rows[i]:
            observe_in_row(view, connection_at(view, rows[i]), report, due)


cdef inline uint32_t due_events(const TableState *table, uint32_t *flags, const Report *report,
                                int first) noexcept nogil:
    # Returns the flags of the events for which the report must be observed. Adds these flags to the
    # flow's `flags`. If `first` is FIRST_IS_OLD, FIRST_OBSERVED is added, but not returned.
    cdef uint32_t found = 0
    if (table.events & FIRST_OBSERVED and first != IGNORE_FIRST
            and report.values[table.first_value] > 0):
        found |= FIRST_OBSERVED
    if unlikely(report.finish == CLOSING):
        found |= table.events & CLOSING_OBSERVED
    found &= ~flags[0]
    flags[0] |= found
    if first == FIRST_IS_OLD:
        found &= ~<uint32_t>FIRST_OBSERVED
    return found


cdef void observe_in_row(const View *view, Connection *row, const Report *report,
                         uint32_t due) noexcept nogil:
    cdef const Histogram *histogram
    cdef int64_t *counts
    cdef int64_t value
    cdef uint32_t i, bucket
    for i in range(view.histogram_count):
        histogram = &view.histograms[i]
        if histogram.event & due and read_observed(histogram, report, &value):
            bucket = 0
            while bucket < histogram.bound_count and value > histogram.limits[bucket]:
                bucket += 1
            counts = counts_of(histogram, row)
            counts[bucket] += 1
            add(&counts[histogram.bound_count + 1], value)
    row.deadline_s = max(row.deadline_s, view.deadline_s)


cdef bint read_observed(const Histogram *histogram, const Report *report,
                        int64_t *value) noexcept nogil:
    # Sets `value` to the value that the histogram observes. Returns False if this value is invalid.
    cdef uint32_t i, source
    value[0] = 0
    for i in range(histogram.source_count):
        source = histogram.sources[i]
        if unlikely(report.has_omissions) and is_omitted(&report.omitted_values, 2 * source):
            return False
        if unlikely(value[0] > MAX_INTEGER - report.values[source]):
            return False
        value[0] += report.values[source]
    if histogram.observes == OBSERVE_AGE:
        if value[0] == 0 or value[0] > report.last_ms:
            return False
        value[0] = report.last_ms - value[0]
    return True


# ---------------------------------------------------------------------------------------------
# Closing reports that add nothing to counters

cdef bint observe_dormant(TableState *table, const Report *report) noexcept nogil:
    # Observes a closing report of a dormant flow. The report has no new totals. Returns False if
    # out of memory.
    cdef Flow *flow = flow_at(table, report.flow)
    cdef Labels labels
    cdef uint32_t number
    cdef bint done
    if (not table.events & CLOSING_OBSERVED
            or flags_of(table, flow)[0] & CLOSING_OBSERVED or report.skip_if_not_live != SKIP_NONE):
        return True
    if table.has_conversations:
        # If another capture point has taken over the conversation, nothing is observed.
        number = links_of(table, flow)[0]
        if (is_owned_by_other(table, find_conversation(table, report.conversation), report)
                or (number and conversation_at(table, number).claimant == SUPERSEDED)):
            return True
    if not intern_labels(table, report.label_values, &labels):
        return False
    done = observe_by_labels(table, report.flow, report, &labels, IGNORE_FIRST,
                             start_of_deltas(table, flow))
    release_interned(table, &labels)
    return done


cdef int observe_ended(TableState *table, const Report *report) noexcept nogil:
    # Observes the closing report of an unknown flow that may have been counted before. The flow is
    # stored, so that a repetition of the report is not observed. Returns SKIP_ENDED or
    # APPLY_NO_MEMORY.
    cdef Labels labels
    cdef uint32_t row = 0
    cdef bint full = live_flows(table) + table.claims.count >= table.max_flows
    cdef bint done
    if (not table.events & CLOSING_OBSERVED or table.has_conversations
            or (full and not table.has_overflow_rows)):
        return SKIP_ENDED
    if not intern_labels(table, report.label_values, &labels):
        return APPLY_NO_MEMORY
    if not full:
        row = add_unknown_flow(table, report)
    done = (full or row) and observe_by_labels(table, row, report, &labels, FIRST_IS_OLD,
                                               start_of_report(table, report, True))
    release_interned(table, &labels)
    if not done:
        if row:
            remove_flow(table, row)
        return APPLY_NO_MEMORY
    if row:
        evict_surplus(table)
        set_ended(table, row, True)
        link_dormant(table, row, <uint32_t>floor(table.now))
    return SKIP_ENDED


cdef bint observe_by_labels(TableState *table, uint32_t flow, const Report *report,
                            const Labels *labels, int first, int64_t start_ms) noexcept nogil:
    # Observes a closing report in the rows with the flow's labels. Rows that do not exist are
    # created, with the start time `start_ms`. `flow` is the flow row, or 0 if the flow is not
    # stored. If memory runs out, observes nothing and returns False.
    cdef uint32_t rows[MAX_VIEWS]
    cdef bint created[MAX_VIEWS]
    cdef RowKey key
    cdef View *view
    cdef uint32_t i, number
    row_key(table, &table.views[0], labels.ids, &key)
    number = find_row(&table.views[0], &key)
    for i in range(1, table.view_count):
        view = &table.views[i]
        rows[i] = 0
        created[i] = False
        if not view.events & CLOSING_OBSERVED:
            continue
        if not view.linked_from_flow and has_links(table, number):
            rows[i] = connection_at(&table.views[0], number).links[view.link]
            continue
        rows[i] = find_or_add_row(table, view, labels.ids, &created[i])
        if rows[i] == 0 and (created[i] or table.has_overflow_rows):
            while i > 1:
                i -= 1
                if created[i]:
                    remove_row(table, &table.views[i], rows[i])
            return False
    for i in range(1, table.view_count):
        view = &table.views[i]
        if created[i]:
            schedule_row(view, rows[i], view.deadline_s)
        if rows[i]:
            set_start(view, connection_at(view, rows[i]), start_ms)
            table.overflowed |= rows[i] == view.overflow
    observe_in(table, flow, report, rows, first)
    return True


# ---------------------------------------------------------------------------------------------
# Layout: this code uses Python objects, and runs before other threads use the table.

cdef int prepare_histograms(TableState *table, plan) except -1:
    cdef uint32_t i
    cdef View *view
    first = {gauge.path: j for j, gauge in enumerate(plan.gauges, table.counters)}
    closing = {gauge.path: j for j, gauge in enumerate(plan.closing_gauges, table.values)}
    for i, declared in enumerate(plan.views):
        view = &table.views[i]
        histograms = [
            (value, family.decimals)
            for family in declared.families for value in family.values if value in plan.histograms
        ]
        if histograms and i == 0:
            raise ValueError("the first view cannot have histograms")
        view.histograms = <Histogram *>allocate(len(histograms) * sizeof(Histogram))
        for value, decimals in histograms:
            prepare_histogram(
                &view.histograms[view.histogram_count], value, decimals,
                first if value.observes == "first" else closing,
            )
            view.events |= view.histograms[view.histogram_count].event
            view.histogram_count += 1
        table.events |= view.events
    fields = {value.paths for value in plan.histograms if value.observes == "first"}
    if len(fields) > 1:
        raise ValueError("all histograms of a first value must have the same field")
    for paths in fields:
        table.first_value = first[paths[0]]
        table.counts_new_flows = True
    return 0


cdef int prepare_histogram(Histogram *histogram, value, uint32_t decimals,
                           dict sources) except -1:
    cdef uint32_t i
    if not 0 < len(value.bounds) <= MAX_BOUNDS:
        raise ValueError(f"a histogram must have 1 to {MAX_BOUNDS} bounds")
    if not 0 < len(value.paths) <= (2 if value.observes == "total" else 1):
        raise ValueError("a histogram has too many fields")
    histogram.observes = OBSERVED_KINDS.index(value.observes)
    histogram.event = FIRST_OBSERVED if value.observes == "first" else CLOSING_OBSERVED
    histogram.source_count = len(value.paths)
    for i, path in enumerate(value.paths):
        histogram.sources[i] = sources[path]
    histogram.bound_count = len(value.bounds)
    for i, limit in enumerate(value.limits(decimals)):
        histogram.limits[i] = min(limit, INT64_MAX)
    return 0


cdef uint32_t place_histograms(View *view, uint32_t offset) noexcept nogil:
    # `offset` is the offset of the first histogram in a row. Returns the total size of a row's
    # histograms in bytes.
    cdef uint32_t i
    cdef uint32_t start = offset
    for i in range(view.histogram_count):
        view.histograms[i].offset = offset
        offset += 8 * (view.histograms[i].bound_count + 2)
    return offset - start


cdef list histogram_literals(list literals):
    # Returns `literals` without the braces around the labels. `literals` must be one of the lists
    # that `line_literals` returns for an empty metric name.
    cdef Py_ssize_t last = len(literals) - 1
    texts = [literals[0].removeprefix("{")] + literals[1:]
    texts[last] = texts[last].removesuffix(" ").removesuffix("}")
    return texts


cdef size_t prepare_histogram_text(Family *family, declared, uint32_t histogram, bint labelled,
                                   size_t line) except 0:
    # Returns the maximum size of a row's lines, in bytes. `histogram` is the index of the family's
    # first histogram in `View.histograms`. `labelled` is true if there are labels besides `le`. The
    # total size of one line per direction, without metric names and `le`, is at most `line`.
    cdef HistogramText *text = <HistogramText *>allocate(sizeof(HistogramText))
    cdef uint32_t i
    cdef size_t name_bytes = len(declared.name.encode()) + 10
    cdef str start = "{" if labelled else ""
    family.text = text          # from here on, the table frees the memory
    family.histogram = histogram
    literal_init(&text.bucket, declared.name + "_bucket{")
    literal_init(&text.sum, f"{declared.name}_sum{start}")
    literal_init(&text.count, f"{declared.name}_count{start}")
    literal_init(&text.created, f"{declared.name}_created{start}")
    literal_init(&text.name, declared.name + start)
    literal_init(&text.end, "} " if labelled else " ")
    texts = [*declared.values[0].bound_texts, "+Inf"]
    for i, bound in enumerate(texts):
        literal_init(&text.bounds[i], ("," if labelled else "") + f'le="{bound}"}} ')
        literal_init(&text.limits[i], ("," if i else "") + f"{bound}:")
        name_bytes = max(name_bytes, len(declared.name.encode()) + 10 + text.bounds[i].length)
    return (len(texts) + 3) * (line + 2 * name_bytes)


cdef void free_histogram_text(HistogramText *text) noexcept nogil:
    cdef uint32_t i
    if text == NULL:
        return
    free(text.bucket.text)
    free(text.sum.text)
    free(text.count.text)
    free(text.created.text)
    free(text.name.text)
    free(text.end.text)
    for i in range(MAX_BOUNDS + 1):
        free(text.bounds[i].text)
        free(text.limits[i].text)
    free(text)


# ---------------------------------------------------------------------------------------------
# Rendering

cdef enum:
    # In OpenMetrics 2.0, a histogram is a single sample. These are the lengths of its constant
    # texts.
    COUNT_BYTES = 7
    SUM_BYTES = 5
    BUCKETS_BYTES = 9
    CLOSE_BYTES = 2
    START_BYTES = 4


cdef char *render_histograms(const TableState *table, const Family *family, const View *view,
                             Connection *row, int starts, char *out,
                             Piece **notes) noexcept nogil:
    # `starts` tells how start times are shown, for example START_HIDDEN.
    cdef uint32_t direction
    for direction in range(family.directions):
        if starts == START_INLINE:
            out = render_composite(table, family, view, row, direction, out, notes)
        else:
            out = render_histogram(table, family, view, row, direction, starts, out, notes)
    return out


cdef inline uint32_t histogram_lines(const Family *family, const View *view) noexcept nogil:
    # Each direction has one line for each bucket (including +Inf), one line with the sum, and one
    # line with the count.
    return family.directions * (view.histograms[family.histogram].bound_count + 3)


cdef char *render_histogram(const TableState *table, const Family *family, const View *view,
                            Connection *row, uint32_t direction, int starts, char *out,
                            Piece **notes) noexcept nogil:
    # Writes one line per sample. Only the first line renders the labels. Each other line copies
    # them from the previous line.
    cdef const Histogram *histogram = &view.histograms[family.histogram + direction]
    cdef const HistogramText *text = family.text
    cdef const int64_t *counts = counts_of(histogram, row)
    cdef uint64_t total = 0
    cdef Piece *first = NULL
    cdef const char *labels
    cdef char *time
    cdef uint32_t length, i
    if notes != NULL:
        first = notes[0]
    put_note(notes, 0, 0)
    out = put(out, text.bucket.text, text.bucket.length)
    labels = out
    out = put_labels(table, family, view, row, direction, out, notes)
    length = <uint32_t>(out - labels)
    for i in range(histogram.bound_count + 1):
        if i:
            out = put(out, text.bucket.text, text.bucket.length)
            out = put_copy(out, &labels, length)
        total += counts[i]
        out = put(out, text.bounds[i].text, text.bounds[i].length)
        out = put_value_with_note(out, total, 0, notes)
    out = put_before_value(out, text, &text.sum, &labels, length)
    out = put_value_with_note(out, counts[histogram.bound_count + 1], family.decimals, notes)
    out = put_before_value(out, text, &text.count, &labels, length)
    out = put_value_with_note(out, total, 0, notes)
    if starts == START_AS_SAMPLE and start_of(view, row)[0] > 0:
        time = put_before_value(out, text, &text.created, &labels, length)
        out = put_time(time, start_of(view, row)[0])
        if notes != NULL:
            first.length = <uint32_t>(out - time)
    return out


cdef char *render_composite(const TableState *table, const Family *family, const View *view,
                            Connection *row, uint32_t direction, char *out,
                            Piece **notes) noexcept nogil:
    # Writes a histogram and its start time as one sample, as in OpenMetrics 2.0.
    cdef const Histogram *histogram = &view.histograms[family.histogram + direction]
    cdef const HistogramText *text = family.text
    cdef const int64_t *counts = counts_of(histogram, row)
    cdef uint64_t total = 0
    cdef Piece *first = NULL
    cdef char *time
    cdef uint32_t i
    for i in range(histogram.bound_count + 1):
        total += counts[i]
    if notes != NULL:
        first = notes[0]
    put_note(notes, 0, 0)
    out = put(out, text.name.text, text.name.length)
    out = put_labels(table, family, view, row, direction, out, notes)
    out = put(out, text.end.text, text.end.length)
    memcpy(out, b"{count:", COUNT_BYTES)
    out = put_item(out + COUNT_BYTES, total, 0, notes)
    memcpy(out, b",sum:", SUM_BYTES)
    out = put_item(out + SUM_BYTES, counts[histogram.bound_count + 1], family.decimals, notes)
    memcpy(out, b",bucket:[", BUCKETS_BYTES)
    out += BUCKETS_BYTES
    total = 0
    for i in range(histogram.bound_count + 1):
        total += counts[i]
        out = put(out, text.limits[i].text, text.limits[i].length)
        out = put_item(out, total, 0, notes)
    memcpy(out, b"]}", CLOSE_BYTES)
    out += CLOSE_BYTES
    if start_of(view, row)[0] > 0:
        memcpy(out, b" st@", START_BYTES)
        time = out + START_BYTES
        out = put_time(time, start_of(view, row)[0]) - 1
        if notes != NULL:
            first.length = <uint32_t>(out - time)
    out[0] = c'\n'
    return out + 1


cdef inline char *put_labels(const TableState *table, const Family *family, const View *view,
                             Connection *row, uint32_t direction, char *out,
                             Piece **notes) noexcept nogil:
    cdef const uint32_t *label_ids = label_ids_of(view, row)
    cdef const Literal *literal
    cdef char *begin
    cdef uint32_t i
    for i in range(view.columns + 1):
        literal = &family.literals[i]
        if direction and i == view.direction_index:
            literal = &family.second
        out = put(out, literal.text, literal.length)
        if i < view.columns:
            begin = out
            out = put_label_value(begin, label_ids[i], &table.strings)
            put_note(notes, out - begin, label_ids[i])
    return out


cdef inline char *put_copy(char *out, const char **text, uint32_t length) noexcept nogil:
    # Copies `text` to `out`, and sets `text` to the start of the copy.
    memcpy(out, text[0], length)
    text[0] = out
    return out + length


cdef inline char *put_before_value(char *out, const HistogramText *text, const Literal *name,
                                   const char **labels, uint32_t length) noexcept nogil:
    out = put(out, name.text, name.length)
    out = put_copy(out, labels, length)
    return put(out, text.end.text, text.end.length)


cdef inline char *put_value_with_note(char *out, uint64_t value, uint32_t decimals,
                                      Piece **notes) noexcept nogil:
    cdef char *end = put_value(out, value, decimals)
    put_note(notes, end - out, TEXT)
    return end


cdef inline char *put_item(char *out, uint64_t value, uint32_t decimals,
                           Piece **notes) noexcept nogil:
    # Like `put_value_with_note`, but without a newline.
    cdef char *end = put_value(out, value, decimals) - 1
    put_note(notes, end - out, TEXT)
    return end
