# Layout: finds out where the plan's labels and values are located in rows, and in the lines of a
# page. `readers.pxi` finds the locations of fields in decoded flows.
#
# Most of this code runs once, in `Table.__cinit__`, before other threads use the table. If it
# raises an exception there, `state_destroy` still frees all memory of the table.

cdef void *allocate(size_t size) except NULL:
    cdef void *memory = malloc(size if size else 1)
    if memory == NULL:
        raise MemoryError
    memset(memory, 0, size)
    return memory


cdef int wheel_allocate(TimerWheel *wheel, double timeout_s) except -1:
    # The wheel gets one slot for each second of the timeout, and some spare slots, but never more
    # than MAX_WHEEL_SLOTS. If the timeout has more seconds than the wheel has slots, a row is
    # visited before its deadline, and added to the wheel again.
    cdef uint32_t slots = 4
    while slots < timeout_s + 2 and slots < MAX_WHEEL_SLOTS:
        slots *= 2
    wheel.mask = slots - 1
    wheel.slots = <uint32_t *>allocate(slots * sizeof(uint32_t))
    return 0


cdef list state_init(TableState *table, plan, bytes overflow_label):
    # Returns the field names that `number_fields` returns. The table borrows `overflow_label`, so
    # the caller must keep it alive.
    if (not 0 < len(plan.views) <= MAX_VIEWS
            or len(plan.counters) + len(plan.gauges) + len(plan.closing_gauges) > MAX_VALUES
            or len(plan.requirements) > MAX_SKIPS - SKIP_REQUIRED):
        raise ValueError("the plan has too many views, values or requirements")
    number_values(table, plan)
    number_columns(table, plan)
    prepare_lookups(table, plan)
    names = number_fields(table, plan)
    set_shard(table, plan.shard)
    table.has_overflow_rows = plan.overflow is not None
    table.overflow_text = overflow_label
    table.overflow_length = len(overflow_label)
    if (table.overflow_length > MAX_TEXT_BYTES
            or needs_escape(table.overflow_text, table.overflow_length)):
        raise ValueError("the overflow label is too long or requires escapes")
    table.seed = int.from_bytes(os.urandom(8), "little")
    table.has_conversations = plan.conversation is not None
    table.flow_update_s = 60
    if not rows_init(&table.strings, &table.arena, sizeof(String)):
        raise MemoryError
    prepare_names(table)
    prepare_views(table, plan)
    prepare_families(table, plan)
    return names


cdef int set_shard(TableState *table, shard) except -1:
    table.shards = 1
    if shard is not None:
        if not 0 <= shard.index < shard.count:
            raise ValueError("the index of a shard must be below the number of shards")
        table.shard = shard.index
        table.shards = shard.count
    return 0


cdef void state_destroy(TableState *table) noexcept nogil:
    cdef uint32_t i, j
    cdef String *string
    cdef Family *family
    for i in range(1, table.strings.end):
        string = <String *>row_at(&table.strings, i)
        if string.refs and string.length > INLINE_STRING:
            free((<char **>string.inline)[0])
    rows_destroy(&table.strings)
    rows_destroy(&table.names)
    rows_destroy(&table.flow_rows)
    rows_destroy(&table.conversations)
    for i in range(table.family_count):
        family = &table.families[i]
        for j in range(table.views[family.view].columns + 1):
            free(family.literals[j].text)
        free(family.literals)
        free(family.second.text)
        free_histogram_text(family.text)
        free(family.created.text)
        for j in range(3):
            free(family.heads[j])
    for i in range(table.view_count):
        rows_destroy(&table.views[i].rows)
        free(table.views[i].wheel.slots)
        free(table.views[i].histograms)
    arena_destroy(&table.arena)
    free(table.views)
    free(table.families)
    free(table.wheel.slots)
    free(table.names_wheel.slots)
    pthread_mutex_destroy(&table.lock)


