# Reading the fields of a decoded flow: structs for the locations of fields, and one function per
# kind of value.
#
# This code uses Python objects, so it needs the GIL and must not run under the table's mutex. Flows
# are untrusted: an invalid value does not raise an exception. Instead, the value is omitted or the
# flow is skipped. Values are borrowed from the flow.

cdef struct Field:
    # The location of a value: a field of the flow, or a field of one of the flow's sub-structs
    # (*parts*). `Table.reader_objects` owns the names and the type.
    Py_ssize_t outer_offset     # offset in the flow: slot of the value, or of the value's part
    Py_ssize_t inner_offset     # offset in the part: slot of the value; -1: it is not in a part
    PyTypeObject *inner_type    # type of the part
    PyObject *outer_name        # name of the flow's field; only used if `Reader.slots` is false
    PyObject *inner_name        # name of the part's field; only used if `Reader.slots` is false
    bint is_string
    bint is_flow                # whether the value is the flow itself


cdef struct Number:
    # How to read a counter or gauge: the value of one field, or the sum of two fields.
    Field first
    Field second                # only used if `is_sum` is true
    bint is_read                # if false, the value is always 0
    bint is_sum
    bint optional               # if true, the value is ABSENT if its part is missing


cdef struct Requirement:
    # Which parts a flow must have:
    #
    # * if `pair` is false: the first part
    # * if only `pair` is true: at least one of the two parts
    # * if `pair` and `absent` are true: the first part, or neither part
    Field parts[2]
    bint pair
    bint absent


cdef struct Column:
    # How to read a label that does not come from a lookup, or a string that lookups use.
    Field field
    PyObject *rewrite           # owned by the plan; NULL if the label has no rewrite


cdef struct Lookup:
    # A lookup: one field of a flow is the key, and the result is a tuple with one or more labels.
    PyObject *names             # the mapping from keys to results; owned by the plan
    bint is_dict                # whether `names` can be read with the C functions for dicts
    # Whether keys can be ambiguous. `names` maps an ambiguous key to None, because its result
    # depends on the *context*: the other address of the flow, and the capture point.
    bint has_context
    uint32_t key                # in `Report.label_values`: index of the key
    uint32_t other              # in `Report.label_values`: index of the other address
    uint32_t point              # in `Report.label_values`: index of the capture point
    uint32_t column             # index of the first column; the columns of a lookup are adjacent
    uint32_t columns            # how many columns the lookup has
    uint32_t label_set          # index of the first lookup with the same labels: see `same_labels`
    Py_ssize_t length           # minimum length of a result


cdef struct Reader:
    # How to read the flows of one type.
    PyTypeObject *type
    bint slots                  # whether fields are read at the offsets of slots, not by name
    bint has_labels             # whether the type has the fields for labels and conversations
    bint has_lifecycle
    bint has_last_update
    Field uuid
    Field last
    Field finish
    Field start                 # only set if `has_lifecycle` is true
    Field update_start          # only set if `has_lifecycle` is true
    Field update_last           # only set if `has_lifecycle` is true
    Number last_update[MAX_VALUES]  # only set if `has_last_update` is true
    Number totals[MAX_VALUES]   # counters, then gauges, then closing gauges
    Requirement required[MAX_SKIPS]
    Column columns[MAX_COLUMNS]     # only set if `has_labels` is true
    # The protocol, then the address and port of each end. Only set if `has_labels` is true.
    Field conversation[5]
    Field point                 # the capture point; only set if `has_labels` is true


cdef inline PyObject *slot(PyObject *owner, Py_ssize_t offset, PyObject *name,
                           bint slots) except? NULL:
    # Returns a borrowed reference: `owner` keeps the value alive.
    cdef PyObject *value
    if likely(slots):
        return (<PyObject **>(<char *>owner + offset))[0]
    value = PyObject_GetAttr(owner, name)
    Py_DECREF(<object>value)
    return value


cdef inline PyObject *read_part(PyObject *flow, const Field *field, bint slots) except? NULL:
    # Returns the part that contains the field, or NULL if the part is missing or has another type.
    cdef PyObject *owner = slot(flow, field.outer_offset, field.outer_name, slots)
    if owner == NULL or Py_TYPE(owner) != field.inner_type:
        return NULL
    return owner


