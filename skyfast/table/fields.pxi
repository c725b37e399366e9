# Reading the fields of a flow: their locations in a decoded flow, and a function for each kind of
# value.
#
# This code uses Python objects, so it needs the GIL and must not run under the table's mutex. Flows
# are untrusted: an invalid value raises no exception, but is omitted, or the flow is skipped.
# Values are borrowed from the flow.

cdef struct Field:
    # The location of a value. The outer field is a field of the flow. If the outer field contains a
    # sub-struct (a *part*), the value can be an inner field: a field of this part. Fields are read
    # at the offset of their slot, or else by name. `Table.reader_objects` owns the names and types.
    Py_ssize_t outer_offset
    Py_ssize_t inner_offset     # -1: the value is a field of the flow itself
    PyTypeObject *inner_type
    PyObject *outer_name
    PyObject *inner_name
    bint is_string
    bint is_flow


cdef struct Number:
    # A counter or gauge: one field, or the sum of two fields.
    Field first
    Field second
    bint is_read                # if false, the value is always 0
    bint is_sum
    bint optional               # if true, the value is ABSENT when its part is missing


cdef struct Requirement:
    # Which parts a flow must have. Without `pair`: the first part. With `pair`: at least one of two
    # parts. With `pair` and `absent`: the first part, or neither part.
    Field parts[2]
    bint pair
    bint absent


cdef struct Column:
    # A label that does not come from a lookup, or a field that lookups use.
    Field field
    PyObject *rewrite           # owned by the plan; NULL if the label has no rewrite


cdef struct Lookup:
    # A lookup: one field of a flow is the key, and the result has one or more labels.
    PyObject *names             # owned by the plan
    bint is_dict                # items can be read with the functions for dicts
    bint has_context            # whether ambiguous keys (result None) are resolved with a context
    # in the label values of a report: indexes of the key, and of the two strings of the context
    uint32_t key
    uint32_t other
    uint32_t point
    uint32_t column             # the first column of the lookup; its columns are adjacent
    uint32_t columns
    # index of the first lookup with the same labels as this one: see `same_labels`
    uint32_t label_set
    Py_ssize_t length           # minimum length of a result


cdef struct Reader:
    # How to read the flows of one type.
    PyTypeObject *type
    bint slots                  # values are read at slot offsets, otherwise as attributes
    bint has_labels             # whether the type has the fields of labels and conversations
    bint has_lifecycle
    bint has_last_update
    Field uuid
    Field last
    Field finish
    Field start                 # set if `has_lifecycle` is true, like the next two fields
    Field update_start
    Field update_last
    Number last_update[MAX_VALUES]  # set if `has_last_update` is true
    Number totals[MAX_VALUES]   # counters, then gauges, then closing gauges
    Requirement required[MAX_SKIPS]
    Column columns[MAX_COLUMNS]     # set if `has_labels` is true, like the next two fields
    Field conversation[5]       # protocol, then address and port of each end
    Field point


cdef inline PyObject *slot(PyObject *owner, Py_ssize_t offset, PyObject *name,
                           bint slots) except? NULL:
    # The reference is borrowed: the struct keeps the value alive.
    cdef PyObject *value
    if likely(slots):
        return (<PyObject **>(<char *>owner + offset))[0]
    value = PyObject_GetAttr(owner, name)
    Py_DECREF(<object>value)
    return value


cdef inline PyObject *read_part(PyObject *flow, const Field *field, bint slots) except? NULL:
    # The part that contains a nested field; NULL if the part is missing or has another type.
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
    # Returns SKIP_NONE or the reason to skip the flow. A missing value counts as 0.
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
    SECOND_FIELD = 1 << 8       # added to a reason: the error is in the second field of a number


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
    # `omitted` is the report's `omitted_values` or `omitted_last_update`.
    init_omissions(report)
    omitted.fields[1 if error & SECOND_FIELD else 0] |= <uint64_t>1 << value


cdef void omit_lifecycle(Report *report, uint32_t field) noexcept nogil:
    init_omissions(report)
    report.omitted_lifecycle |= <uint32_t>1 << field


cdef inline bint is_omitted(const OmittedFields *omitted, uint32_t field) noexcept nogil:
    # `field` is twice the value's index, plus 1 for the second field of the value.
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
    # The offset of the field `name` in instances of `owner`; -1 if the field is not a plain slot.
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