cdef int batch_allocate(Batch *batch, const TableState *table) except -1:
    cdef uint32_t i
    batch.values = <int64_t *>allocate(BATCH * table.all_values * sizeof(int64_t))
    batch.last_update = <int64_t *>allocate(BATCH * table.counters * sizeof(int64_t))
    batch.label_values = <LabelValue *>allocate(
        BATCH * table.label_value_count * sizeof(LabelValue)
    )
    batch.names = <FoundNames *>allocate(BATCH * table.lookup_count * sizeof(FoundNames))
    batch.missed = <uint32_t *>allocate(BATCH * table.lookup_count * sizeof(uint32_t))
    for i in range(BATCH):
        batch.reports[i].values = batch.values + i * table.all_values
        batch.reports[i].last_update = batch.last_update + i * table.counters
        batch.reports[i].label_values = batch.label_values + i * table.label_value_count
    return 0


cdef void batch_destroy(Batch *batch) noexcept nogil:
    free(batch.values)
    free(batch.last_update)
    free(batch.label_values)
    free(batch.names)
    free(batch.missed)


# ---------------------------------------------------------------------------------------------
# Numbering columns, values and fields

cdef list lookups_of(plan):
    return list(dict.fromkeys(c.lookup for c in plan.columns if c.lookup is not None))


cdef list ordered_columns(plan):
    # The columns in the order of their numbers: first the columns of the first lookup, then those
    # of the second lookup, and so on. The columns without a lookup come last.
    lookup_columns = [c for lookup in lookups_of(plan) for c in plan.columns if c.lookup is lookup]
    return [*lookup_columns, *(c for c in plan.columns if c.lookup is None)]


cdef list key_paths(plan):
    # The paths of the fields that lookups use as keys or as context.
    paths = (path for lookup in lookups_of(plan) for path in (lookup.key, *lookup.context))
    return list(dict.fromkeys(paths))


cdef int number_columns(TableState *table, plan) except -1:
    table.columns = len(plan.columns)
    if len(plan.columns) + len(key_paths(plan)) > MAX_COLUMNS:
        raise ValueError("the plan has too many labels")
    table.label_value_count = len(plan.columns) + len(key_paths(plan))
    table.lookup_columns = sum(column.lookup is not None for column in plan.columns)
    return 0


cdef int prepare_lookups(TableState *table, plan) except -1:
    cdef Lookup *lookup
    cdef uint32_t i, column = 0
    keys = {path: i for i, path in enumerate(key_paths(plan), len(plan.columns))}
    for i, planned in enumerate(ordered_columns(plan)):
        if planned.path in keys and planned.lookup is None and planned.rewrite is None:
            table.key_is_column[keys[planned.path]] = True
            table.key_columns[keys[planned.path]] = i
    for i, declared in enumerate(lookups_of(plan)):
        lookup = &table.lookups[i]
        lookup.names = <PyObject *>declared.names
        lookup.is_dict = (isinstance(declared.names, dict)
                          and type(declared.names).__getitem__ is dict.__getitem__)
        lookup.key = keys[declared.key]
        lookup.has_context = len(declared.context) > 0
        if lookup.has_context:
            other, point = declared.context
            lookup.other = keys[other]
            lookup.point = keys[point]
        lookup.column = column
        for planned in plan.columns:
            if planned.lookup is declared:
                if planned.index < 0 or planned.rewrite is not None:
                    raise ValueError("a label of a lookup must have an index and no rewrite")
                table.name_indexes[column] = planned.index
                lookup.length = max(lookup.length, <Py_ssize_t>planned.index + 1)
                column += 1
        lookup.columns = column - lookup.column
        lookup.label_set = 0
        while not same_labels(table, lookup, &table.lookups[lookup.label_set]):
            lookup.label_set += 1
        table.lookup_count += 1
    return 0


cdef bint same_labels(const TableState *table, const Lookup *one, const Lookup *other) noexcept:
    # Whether two lookups read the same elements of a result, in the same order.
    return one.columns == other.columns and memcmp(
        &table.name_indexes[one.column], &table.name_indexes[other.column],
        one.columns * sizeof(uint32_t)
    ) == 0


cdef int prepare_names(TableState *table) except -1:
    cdef uint32_t i, labels = 0
    for i in range(table.lookup_count):
        labels = max(labels, table.lookups[i].columns)
    if table.lookup_count and not rows_init(
        &table.names, &table.arena, (sizeof(NamesRow) + 4 * (labels - 1) + 7) & ~7
    ):
        raise MemoryError
    return 0


