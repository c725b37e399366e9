# The table's mutex, and the order in which threads get the mutex.
#
# A scan or a page releases the mutex after each slice, and usually takes it again before a waiting
# thread has woken up. The waiting thread might thus wait until the scan or page ends. To prevent
# this, `lock_with_priority` counts waiting threads. Between two slices, scans and pages call
# `yield_lock`, which lets these threads take the mutex first.

cdef extern from "unistd.h" nogil:
    int usleep(unsigned int)

cdef extern from *:
    """
    #define atomic_add(number, value) __atomic_add_fetch(number, value, __ATOMIC_SEQ_CST)
    #define atomic_read(number) __atomic_load_n(number, __ATOMIC_SEQ_CST)
    #if defined(__x86_64__) || defined(__i386__)
    #define pause_processor() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define pause_processor() __asm__ volatile ("yield")
    #else
    #define pause_processor() ((void)0)
    #endif
    """
    uint32_t atomic_add(uint32_t *, int) nogil
    uint32_t atomic_read(uint32_t *) nogil
    void pause_processor() noexcept nogil

cdef enum:
    YIELD_US = 20
    MAX_YIELDS = 500            # limits how long a scan lets other threads go first
    LOCK_ATTEMPTS = 64          # attempts to take the mutex; with their pauses, about 20 µs
    PAUSES = 16                 # number of pauses after each attempt


cdef inline void lock_with_priority(TableState *table) noexcept nogil:
    # Takes the mutex. While this function waits, scans and pages wait in `yield_lock`.
    if unlikely(pthread_mutex_trylock(&table.lock) != 0):
        atomic_add(&table.waiting, 1)
        pthread_mutex_lock(&table.lock)
        atomic_add(&table.waiting, -1)


cdef inline void lock_for_page(TableState *table) noexcept nogil:
    # Another page that holds the mutex usually releases it within about 20 µs. Falling asleep and
    # waking up would take longer, so this thread first tries for about 20 µs without falling
    # asleep.
    cdef uint32_t _i, _j
    for _i in range(LOCK_ATTEMPTS):
        if likely(pthread_mutex_trylock(&table.lock) == 0):
            return
        for _j in range(PAUSES):
            pause_processor()
    pthread_mutex_lock(&table.lock)


cdef inline void yield_lock(TableState *table) noexcept nogil:
    # Lets threads that wait in `lock_with_priority` take the mutex. The caller must not hold the
    # mutex.
    cdef uint32_t _i
    for _i in range(MAX_YIELDS):
        if likely(atomic_read(&table.waiting) == 0):
            return
        usleep(YIELD_US)
