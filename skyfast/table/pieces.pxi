# Pieces: the parts of a page's text that may repeat earlier text of the page.
#
# A *piece* of text has a length and a *source*, which tells where the same bytes may have occurred
# before. Example: the text between two label values is the same in all lines of a family.
# `deflate.pxi` uses pieces to compress the text.
#
# Under the table's mutex, the renderer writes text and *notes*. The notes contain the lengths of
# label values and numbers, which differ from row to row. After the mutex is released,
# `expand_notes` turns the notes into pieces. Each function `expand_…` writes pieces in the order in
# which the corresponding function `render_…` writes the text.
#
# A note is stored in the same struct as a piece, with a length and a source:
#
# * The head of a family has one note. Its length is the length of the head, and its source is HEAD
#   plus the number of the family.
# * A row has one note for its numbers, then one note for each label value:
#   * The length in the first note packs three lengths: of the first direction's value, of the
#     second direction's value, and of the start time. If a direction has no line, the length of its
#     value is 0. If the lines have no start time, the length of the start time is 0.
#   * A note for a label value has the length of the value. Its source is the label ID.
# * A histogram has one note for its start time, then one note for each label value, then one note
#   for each number. If the histogram is written without a start time, the length of the first note
#   is 0.

# The source of a piece is either IS_STRING plus the number of an interned string, or one of these
# kinds plus a number. The source of an integer label value is its label ID, which may look like a
# source of any kind. This does no harm, because `deflate.pxi` compares the bytes.
cdef enum:
    TEXT = 0                    # new text: no earlier occurrence is known
    HEAD = 1 << 28              # the head of a family; in a note, plus the number of the family
    FIXED = 2 << 28             # plus a number: the same bytes as the latest piece with this source
    COPIED = 3 << 28            # plus a distance: the same bytes as the text this far back
    KIND = 7 << 28              # mask of the kind

cdef enum:
    # Numbers of fixed texts (see FIXED). Lower numbers stand for the literals of a family.
    FIXED_NAME = MAX_VIEW_COLUMNS + 2
    FIXED_SUM
    FIXED_COUNT
    FIXED_CREATED
    FIXED_END
    FIXED_START
    FIXED_BUCKETS
    FIXED_CLOSE
    FIXED_BOUNDS
    MAX_FIXED = 2 * MAX_VIEW_COLUMNS


cdef enum:
    # How the first note of a row packs three lengths into one number.
    SECOND_SHIFT = 8
    TIME_SHIFT = 16
    LENGTH_MASK = (1 << SECOND_SHIFT) - 1


cdef struct Piece:
    uint32_t length
    uint32_t source


# ---------------------------------------------------------------------------------------------
# Notes: called by the renderer, under the table's mutex

cdef inline Piece *put_piece(Piece *piece, size_t length, uint32_t source) noexcept nogil:
    piece[0] = Piece(length=<uint32_t>length, source=source)
    return piece + 1


cdef inline void put_note(Piece **notes, size_t length, uint32_t source) noexcept nogil:
    # Writes a note, unless `notes` is NULL because the page is not compressed.
    if notes != NULL:
        notes[0] = put_piece(notes[0], length, source)


# ---------------------------------------------------------------------------------------------
# Pieces: written without the mutex

cdef struct LabelPieces:
    # The literals of a family: the texts before, between and after label values.
    Piece literals[MAX_VIEW_COLUMNS + 1]
    uint32_t length             # total length of all literals
    uint32_t before             # total length of the literals before the one with the direction


cdef void label_pieces_init(LabelPieces *pieces, const Family *family,
                            const View *view) noexcept nogil:
    cdef uint32_t i
    pieces.length = 0
    for i in range(view.columns + 1):
        if i == view.direction_index:
            pieces.before = pieces.length
        pieces.literals[i] = Piece(length=family.literals[i].length, source=FIXED | i)
        pieces.length += family.literals[i].length