cdef int number_values(TableState *table, plan) except -1:
    cdef uint32_t i
    table.counters = len(plan.counters)
    table.values = table.counters + len(plan.gauges)
    table.all_values = table.values + len(plan.closing_gauges)
    table.requirements = len(plan.requirements)
    table.counts_new_flows = len(plan.new_flows) > 0
    for i, counter in enumerate(plan.counters):
        table.optional[i] = counter.optional
    for i, gauge in enumerate(plan.gauges, table.counters):
        table.gauge_kinds[i] = GAUGE_KINDS.index(gauge.keep)
    return 0


cdef list number_fields(TableState *table, plan):
    # Numbers the lifecycle fields and the fields from which values are read. Returns the names of
    # these fields, in the order of their numbers. A field that is never omitted has None instead of
    # a name.
    cdef uint32_t i, j
    numbers = {}

    def number(path):
        return numbers.setdefault(path, len(numbers))

    update = "LastUpdateMetric"
    lifecycle = (("FinishType",), ("Start",), (update, "Start"), (update, "Last"))
    for i, path in enumerate(lifecycle):
        table.lifecycle_fields[i] = number(path)
    for i, counter in enumerate(plan.counters):
        for j, path in enumerate(counter.paths):
            table.value_fields[2 * i + j] = number(path)
        for j, path in enumerate(counter.last_update):
            table.last_update_fields[2 * i + j] = number(path)
    for i, gauge in enumerate((*plan.gauges, *plan.closing_gauges), table.counters):
        table.value_fields[2 * i] = number(gauge.path)
    required = {
        path for counter in plan.counters if not counter.optional for path in counter.paths
    }
    return [None if path in required else ".".join(path) for path in numbers]


# ---------------------------------------------------------------------------------------------
# Locations of values in rows

cdef int prepare_views(TableState *table, plan) except -1:
    # Also initializes the slab allocators of flow rows and conversation rows.
    cdef uint32_t i, stride, connection_links = 0
    cdef uint32_t flow_links = 1 if table.has_conversations else 0
    cdef View *view
    first = set(plan.views[0].columns)
    table.views = <View *>allocate(len(plan.views) * sizeof(View))
    table.view_count = len(plan.views)
    for i, declared in enumerate(plan.views):
        view = &table.views[i]
        number_view(table, view, declared, plan)
        if i == 0:
            continue
        view.linked_from_flow = not first.issuperset(declared.columns)
        if view.linked_from_flow:
            view.link = flow_links
            flow_links += 1
        else:
            view.link = connection_links
            connection_links += 1
    table.first_lookup_string = flow_links
    flow_links += table.label_value_count - table.columns
    prepare_histograms(table, plan)
    if table.events:
        table.flags_link = flow_links
        flow_links += 1
    table.links_offset = sizeof(Flow) + 8 * table.counters
    if not (
        rows_init(&table.flow_rows, &table.arena, (table.links_offset + 4 * flow_links + 7) & ~7)
        and (not table.has_conversations
             or rows_init(&table.conversations, &table.arena, sizeof(Conversation)))
    ):
        raise MemoryError
    for i in range(table.view_count):
        view = &table.views[i]
        view.values_offset = sizeof(Connection)
        if i == 0 and connection_links > 1:
            view.values_offset = (sizeof(Connection) + 4 * (connection_links - 1) + 7) & ~7
        view.start_offset = view.values_offset + 8 * (view.values + view.counts_new_flows)
        view.label_ids_offset = view.start_offset + sizeof(int64_t)
        view.label_ids_offset += place_histograms(view, view.label_ids_offset)
        stride = (view.label_ids_offset + 4 * view.columns + 7) & ~7
        if not rows_init(&view.rows, &table.arena, stride):
            raise MemoryError
    return 0