cdef inline PyObject *value_of(PyObject *flow, const Field *field, bint slots) except? NULL:
    cdef PyObject *owner
    if unlikely(field.is_flow):
        return flow
    if field.inner_offset < 0:
        return slot(flow, field.outer_offset, field.outer_name, slots)
    owner = read_part(flow, field, slots)
    if owner == NULL:
        return NULL
    return slot(owner, field.inner_offset, field.inner_name, slots)


cdef inline int read_integer(PyObject *value, int64_t *out) except -1:
    # Sets `out` to the integer, or to 0 if `value` is NULL. Returns SKIP_NONE, or the reason why
    # the integer is invalid.
    cdef int overflow
    out[0] = 0
    if value == NULL:
        return SKIP_NONE
    if unlikely(not PyLong_CheckExact(value)):
        return SKIP_INVALID
    out[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
    if unlikely(overflow or out[0] < 0 or out[0] > MAX_INTEGER):
        return SKIP_OUT_OF_RANGE
    return SKIP_NONE


cdef enum:
    SECOND_FIELD = 1 << 8       # flag of a reason to skip: the second field of a sum is invalid


cdef inline int read_number(PyObject *flow, const Number *number, bint slots,
                            int64_t *out) except -1:
    cdef PyObject *value = value_of(flow, &number.first, slots)
    cdef int64_t second = 0
    cdef int error
    if unlikely(value == NULL and number.optional):
        out[0] = ABSENT
        return SKIP_NONE
    error = read_integer(value, out)
    if unlikely(number.is_sum) and error == SKIP_NONE:
        error = read_integer(value_of(flow, &number.second, slots), &second)
        if error == SKIP_NONE and out[0] > MAX_INTEGER - second:
            error = SKIP_OUT_OF_RANGE
        if unlikely(error):
            return error | SECOND_FIELD
        out[0] += second
    return error


cdef void init_omissions(Report *report) noexcept nogil:
    if not report.has_omissions:
        report.has_omissions = True
        report.omitted_lifecycle = 0
        memset(&report.omitted_values, 0, sizeof(OmittedFields))
        memset(&report.omitted_last_update, 0, sizeof(OmittedFields))


cdef void omit_value(Report *report, OmittedFields *omitted, uint32_t value,
                     int error) noexcept nogil:
    # `omitted` must be `report.omitted_values` or `report.omitted_last_update`.
    init_omissions(report)
    omitted.fields[1 if error & SECOND_FIELD else 0] |= <uint64_t>1 << value


cdef void omit_lifecycle(Report *report, uint32_t field) noexcept nogil:
    init_omissions(report)
    report.omitted_lifecycle |= <uint32_t>1 << field


cdef inline bint is_omitted(const OmittedFields *omitted, uint32_t field) noexcept nogil:
    # `field` is 2 * i for the first field of value `i`, or 2 * i + 1 for its second field.
    return omitted.fields[field & 1] >> (field >> 1) & 1


cdef inline int read_text(PyObject *value, const char **text, uint32_t *length) except -1:
    cdef Py_ssize_t size
    text[0] = ""
    length[0] = 0
    if value == NULL:
        return SKIP_NONE
    if unlikely(not PyUnicode_CheckExact(value)):
        return SKIP_INVALID
    if likely(PyUnicode_IS_COMPACT_ASCII(value)):
        text[0] = <const char *>PyUnicode_DATA(value)
        size = PyUnicode_GET_LENGTH(value)
    else:
        try:
            text[0] = PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError:      # a lone surrogate
            return SKIP_INVALID
    if unlikely(size > MAX_TEXT_BYTES):
        return SKIP_TEXT_TOO_LONG
    length[0] = <uint32_t>size
    return SKIP_NONE


cdef Py_ssize_t member_offset(owner, str name):
    # The offset of the field `name` in instances of `owner`, or -1 if the field is not a slot.
    descriptor = owner.__dict__.get(name)
    if type(descriptor).__name__ != "member_descriptor":
        return -1
    cdef PyMemberDef *member = (<PyMemberDescrObject *><PyObject *>descriptor).d_member
    return member.offset if member.type == T_OBJECT_EX else -1


cdef bint slot_reads_as(owner, str name, Py_ssize_t offset):
    # Whether the value of the field `name` can be read at this offset in an instance of `owner`.
    if offset <= 0:
        return False
    sample = owner()
    marker = object()
    setattr(sample, name, marker)
    return (<PyObject **>(<char *><PyObject *>sample + offset))[0] == <PyObject *>marker