cdef Piece *expand_notes(const TableState *table, uint32_t number, int starts, const Piece *note,
                         const Piece *last, Piece *piece) noexcept nogil:
    # Writes the pieces for the notes from `note` up to but not including `last`, and returns the
    # end of the pieces. `number` is the number of the family to which the first note belongs.
    cdef const Family *family = &table.families[number]
    cdef const View *view = &table.views[family.view]
    cdef LabelPieces labels
    cdef uint32_t direction
    label_pieces_init(&labels, family, view)
    while note < last:
        if unlikely(note.source & KIND == HEAD):
            family = &table.families[note.source - HEAD]
            view = &table.views[family.view]
            label_pieces_init(&labels, family, view)
            piece = put_piece(piece, note.length, HEAD)
            note += 1
        elif likely(family.text == NULL):
            note = expand_lines(family, view, &labels, starts, note, &piece)
        else:
            for direction in range(family.directions):
                if starts == START_INLINE:
                    note = expand_composite(family, view, &labels, direction, note, &piece)
                else:
                    note = expand_histogram(family, view, &labels, direction, note, &piece)
    return piece


cdef inline const Piece *expand_labels(const Family *family, const View *view,
                                       const LabelPieces *pieces, bint is_second,
                                       const Piece *note, Piece **out,
                                       uint32_t *length, uint32_t *before) noexcept nogil:
    # Writes the pieces of all literals and label values of one line. Sets `length` to their total
    # length, and `before` to the length of the text before the literal with the direction.
    cdef Piece *piece = out[0]
    cdef uint32_t i, values = 0
    for i in range(view.direction_index):
        piece[0] = pieces.literals[i]
        piece[1] = note[i]
        values += note[i].length
        piece += 2
    before[0] = pieces.before + values
    for i in range(view.direction_index, view.columns):
        piece[0] = pieces.literals[i]
        piece[1] = note[i]
        values += note[i].length
        piece += 2
    piece[0] = pieces.literals[view.columns]
    length[0] = pieces.length + values
    if unlikely(is_second):
        i = view.direction_index
        out[0][2 * i] = Piece(length=family.second.length, source=FIXED | (view.columns + 1))
        length[0] += family.second.length - pieces.literals[i].length
    out[0] = piece + 1
    return note + view.columns


cdef inline const Piece *expand_lines(const Family *family, const View *view,
                                      const LabelPieces *label_pieces, int starts,
                                      const Piece *note, Piece **pieces) noexcept nogil:
    # Writes the pieces of a row's lines, in the order in which `render_connection` writes the text.
    cdef uint32_t first = note.length & LENGTH_MASK
    cdef uint32_t second = note.length >> SECOND_SHIFT & LENGTH_MASK
    cdef uint32_t time = note.length >> TIME_SHIFT
    cdef uint32_t literal = label_pieces.literals[view.direction_index].length
    cdef uint32_t name = family.name_length
    cdef uint32_t created = family.created.length
    cdef uint32_t labels, before, line
    cdef Piece *piece
    note = expand_labels(family, view, label_pieces, first == 0, note + 1, pieces, &labels, &before)
    piece = pieces[0]
    if first == 0:
        first = second
        second = 0
    line = labels + first           # the distance from the first line to the second line
    if time == 0:
        piece = put_piece(piece, first, TEXT)
    elif starts == START_INLINE:
        piece = put_piece(piece, first - 1, TEXT)
        piece = put_piece(piece, 4, FIXED | FIXED_START)
        piece = put_piece(piece, time, TEXT)
        line += 3 + time
    else:
        piece = put_piece(piece, first, TEXT)
        piece = put_piece(piece, created, FIXED | FIXED_CREATED)
        piece = put_piece(piece, labels - name, COPIED | (line + created - name))
        piece = put_piece(piece, time, TEXT)
        line += created + labels - name + time
    if second:
        piece = put_piece(piece, before, COPIED | line)
        piece = put_piece(piece, family.second.length, FIXED | (view.columns + 1))
        piece = put_piece(piece, labels - before - literal,
                          COPIED | (line + family.second.length - literal))
        labels += family.second.length - literal
        line = labels + second
        if time == 0:
            piece = put_piece(piece, second, TEXT)
        elif starts == START_INLINE:
            piece = put_piece(piece, second - 1, TEXT)
            piece = put_piece(piece, 4 + time, COPIED | (line + 3 + time))
        else:
            piece = put_piece(piece, second, TEXT)
            piece = put_piece(piece, created, FIXED | FIXED_CREATED)
            piece = put_piece(piece, labels - name, COPIED | (line + created - name))
            piece = put_piece(piece, time, COPIED | (line + created + labels - name + time))
    pieces[0] = piece
    return note