cdef int number_view(const TableState *table, View *view, declared, plan) except -1:
    cdef uint32_t j
    numbers = {column: i for i, column in enumerate(ordered_columns(plan))}
    values = {value: i for i, value in enumerate((*plan.counters, *plan.gauges))}
    view.counts_new_flows = any(
        value in plan.new_flows for family in declared.families for value in family.values
    )
    sources = sorted(
        {values[v] for family in declared.families for v in family.values if v in values}
        | {values[v] for v in (*declared.bytes, *declared.packets)}
    )
    if len(declared.columns) > MAX_VIEW_COLUMNS or len(sources) > MAX_VIEW_VALUES:
        raise ValueError("a view has too many labels or values")
    view.columns = len(declared.columns)
    for j, column in enumerate(declared.columns):
        view.plan_columns[j] = numbers[column]
    view.values = len(sources)
    for j, source in enumerate(sources):
        view.sources[j] = source
        if source < table.counters:
            view.counters = j + 1
    resolve_amount(&view.bytes, view, declared.bytes, plan)
    resolve_amount(&view.packets, view, declared.packets, plan)
    view.identifies_connection = declared.identifies_connection
    view.direction_index = 0 if declared.direction is None else declared.direction.position
    if view.direction_index > view.columns:
        raise ValueError("a direction must be among or after the labels of its view")
    return 0


# ---------------------------------------------------------------------------------------------
# Locations of values in lines. A *literal* is a constant part of a line. Each label value follows
# a literal, and the sample's value follows the last literal. If a row has a line per direction, the
# two lines differ only in their values and in the literal that contains the direction.

cdef int prepare_families(TableState *table, plan) except -1:
    cdef uint32_t i, histogram
    cdef size_t bytes_, longest = 0
    table.families = <Family *>allocate(
        sum(len(view.families) for view in plan.views) * sizeof(Family)
    )
    for i, planned in enumerate(plan.views):
        histogram = 0
        for declared in planned.families:
            # From here on, the table frees the family's memory.
            table.families[table.family_count].view = i
            table.families[table.family_count].literals = <Literal *>allocate(
                (table.views[i].columns + 1) * sizeof(Literal)
            )
            table.family_count += 1
            bytes_ = prepare_family(
                &table.families[table.family_count - 1], &table.views[i], declared, planned, plan,
                histogram,
            )
            longest = max(longest, bytes_)
            histogram += sum(value in plan.histograms for value in declared.values)
    table.max_lines = longest + 64      # `put` copies whole blocks, even beyond the end of a line
    return 0


cdef size_t prepare_family(Family *family, const View *view, declared, planned, plan,
                           uint32_t histogram) except? 0:
    # `histogram` is the number of histograms in earlier families of the view. Returns the larger of
    # two sizes in bytes: the size of the family's longest head (the metadata lines), and the
    # maximum size of the lines of one connection.
    cdef uint32_t j, k
    cdef size_t fixed, longest = 0
    cdef bytes head
    cdef bytes name = declared.name.encode()
    values = {value: i for i, value in enumerate((*plan.counters, *plan.gauges))}
    family.directions = len(declared.values)
    if not 1 <= family.directions <= (1 if planned.direction is None else 2):
        raise ValueError(f"{declared.name} has more values than directions")
    for j, value in enumerate(declared.values):
        family.values[j] = view.values if value in plan.new_flows else FLOWS
        for k in range(view.values):
            if value in values and view.sources[k] == values[value]:
                family.values[j] = k
    family.absent = 0 if declared.values[0] in plan.gauges else ABSENT
    family.decimals = declared.decimals
    if family.decimals > MAX_DECIMALS:
        raise ValueError(f"{declared.name} has more decimals than a value has digits")
    family.is_counter = declared.type == "counter"
    family.name_length = len(name)
    literal_init(&family.created, declared.openmetrics_name + "_created")
    for j in range(3):
        head = declared.head(openmetrics=j).encode()
        family.heads[j] = <char *>allocate(len(head))
        family.head_lengths[j] = len(head)
        memcpy(family.heads[j], PyBytes_AS_STRING(head), len(head))
        longest = max(longest, <size_t>len(head))
    names = [column.name for column in planned.columns]
    is_histogram = declared.values[0] in plan.histograms
    lines = line_literals("" if is_histogram else declared.name, names, planned.direction)
    if is_histogram:
        lines = [histogram_literals(line) for line in lines]
    for j in range(view.columns + 1):
        literal_init(&family.literals[j], lines[0][j])
    literal_init(&family.second, lines[len(lines) - 1][view.direction_index])
    fixed = sum(len(text.encode()) for line in lines for text in line)
    fixed += 2 * (view.columns * MAX_LABEL_BYTES + MAX_INTEGER_DIGITS + 2)
    if is_histogram:
        labelled = bool(names) or planned.direction is not None
        fixed = prepare_histogram_text(family, declared, histogram, labelled, fixed)
    if family.is_counter:               # each line can be followed by a line with the start time
        fixed = 2 * (fixed + family.created.length + 1)
    return max(longest, fixed)


