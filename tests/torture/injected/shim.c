/* Stands in front of the C library, and lets the n-th call of a kind fail: see shim.py, which sets it up.
 *
 * Loaded by LD_PRELOAD: SQLite inside apsw and Python's own os.pwrite come through the same symbols. `fault` is set by
 * the process itself, by ctypes. Only files of one folder are concerned, or what lies under /proc; of SQLite's
 * allocations only those that are called for from within its own library; of Python's, all that its hooks tell of.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 4096

enum kind { NONE, OPEN, READ, WRITE, SYNC, TRUNCATE, MAP, LOCK, UNLINK, NAME, STAT, LOOK, DUPLICATE, PROC, SQLITE, PYTHON };
enum file { OTHER, UNKNOWN, DATABASE, WAL, SHM, LOCK_FILE, FOLDER, INSIDE };

/* shim.py has the same. */
struct fault {
    int32_t armed;   /* calls are counted, and fail */
    int32_t kind;
    int32_t error;   /* errno; 0 = half of what was to be written is written */
    int32_t lasting; /* how many calls fail, from the n-th on */
    int32_t left;    /* calls until the first that fails */
    int32_t hits;    /* that have failed */
    int32_t seen;    /* calls of the kind, failed or not */
    int32_t hit_file;
    int32_t wal_hit; /* syncs of the -wal that have failed */
    int32_t wal_dirty, database_dirty; /* written, and not synced since */
    int32_t slept_us; /* by SQLite, which does not: so nobody has to wait for it */
    int32_t calls[PYTHON + 1]; /* of each kind, while it was armed */
    uint64_t from, to; /* where SQLite's code lies */
    char folder[1024];
} fault;

static uint8_t slots[SLOTS];

#define REAL(type, name, ...)         \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* --- which files --------------------------------------------------------------------------------------------------- */

static int ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

static enum file file_at(const char *path) {
    size_t size = strlen(fault.folder);
    if (!size || strncmp(path, fault.folder, size)) return OTHER;
    if (!path[size]) return FOLDER;
    if (path[size] != '/') return OTHER;
    if (ends_with(path, "jobs.db")) return DATABASE;
    if (ends_with(path, "-wal")) return WAL;
    if (ends_with(path, "-shm")) return SHM;
    return ends_with(path, "-lock") ? LOCK_FILE : INSIDE;
}

static void note(int fd, enum file is) {
    if (fd >= 0 && fd < SLOTS) slots[fd] = is;
}

static enum file file_of(int fd) {
    char link[64], path[4200];
    if (fd < 0 || fd >= SLOTS || !fault.folder[0]) return OTHER;
    if (slots[fd] != UNKNOWN) return slots[fd];
    int error = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = syscall(SYS_readlink, link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    errno = error;
    note(fd, file_at(path));
    return slots[fd];
}

/* --- does this one fail? -------------------------------------------------------------------------------------------- */

static int due(enum kind kind) {
    if (!fault.armed) return 0;
    fault.calls[kind]++;
    if (fault.kind != (int)kind) return 0;
    fault.seen++;
    if (fault.left > 1) return fault.left--, 0;
    if (fault.hits >= fault.lasting) return 0;
    fault.hits++;
    return 1;
}

static int fails(enum kind kind, enum file is) {
    if (is == OTHER || !due(kind)) return 0;
    fault.hit_file = is;
    if (kind == SYNC && is == WAL) fault.wal_hit++;
    errno = fault.error;
    return 1;
}

static int fails_at(enum kind kind, const char *path) { return fails(kind, file_at(path)); }

/* --- opening ---------------------------------------------------------------------------------------------------------- */

static int do_open(int at, const char *path, int flags, mode_t mode) {
    REAL(int, "openat", int, const char *, int, ...);
    if (fails_at(OPEN, path)) return -1;
    if ((!strncmp(path, "/proc/", 6) || !strncmp(path, "/dev/null", 9)) && due(PROC)) return errno = fault.error, -1;
    int fd = real(at, path, flags, mode);
    if (fd >= 0) note(fd, *path == '/' ? file_at(path) : UNKNOWN);
    return fd;
}

#define MODE(flags, mode)                       \
    mode_t mode = 0;                            \
    if (flags & O_CREAT || flags & O_TMPFILE) { \
        va_list rest;                           \
        va_start(rest, flags);                  \
        mode = va_arg(rest, mode_t);            \
        va_end(rest);                           \
    }

int open(const char *path, int flags, ...) {
    MODE(flags, mode)
    return do_open(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags, mode)
    return do_open(AT_FDCWD, path, flags, mode);
}

int openat(int at, const char *path, int flags, ...) {
    MODE(flags, mode)
    return do_open(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    MODE(flags, mode)
    return do_open(at, path, flags, mode);
}

int close(int fd) {
    REAL(int, "close", int);
    note(fd, UNKNOWN);
    return real(fd);
}

/* --- reading and writing ---------------------------------------------------------------------------------------------- */

ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    REAL(ssize_t, "pread64", int, void *, size_t, off64_t);
    if (fails(READ, file_of(fd))) return -1;
    return real(fd, data, size, at);
}

ssize_t read(int fd, void *data, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    if (fault.armed && fails(READ, file_of(fd))) return -1;
    return real(fd, data, size);
}

static void written(enum file is) {
    if (is == WAL) fault.wal_dirty = 1;
    if (is == DATABASE) fault.database_dirty = 1;
}

/* How much of it may be written: none where it fails. */
static ssize_t allowed(int fd, enum file is, size_t size) {
    (void)fd;
    if (!fails(WRITE, is)) return (ssize_t)size;
    return fault.error || size < 2 ? -1 : (ssize_t)size / 2;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    enum file is = file_of(fd);
    ssize_t some = allowed(fd, is, size);
    if (some < 0) return -1;
    written(is);
    return real(fd, data, (size_t)some, at);
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!fault.folder[0]) return real(fd, data, size);
    enum file is = file_of(fd);
    ssize_t some = allowed(fd, is, size);
    if (some < 0) return -1;
    written(is);
    return real(fd, data, (size_t)some);
}

