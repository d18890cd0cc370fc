/* The log of the power-cut recorder, its lock, and which descriptor is what.
 *
 * All processes share one lock (flock, which the kernel drops at death; a mutex in front of it for the threads of one
 * process). An operation and its record happen under it, so the order of the log is the order of the operations.
 */
#include "shim.h"

#define MAGIC 0x54554357u /* "WCUT" */
#define HIGH_FD 800       /* out of the way of numbers that a program counts on */

_Static_assert(sizeof(off_t) == 8, "64-bit file offsets, so that open and open64 are one");

/* trace.py reads it. */
struct header {
    uint32_t magic, size, check; /* check: Adler-32 of what follows it, payload included */
    uint8_t kind, zero[3];
    uint32_t pid, tid;
    uint64_t file; /* inode */
    int64_t at;    /* offset of a write, size of a truncation, number of a sync */
};

struct control *control;
int is_active;
long sync_us = -1;

static struct slot slots[SLOTS];
static char folder[4096], told[4096];
static size_t folder_length;
static int log_fd = -1, lock_fd = -1;
static pthread_mutex_t local = PTHREAD_MUTEX_INITIALIZER;

_Noreturn void die(const char *why) {
    fprintf(stderr, "powercut shim: %s: %s\n", why, strerror(errno));
    abort();
}

static int high(int fd) {
    if (fd < 0) die("cannot open");
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
    if (moved < 0) die("no high descriptor");
    syscall(SYS_close, fd);
    return moved;
}

/* --- the log ------------------------------------------------------------------------------------------------- */

static uint32_t adler(uint32_t sum, const void *data, size_t size) {
    uint32_t a = sum & 0xffff, b = sum >> 16;
    const uint8_t *p = data;
    while (size) {
        size_t some = size < 5552 ? size : 5552;
        size -= some;
        while (some--) b += a += *p++;
        a %= 65521, b %= 65521;
    }
    return b << 16 | a;
}

void record(char kind, uint64_t file, int64_t at, const struct iovec *parts, int count, size_t size) {
    struct header head = {MAGIC, (uint32_t)size, 0, (uint8_t)kind, {0}, (uint32_t)getpid(),
                          (uint32_t)syscall(SYS_gettid), file, at};
    struct iovec all[count + 1];
    uint32_t sum = adler(1, &head.kind, sizeof head - offsetof(struct header, kind));
    size_t left = size;
    int used = 1;
    for (int i = 0; i < count && left; i++, used++) {
        all[used] = parts[i];
        if (all[used].iov_len > left) all[used].iov_len = left;
        left -= all[used].iov_len;
        sum = adler(sum, all[used].iov_base, all[used].iov_len);
    }
    head.check = sum;
    all[0] = (struct iovec){&head, sizeof head};
    if (syscall(SYS_writev, log_fd, all, used) != (ssize_t)(sizeof head + size)) die("cannot write the log");
}

void note(char kind, uint64_t file, int64_t at, const char *text, size_t size) {
    struct iovec one = {(void *)text, size};
    record(kind, file, at, &one, 1, size);
}

void void_trace(const char *why) { note('X', 0, 0, why, strlen(why)); }

void enter(void) {
    pthread_mutex_lock(&local);
    while (flock(lock_fd, LOCK_EX))
        if (errno != EINTR) die("cannot lock");
    if (control->busy) void_trace("a process died inside an operation");
    control->busy = (uint32_t)getpid();
}

void leave(void) {
    int error = errno;
    control->busy = 0;
    if (flock(lock_fd, LOCK_UN)) die("cannot unlock");
    pthread_mutex_unlock(&local);
    errno = error;
}

/* For a thread that kills its process: no other is inside an operation now, and the kernel drops the lock. */
void unlock_to_die(void) { control->busy = 0; }

static void before_fork(void) { pthread_mutex_lock(&local); }
static void after_fork(void) { pthread_mutex_unlock(&local); }

static void open_lock(void) {
    lock_fd = high((int)syscall(SYS_openat, AT_FDCWD, getenv("POWERCUT_CONTROL"), O_RDWR | O_CLOEXEC));
}

/* A lock by flock belongs to the open file, which a child shares: it opens its own. */
static void after_fork_in_child(void) {
    syscall(SYS_close, lock_fd);
    open_lock();
    pthread_mutex_unlock(&local);
}

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("POWERCUT_FOLDER"), *log = getenv("POWERCUT_LOG"), *us = getenv("POWERCUT_SYNC_US");
    if (!where || !log || !getenv("POWERCUT_TOLD") || !getenv("POWERCUT_CONTROL")) return;
    snprintf(folder, sizeof folder, "%s", where);
    snprintf(told, sizeof told, "%s", getenv("POWERCUT_TOLD"));
    folder_length = strlen(folder);
    if (us && *us) sync_us = atol(us);
    log_fd = high((int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600));
    open_lock();
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, lock_fd, 0);
    if (control == MAP_FAILED) die("cannot map the control file");
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
    is_active = 1;
}

/* --- which descriptor is what --------------------------------------------------------------------------------- */

static int ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

/* The name inside the folder; NULL where the path is elsewhere, or is shared memory, which no cut leaves behind. */
const char *name_of(const char *path) {
    if (!is_active || strncmp(path, folder, folder_length) || path[folder_length] != '/') return NULL;
    const char *name = path + folder_length + 1;
    return *name && !strchr(name, '/') && !ends_with(name, "-shm") ? name : NULL;
}

/* How many syncs of the file have failed so far; one more where this one ``fails``. */
uint64_t failed_syncs(uint64_t file, int fails) {
    for (int i = 0; i < FAULTY; i++) {
        if (!control->faulty[i].file && !fails) return 0;
        if (!control->faulty[i].file) control->faulty[i].file = file;
        if (control->faulty[i].file == file) return control->faulty[i].count += (uint64_t)fails;
    }
    die("too many files with failed syncs");
}

struct slot look(int fd, const char *path) {
    struct slot found = {IGNORED, 0, 0, 0};
    struct stat st;
    if (!strcmp(path, told)) found.state = TOLD;
    else if (!strcmp(path, folder)) found.state = FOLDER, found.file = DIRECTORY;
    else if (name_of(path) && !fstat(fd, &st) && S_ISREG(st.st_mode))
        found = (struct slot){TRACKED, (uint8_t)ends_with(path, "-wal"), st.st_ino, failed_syncs(st.st_ino, 0)};
    if (fd < SLOTS) slots[fd] = found;
    return found;
}

struct slot what_is(int fd) {
    if (!is_active || fd < 0) return (struct slot){IGNORED, 0, 0, 0};
    if (fd < SLOTS && slots[fd].state != UNKNOWN) return slots[fd];
    char link[64], path[4200];
    int error = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    if (ends_with(path, " (deleted)")) path[size - 10] = 0;
    errno = error;
    return look(fd, path);
}

void forget(int fd) {
    if (fd >= 0 && fd < SLOTS) slots[fd].state = UNKNOWN;
}

void told_of_failure(int fd, uint64_t count) {
    if (fd < SLOTS) slots[fd].seen = count;
}
