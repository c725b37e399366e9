# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Splits the JSON text of a list into its elements while the text arrives, without holding the GIL.

A response of the topology API can be a hundred megabytes long. Decoding the whole text in one call
would need memory for the text and for all objects. It would also hold the GIL for a large part of a
second.

To find the commas between the elements, the splitter counts brackets and skips strings. This takes
about 1 ns per byte. The syntax inside the elements is checked later, when msgspec decodes each
element.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize

cdef enum:
    # Maximum number of elements that one call of `_scan` finds.
    MAX_FOUND = 1024

cdef enum _Place:
    BEFORE_LIST
    IN_NULL
    FIRST           # after the opening bracket: expects an element or the closing bracket
    NEXT            # after a comma: expects an element
    IN_ELEMENT
    AFTER_LIST
    INVALID

cdef struct _State:
    _Place place
    Py_ssize_t depth        # number of open brackets within the element
    bint in_string
    bint escaped            # whether a backslash in a string escapes the next character
    int letters             # number of letters of "null" that have been read

cdef struct _Found:
    Py_ssize_t begin    # offset in the scanned piece; 0 if the element began in an earlier piece
    Py_ssize_t end      # offset of the character after the element

cdef const char *_NULL = "null"


cdef inline bint _is_space(unsigned char char) noexcept nogil:
    return char == c' ' or char == c'\n' or char == c'\t' or char == c'\r'


cdef Py_ssize_t _scan(
    const unsigned char *text, Py_ssize_t start, Py_ssize_t size,
    _State *state, _Found *found, int *count, Py_ssize_t *begin,
) noexcept nogil:
    """Store in ``found`` the elements that end in ``text[start:]``, up to `MAX_FOUND` elements.

    Returns the offset at which the next call starts, or the offset of the error if ``state.place``
    is ``INVALID``. ``begin`` is set to the offset of the element that has not ended yet.
    """
    cdef Py_ssize_t index = start
    cdef unsigned char char
    count[0] = 0
    while index < size:
        char = text[index]
        if state.place == IN_ELEMENT:
            if state.in_string:
                if state.escaped:
                    state.escaped = False
                    index += 1
                while index < size and text[index] != c'"' and text[index] != c'\\':
                    index += 1
                if index < size:
                    state.escaped = text[index] == c'\\'
                    state.in_string = state.escaped
                    index += 1
                continue
            if char == c'"':
                state.in_string = True
            elif char == c'{' or char == c'[':
                state.depth += 1
            elif char == c'}' or char == c']':
                if state.depth:
                    state.depth -= 1
                elif char == c']':
                    found[count[0]].begin = begin[0]
                    found[count[0]].end = index
                    count[0] += 1
                    state.place = AFTER_LIST
                    return index + 1
                else:
                    state.place = INVALID
                    return index
            elif char == c',' and not state.depth:
                found[count[0]].begin = begin[0]
                found[count[0]].end = index
                count[0] += 1
                state.place = NEXT
                if count[0] == MAX_FOUND:
                    return index + 1
        elif _is_space(char) and state.place != IN_NULL:
            pass
        elif state.place == FIRST and char == c']':
            state.place = AFTER_LIST
        elif state.place == FIRST or state.place == NEXT:
            if char == c',' or char == c']' or char == c'}':
                state.place = INVALID
                return index
            begin[0] = index
            state.place = IN_ELEMENT
            continue
        elif state.place == BEFORE_LIST and char == c'[':
            state.place = FIRST
        elif state.place == BEFORE_LIST and char == c'n':
            state.place = IN_NULL
            state.letters = 1
        elif state.place == IN_NULL and char == _NULL[state.letters]:
            state.letters += 1
            if state.letters == 4:
                state.place = AFTER_LIST
        else:
            state.place = INVALID
            return index
        index += 1
    return size


cdef class ArraySplitter:
    cdef _State _state
    cdef bytearray _partial     # the received part of the element that has not ended yet
    cdef Py_ssize_t _max_element_bytes
    cdef bint _skipping         # whether the element that has not ended yet is too long
    cdef Py_ssize_t _offset     # total size of all earlier pieces
    cdef readonly Py_ssize_t skipped

    def __cinit__(self, *, Py_ssize_t max_element_bytes):
        if max_element_bytes < 1:
            raise ValueError("max_element_bytes must be positive")
        self._state.place = BEFORE_LIST
        self._partial = bytearray()
        self._max_element_bytes = max_element_bytes

    def feed(self, const unsigned char[::1] piece not None, /):
        cdef Py_ssize_t size = piece.shape[0], index = 0, begin = 0, number
        cdef const unsigned char *text
        cdef int count
        cdef _Found[MAX_FOUND] found
        cdef _Found *part
        cdef list elements = []
        if not size:
            return elements
        text = &piece[0]
        while index < size:
            with nogil:
                index = _scan(text, index, size, &self._state, found, &count, &begin)
            for number in range(count):
                part = &found[number]
                self._add(elements, text + part.begin, part.end - part.begin)
            if self._state.place == INVALID:
                raise ValueError(f"not a JSON list: unexpected text at byte {self._offset + index}")
        if self._state.place == IN_ELEMENT:
            self._keep(text + begin, size - begin)
        self._offset += size
        return elements

    def close(self):
        if self._state.place != AFTER_LIST:
            raise ValueError(f"not a JSON list: the text ends after {self._offset} bytes")

    cdef int _add(self, list elements, const unsigned char *text, Py_ssize_t size) except -1:
        """Complete an element with the first ``size`` bytes of ``text``; add it or skip it."""
        if self._skipping or len(self._partial) + size > self._max_element_bytes:
            self.skipped += 1
        elif self._partial:
            self._partial += (<const char *> text)[:size]
            elements.append(bytes(self._partial))
        else:
            elements.append(PyBytes_FromStringAndSize(<const char *> text, size))
        self._partial = bytearray()
        self._skipping = False
        return 0

    cdef int _keep(self, const unsigned char *text, Py_ssize_t size) except -1:
        """Store the received part of an element that continues in the next piece."""
        if len(self._partial) + size > self._max_element_bytes:
            self._partial = bytearray()
            self._skipping = True
        if not self._skipping:
            self._partial += (<const char *> text)[:size]
        return 0
