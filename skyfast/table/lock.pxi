# The table's mutex, and the order in which threads get the mutex.
#
# A scan or a page releases the mutex after each slice, and takes it again soon, usually before a
# waiting thread has woken up. So the waiting thread might wait until the scan ends. Therefore
# `lock_with_priority` counts waiting threads, and scans and pages give way to these threads between
# two slices.

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
    MAX_YIELDS = 500            # limits the delay of a scan if threads wait all the time
    LOCK_ATTEMPTS = 64          # together, attempts and pauses take about 20 µs
    PAUSES = 16


cdef inline void lock_with_priority(TableState *table) noexcept nogil:
    # Take the mutex ahead of scans and pages, which call `yield_lock` between two slices.
    if unlikely(pthread_mutex_trylock(&table.lock) != 0):
        atomic_add(&table.waiting, 1)
        pthread_mutex_lock(&table.lock)
        atomic_add(&table.waiting, -1)


cdef inline void lock_for_page(TableState *table) noexcept nogil:
    # If another page has the mutex, it usually releases the mutex after about 20 µs. Falling asleep
    # and waking up would take longer, so first try for about 20 µs without falling asleep.
    cdef uint32_t _i, _j
    for _i in range(LOCK_ATTEMPTS):
        if likely(pthread_mutex_trylock(&table.lock) == 0):
            return
        for _j in range(PAUSES):
            pause_processor()
    pthread_mutex_lock(&table.lock)


cdef inline void yield_lock(TableState *table) noexcept nogil:
    # Let the threads that wait in `lock_with_priority` take the mutex. Called without the mutex.
    cdef uint32_t _i
    for _i in range(MAX_YIELDS):
        if likely(atomic_read(&table.waiting) == 0):
            return
        usleep(YIELD_US)