cdef const Piece *expand_histogram(const Family *family, const View *view,
                                   const LabelPieces *label_pieces, uint32_t direction,
                                   const Piece *note, Piece **pieces) noexcept nogil:
    cdef const HistogramText *text = family.text
    cdef uint32_t bound_count = view.histograms[family.histogram + direction].bound_count
    cdef uint32_t time = note.length
    cdef uint32_t labels, before, rest, i
    cdef Piece *piece
    pieces[0] = put_piece(pieces[0], text.bucket.length, FIXED | FIXED_NAME)
    note = expand_labels(family, view, label_pieces, direction, note + 1, pieces, &labels, &before)
    piece = pieces[0]
    rest = 0                        # length of the previous line's text after its labels
    for i in range(bound_count + 1):
        if i:
            piece = put_piece(piece, text.bucket.length, FIXED | FIXED_NAME)
            piece = put_piece(piece, labels, COPIED | (labels + rest + text.bucket.length))
        piece = put_piece(piece, text.bounds[i].length, FIXED | (FIXED_BOUNDS + i))
        piece = put_piece(piece, note.length, TEXT)
        rest = text.bounds[i].length + note.length
        note += 1
    piece = put_piece(piece, text.sum.length, FIXED | FIXED_SUM)
    piece = put_piece(piece, labels, COPIED | (labels + rest + text.sum.length))
    piece = put_piece(piece, text.end.length, FIXED | FIXED_END)
    piece = put_piece(piece, note.length, TEXT)
    rest = text.end.length + note.length
    note += 1
    piece = put_piece(piece, text.count.length, FIXED | FIXED_COUNT)
    piece = put_piece(piece, labels, COPIED | (labels + rest + text.count.length))
    piece = put_piece(piece, text.end.length, FIXED | FIXED_END)
    piece = put_piece(piece, note.length, TEXT)
    rest = text.end.length + note.length
    note += 1
    if time:
        piece = put_piece(piece, text.created.length, FIXED | FIXED_CREATED)
        piece = put_piece(piece, labels, COPIED | (labels + rest + text.created.length))
        piece = put_piece(piece, text.end.length, FIXED | FIXED_END)
        piece = put_piece(piece, time, TEXT)
    pieces[0] = piece
    return note


cdef const Piece *expand_composite(const Family *family, const View *view,
                                   const LabelPieces *label_pieces, uint32_t direction,
                                   const Piece *note, Piece **pieces) noexcept nogil:
    cdef const HistogramText *text = family.text
    cdef uint32_t bound_count = view.histograms[family.histogram + direction].bound_count
    cdef uint32_t time = note.length
    cdef uint32_t labels, before, i
    cdef Piece *piece
    pieces[0] = put_piece(pieces[0], text.name.length, FIXED | FIXED_NAME)
    note = expand_labels(family, view, label_pieces, direction, note + 1, pieces, &labels, &before)
    piece = put_piece(pieces[0], text.end.length + COUNT_BYTES, FIXED | FIXED_COUNT)
    piece = put_piece(piece, note[0].length, TEXT)
    piece = put_piece(piece, SUM_BYTES, FIXED | FIXED_SUM)
    piece = put_piece(piece, note[1].length, TEXT)
    piece = put_piece(piece, BUCKETS_BYTES, FIXED | FIXED_BUCKETS)
    note += 2
    for i in range(bound_count + 1):
        piece = put_piece(piece, text.limits[i].length, FIXED | (FIXED_BOUNDS + i))
        piece = put_piece(piece, note.length, TEXT)
        note += 1
    piece = put_piece(piece, CLOSE_BYTES, FIXED | FIXED_CLOSE)
    if time:
        piece = put_piece(piece, START_BYTES, FIXED | FIXED_START)
        piece = put_piece(piece, time, TEXT)
    piece = put_piece(piece, 1, TEXT)
    pieces[0] = piece
    return note
