# Readers: a reader has the locations of the fields that the table needs, in flows of one type.
#
# `Table.set_flow_types` calls this code, with the GIL.

cdef int resolve_readers(Reader *readers, types, plan, bint slots, list owned) except -1:
    # Adds to `owned` the Python objects that the readers borrow. If a check shows that the offsets
    # of a reader are wrong, sets `Reader.slots` to False, so that fields are read by name.
    cdef Reader *reader
    cdef uint32_t i
    owners = (types.KnownReport, types.Update, types.FirstReport, types.FullReport)
    for i, owner in enumerate(owners):
        reader = &readers[i]
        reader.slots = slots
        reader.has_labels = owner is not types.KnownReport or owner is types.Update
        reader.has_lifecycle = i > 1
        reader.has_last_update = i > 2
        owned.append(owner)
        reader.type = <PyTypeObject *><PyObject *>owner
        resolve_times(reader, owner, owned)
        resolve_values(reader, owner, plan, owned)
        resolve_requirements(reader, owner, plan, owned)
        if reader.has_labels:
            resolve_columns(reader, owner, plan, owned)
            resolve_conversation(reader, owner, plan, owned)
    return 0


cdef int resolve_times(Reader *reader, owner, list owned) except -1:
    resolve_field(reader, &reader.uuid, owner, ("UUID",), owned)
    resolve_field(reader, &reader.last, owner, ("Last",), owned)
    resolve_field(reader, &reader.finish, owner, ("FinishType",), owned)
    if reader.has_lifecycle:
        resolve_field(reader, &reader.start, owner, ("Start",), owned)
        resolve_field(reader, &reader.update_start, owner, ("LastUpdateMetric", "Start"), owned)
        resolve_field(reader, &reader.update_last, owner, ("LastUpdateMetric", "Last"), owned)
    return 0


cdef int resolve_values(Reader *reader, owner, plan, list owned) except -1:
    cdef uint32_t i
    if reader.has_last_update:
        for i, counter in enumerate(plan.counters):
            resolve_number(reader, &reader.last_update[i], owner, counter.last_update, False, owned)
    for i, counter in enumerate(plan.counters):
        resolve_number(reader, &reader.totals[i], owner, counter.paths, counter.optional, owned)
    for i, gauge in enumerate((*plan.gauges, *plan.closing_gauges), len(plan.counters)):
        resolve_number(reader, &reader.totals[i], owner, (gauge.path,), False, owned)
    return 0


cdef int resolve_columns(Reader *reader, owner, plan, list owned) except -1:
    cdef uint32_t i
    for i, column in enumerate(ordered_columns(plan)):
        if column.lookup is not None:
            continue
        resolve_field(reader, &reader.columns[i].field, owner, column.path, owned)
        if column.rewrite is not None:
            reader.columns[i].rewrite = <PyObject *>column.rewrite
    for i, path in enumerate(key_paths(plan), len(plan.columns)):
        resolve_field(reader, &reader.columns[i].field, owner, path, owned)
        if not reader.columns[i].field.is_string:
            raise ValueError("the key and the context of a lookup must be strings")
    return 0


cdef int resolve_requirements(Reader *reader, owner, plan, list owned) except -1:
    cdef uint32_t i, j
    for i, requirement in enumerate(plan.requirements):
        if not requirement.paths or len(requirement.reads) > 2:
            raise ValueError("a requirement must name one or two parts of a flow")
        reader.required[i].pair = len(requirement.reads) == 2
        reader.required[i].absent = len(requirement.unless_missing) > 0
        for j, path in enumerate(requirement.reads):
            resolve_field(reader, &reader.required[i].parts[j], owner, path, owned)
    return 0


cdef int resolve_conversation(Reader *reader, owner, plan, list owned) except -1:
    cdef uint32_t i
    for known in (plan.conversation, plan.shard and plan.shard.conversation):
        if known is not None:
            for i, path in enumerate(known.paths):
                resolve_field(reader, &reader.conversation[i], owner, path, owned)
    if plan.conversation is not None:
        resolve_field(reader, &reader.point, owner, plan.conversation.point, owned)
    return 0


cdef int resolve_number(Reader *reader, Number *number, owner, tuple paths, bint optional,
                        list owned) except -1:
    if len(paths) > 2:
        raise ValueError("a counter must be one field or the sum of two")
    number.is_read = len(paths) > 0
    number.is_sum = len(paths) == 2
    number.optional = optional
    if number.is_read:
        resolve_field(reader, &number.first, owner, paths[0], owned)
    if number.is_sum:
        resolve_field(reader, &number.second, owner, paths[1], owned)
    return 0


cdef int resolve_field(Reader *reader, Field *field, owner, tuple path, list owned) except -1:
    if not path:
        field.is_flow = True
        return 0
    cdef str name = path[0]
    owned.append((owner, path))
    field.outer_name = <PyObject *>name
    field.outer_offset = member_offset(owner, name)
    field.inner_offset = -1
    if not slot_reads_as(owner, name, field.outer_offset):
        reader.slots = False
    kind = {f.name: f.type for f in msgspec.structs.fields(owner)}[name]
    inner = next((t for t in typing.get_args(kind) if t is not type(None)), None)
    if inner is None:
        field.is_string = kind is str
        return 0
    owned.append(inner)
    field.inner_type = <PyTypeObject *><PyObject *>inner
    if len(path) == 1:              # a requirement only checks whether the part is present
        return 0
    field.inner_name = <PyObject *>path[1]
    field.inner_offset = member_offset(inner, path[1])
    if not slot_reads_as(inner, path[1], field.inner_offset):
        reader.slots = False
        field.inner_offset = 0
    field.is_string = {f.name: f.type for f in msgspec.structs.fields(inner)}[path[1]] is str
    return 0