static int do_sync(int fd, int (*real)(int)) {
    enum file is = file_of(fd);
    if (fails(SYNC, is)) return -1;
    int result = real(fd);
    if (!result && is == WAL) fault.wal_dirty = 0;
    if (!result && is == DATABASE) fault.database_dirty = 0;
    return result;
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    return do_sync(fd, real);
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    return do_sync(fd, real);
}

int ftruncate64(int fd, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    return fails(TRUNCATE, file_of(fd)) ? -1 : real(fd, size);
}

void *mmap64(void *near, size_t size, int protection, int flags, int fd, off64_t at) {
    REAL(void *, "mmap64", void *, size_t, int, int, int, off64_t);
    if (fd >= 0 && fails(MAP, file_of(fd))) return MAP_FAILED;
    return real(near, size, protection, flags, fd, at);
}

void *mmap(void *near, size_t size, int protection, int flags, int fd, off_t at) {
    return mmap64(near, size, protection, flags, fd, at);
}

/* --- locks ------------------------------------------------------------------------------------------------------------ */

/* To take a lock may fail, to give one back never does: the kernel needs nothing for it where the range is that which
 * was taken (fs/locks.c), so nobody could be asked to survive it. */
static int locks(int command, void *argument) {
    if (command != F_SETLK && command != F_OFD_SETLK && command != F_GETLK && command != F_OFD_GETLK) return 0;
    return ((struct flock *)argument)->l_type != F_UNLCK;
}

static int do_fcntl(int fd, int command, void *argument) {
    REAL(int, "fcntl64", int, int, ...);
    if (locks(command, argument) && fails(LOCK, file_of(fd))) return -1;
    if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC)) {
        if (fails(DUPLICATE, file_of(fd))) return -1;
        int copy = real(fd, command, argument);
        note(copy, UNKNOWN);
        return copy;
    }
    return real(fd, command, argument);
}

#define ARGUMENT(command, argument)        \
    va_list rest;                          \
    va_start(rest, command);               \
    void *argument = va_arg(rest, void *); \
    va_end(rest)

int fcntl64(int fd, int command, ...) {
    ARGUMENT(command, argument);
    return do_fcntl(fd, command, argument);
}

int fcntl(int fd, int command, ...) {
    ARGUMENT(command, argument);
    return do_fcntl(fd, command, argument);
}

int dup(int fd) {
    REAL(int, "dup", int);
    if (fails(DUPLICATE, file_of(fd))) return -1;
    int copy = real(fd);
    note(copy, UNKNOWN);
    return copy;
}

int dup2(int fd, int to) {
    REAL(int, "dup2", int, int);
    note(to, UNKNOWN);
    return real(fd, to);
}

/* SQLite asks for a lock on the -shm a hundred times, with naps in between that come to ten seconds. */
int nanosleep(const struct timespec *nap, struct timespec *left) {
    REAL(int, "nanosleep", const struct timespec *, struct timespec *);
    if (!fault.armed) return real(nap, left);
    fault.slept_us += (int32_t)(nap->tv_sec * 1000000 + nap->tv_nsec / 1000);
    return 0;
}