cdef int literal_init(Literal *literal, str text) except -1:
    cdef bytes encoded = text.encode()
    literal.length = len(encoded)
    literal.text = <char *>allocate(literal.length + 32)
    memcpy(literal.text, PyBytes_AS_STRING(encoded), literal.length)
    return 0


cdef list line_literals(str metric, list columns, direction):
    # Returns one list of literals per value of `direction`, or only one list if `direction` is
    # None. `columns` has the names of all labels except the direction. Example: without a
    # direction, the list for the metric `m` and the labels `a` and `b` has the literals `m{a="`,
    # `",b="` and `"} `.
    if direction is None:
        names = [f'{name}="' for name in columns]
        if not names:
            return [[f"{metric} "]]
        return [[f"{metric}{{{names[0]}", *(f'",{name}' for name in names[1:]), '"} ']]
    lines = []
    for value in direction.values:
        literals = []
        text = metric + "{"
        for position in range(len(columns) + 1):
            if position == direction.position:
                text += f'{direction.name}="{value}"' + ("," if position < len(columns) else "")
            if position < len(columns):
                literals.append(f'{text}{columns[position]}="')
                last = position + 1 == len(columns) and direction.position != position + 1
                text = '"' if last else '",'
        literals.append(text + "} ")
        lines.append(literals)
    return lines


# ---------------------------------------------------------------------------------------------
# Limits

cdef int set_limits(TableState *table, max_connections, max_flows, timeout_s, memory_s,
                    view_timeouts_s, bounds) except -1:
    cdef uint32_t i
    if not 0 < max_connections <= MAX_ROWS or not 0 < max_flows <= MAX_ROWS:
        raise ValueError(f"max_connections and max_flows must be 1 to {MAX_ROWS}")
    if not 0 < timeout_s <= 1 << 30:
        raise ValueError("timeout_s must be above 0 and at most 2^30")
    if not 0 <= memory_s <= 1 << 30:
        raise ValueError("memory_s must be 0 to 2^30")
    if len(view_timeouts_s) != table.view_count - 1:
        raise ValueError("each view except the first requires a timeout")
    if not all(timeout_s <= view_timeout_s <= 1 << 30 for view_timeout_s in view_timeouts_s):
        raise ValueError("a view's timeout must be at least timeout_s and at most 2^30")
    check_bounds(table, bounds)
    set_bounds(table, bounds)
    table.max_connections = max_connections
    table.max_flows = max_flows
    table.memory_s = memory_s
    if table.wheel.slots == NULL:
        wheel_allocate(&table.wheel, timeout_s)
        table.min_timeout_s = timeout_s
        wheel_allocate(&table.names_wheel, timeout_s)
    table.min_timeout_s = min(table.min_timeout_s, <double>timeout_s)
    table.views[0].timeout_s = timeout_s
    for i in range(1, table.view_count):
        table.views[i].timeout_s = view_timeouts_s[i - 1]
        if table.views[i].wheel.slots == NULL:
            wheel_allocate(&table.views[i].wheel, table.views[i].timeout_s)
    return 0


# ---------------------------------------------------------------------------------------------
# Sizes

cdef uint32_t row_bytes(const TableState *table) noexcept:
    # Implements `Table.row_bytes`.
    cdef uint32_t total = table.flow_rows.stride + table.views[0].rows.stride
    cdef uint32_t rows = 2
    if table.has_conversations:
        total += table.conversations.stride
        rows += 1
    return total + rows * BUCKETS_PER_ROW * sizeof(uint32_t)