/* --- names ------------------------------------------------------------------------------------------------------------ */

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    return fails_at(UNLINK, path) ? -1 : real(path);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return fails_at(NAME, to) ? -1 : real(from, to);
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    return fails_at(NAME, to) ? -1 : real(from, to);
}

/* --- looking ---------------------------------------------------------------------------------------------------------- */

int access(const char *path, int mode) {
    REAL(int, "access", const char *, int);
    return fails_at(LOOK, path) ? -1 : real(path, mode);
}

ssize_t readlink(const char *path, char *data, size_t size) {
    REAL(ssize_t, "readlink", const char *, char *, size_t);
    int fd = -1;
    enum file is = sscanf(path, "/proc/self/fd/%d", &fd) == 1 ? file_of(fd) : file_at(path);
    return fails(LOOK, is) ? -1 : real(path, data, size);
}

#define LOOKED(name, type)                                             \
    int name(const char *path, struct type *found) {                   \
        REAL(int, #name, const char *, struct type *);                 \
        return fails_at(STAT, path) ? -1 : real(path, found);          \
    }
#define LOOKED_OLD(name)                                               \
    int name(int version, const char *path, struct stat64 *found) {    \
        REAL(int, #name, int, const char *, struct stat64 *);          \
        return fails_at(STAT, path) ? -1 : real(version, path, found); \
    }
LOOKED(stat, stat)
LOOKED(lstat, stat)
LOOKED(stat64, stat64)
LOOKED(lstat64, stat64)
LOOKED_OLD(__xstat64)
LOOKED_OLD(__lxstat64)

int fstat(int fd, struct stat *found) {
    REAL(int, "fstat", int, struct stat *);
    return fails(STAT, file_of(fd)) ? -1 : real(fd, found);
}

int fstat64(int fd, struct stat64 *found) {
    REAL(int, "fstat64", int, struct stat64 *);
    return fails(STAT, file_of(fd)) ? -1 : real(fd, found);
}

int __fxstat64(int version, int fd, struct stat64 *found) {
    REAL(int, "__fxstat64", int, int, struct stat64 *);
    return fails(STAT, file_of(fd)) ? -1 : real(version, fd, found);
}

/* --- memory ----------------------------------------------------------------------------------------------------------- */

extern void *__libc_malloc(size_t);
extern void *__libc_realloc(void *, size_t);

static int is_sqlite(const void *caller) {
    return fault.armed && (uint64_t)(uintptr_t)caller - fault.from < fault.to - fault.from && due(SQLITE);
}

void *malloc(size_t size) {
    if (is_sqlite(__builtin_return_address(0))) return errno = ENOMEM, NULL;
    return __libc_malloc(size);
}

void *realloc(void *old, size_t size) {
    if (is_sqlite(__builtin_return_address(0))) return errno = ENOMEM, NULL;
    return __libc_realloc(old, size);
}

/* Where the code of the library that holds ``symbol`` lies. */
int fault_code(const char *library) {
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[4400];
    fault.from = fault.to = 0;
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        char rights[8];
        if (!strstr(line, library) || sscanf(line, "%lx-%lx %7s", &from, &to, rights) != 3 || rights[2] != 'x') continue;
        fault.from = from, fault.to = to;
    }
    if (maps) fclose(maps);
    return fault.to != 0;
}

/* Python's three allocators: PyMemAllocatorEx of its C API, which is stable. */
struct allocator {
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
};

static struct allocator under[3];

static void *python_malloc(void *at, size_t size) {
    struct allocator *real = at;
    return due(PYTHON) ? NULL : real->malloc(real->context, size);
}

static void *python_calloc(void *at, size_t count, size_t size) {
    struct allocator *real = at;
    return due(PYTHON) ? NULL : real->calloc(real->context, count, size);
}

static void *python_realloc(void *at, void *old, size_t size) {
    struct allocator *real = at;
    return due(PYTHON) ? NULL : real->realloc(real->context, old, size);
}

static void python_free(void *at, void *old) {
    struct allocator *real = at;
    real->free(real->context, old);
}

void fault_hook_python(void (*get)(int, struct allocator *), void (*set)(int, struct allocator *)) {
    for (int domain = 0; domain < 3; domain++) {
        struct allocator mine = {&under[domain], python_malloc, python_calloc, python_realloc, python_free};
        if (under[domain].malloc) return;
        get(domain, &under[domain]);
        set(domain, &mine);
    }
}

__attribute__((constructor)) static void begin(void) { memset(slots, UNKNOWN, sizeof slots); }
