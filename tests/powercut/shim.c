/* The functions of the C library through which the power-cut harness sees one folder's files change: see recorder.py.
 *
 * Loaded by LD_PRELOAD. Who calls does not matter: SQLite inside apsw and Python's own os.pwrite and os.fdatasync come
 * through the same symbols. Each operation is carried out and recorded under one lock of all processes; a sync records
 * its begin and its end, and itself runs outside. What cannot be modelled (a shared writable mapping, copy_file_range,
 * O_SYNC) becomes a record 'X', which voids the trace.
 */
#include "shim.h"

/* --- opening, closing ------------------------------------------------------------------------------------------ */

static int real_open(int at, const char *path, int flags, mode_t mode) {
    REAL(int, "openat", int, const char *, int, ...);
    return real(at, path, flags, mode);
}

/* Under the lock. Whether this very call made the file must be known, or a new file could pass for the old one. */
static int create(int at, const char *path, int flags, mode_t mode, const char *name) {
    for (;;) {
        int fd = real_open(at, path, flags | O_CREAT | O_EXCL, mode);
        if (fd >= 0) {
            struct stat st;
            if (fstat(fd, &st)) die("cannot look at a new file");
            note('C', st.st_ino, 0, name, strlen(name));
            return fd;
        }
        if (errno != EEXIST || flags & O_EXCL) return fd;
        fd = real_open(at, path, flags & ~O_CREAT, mode);
        if (fd >= 0 || errno != ENOENT) return fd;
    }
}

static int do_open(int at, const char *path, int flags, mode_t mode) {
    const char *name = name_of(path);
    int fd;
    if (!is_active) return real_open(at, path, flags, mode);
    if (!name) {
        fd = real_open(at, path, flags, mode);
        if (fd >= 0 && *path == '/') look(fd, path);
        else forget(fd);
        return fd;
    }
    enter();
    fd = flags & O_CREAT ? create(at, path, flags, mode, name) : real_open(at, path, flags, mode);
    struct slot is = {IGNORED, 0, 0, 0};
    if (fd >= 0) is = look(fd, path);
    if (fd >= 0 && flags & O_TRUNC) note('T', is.file, 0, "", 0);
    if (fd >= 0 && flags & (O_DSYNC | (O_SYNC & ~O_DSYNC)) && flags & (O_WRONLY | O_RDWR)) void_trace("O_SYNC");
    leave();
    return fd;
}

#define MODE(flags)                                     \
    mode_t mode = 0;                                    \
    if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
        va_list rest;                                   \
        va_start(rest, flags);                          \
        mode = va_arg(rest, mode_t);                    \
        va_end(rest);                                   \
    }

int open(const char *path, int flags, ...) { MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return do_open(at, path, flags, mode); }
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return do_open(at, path, flags, mode); }
int creat64(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __openat_2(int at, const char *path, int flags) { return do_open(at, path, flags, 0); }
int __openat64_2(int at, const char *path, int flags) { return do_open(at, path, flags, 0); }

int close(int fd) {
    REAL(int, "close", int);
    forget(fd);
    return real(fd);
}

int dup2(int from, int to) {
    REAL(int, "dup2", int, int);
    if (from != to) forget(to);
    return real(from, to);
}

int dup3(int from, int to, int flags) {
    REAL(int, "dup3", int, int, int);
    forget(to);
    return real(from, to, flags);
}

int close_range(unsigned first, unsigned last, int flags) {
    REAL(int, "close_range", unsigned, unsigned, int);
    for (unsigned fd = first; fd <= last && fd < SLOTS; fd++) forget((int)fd);
    return real(first, last, flags);
}

/* --- changes ------------------------------------------------------------------------------------------------------ */

static ssize_t written(struct slot is, ssize_t done, int64_t at, const struct iovec *parts, int count) {
    if (done > 0) record('W', is.file, at, parts, count, (size_t)done);
    leave();
    return done;
}

/* What a caller was told is a record and nothing else. */
static ssize_t tell(const struct iovec *parts, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    enter();
    record('N', 0, 0, parts, count, size);
    leave();
    return (ssize_t)size;
}

/* Where a write without an offset began, which for O_APPEND is known only afterwards. */
static int64_t began(int fd, ssize_t done) { return done > 0 ? lseek(fd, 0, SEEK_CUR) - done : 0; }

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    struct slot is = what_is(fd);
    struct iovec one = {(void *)data, size};
    if (is.state == TOLD) return tell(&one, 1);
    if (is.state != TRACKED) return real(fd, data, size);
    enter();
    ssize_t done = real(fd, data, size);
    return written(is, done, began(fd, done), &one, 1);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    struct slot is = what_is(fd);
    if (is.state == TOLD) return tell(parts, count);
    if (is.state != TRACKED) return real(fd, parts, count);
    enter();
    ssize_t done = real(fd, parts, count);
    return written(is, done, began(fd, done), parts, count);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    struct slot is = what_is(fd);
    struct iovec one = {(void *)data, size};
    if (is.state != TRACKED) return real(fd, data, size, at);
    enter();
    return written(is, real(fd, data, size, at), at, &one, 1);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    REAL(ssize_t, "pwritev2", int, const struct iovec *, int, off_t, int);
    struct slot is = what_is(fd);
    if (is.state != TRACKED) return real(fd, parts, count, at, flags);
    enter();
    if (flags || at < 0) void_trace("pwritev2 with flags");
    return written(is, real(fd, parts, count, at, flags), at, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return pwritev2(fd, parts, count, at, 0); }

int ftruncate(int fd, off_t size) {
    REAL(int, "ftruncate", int, off_t);
    struct slot is = what_is(fd);
    if (is.state != TRACKED) return real(fd, size);
    enter();
    int result = real(fd, size);
    if (!result) note('T', is.file, size, "", 0);
    leave();
    return result;
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    const char *name = name_of(path);
    if (!name) return real(path);
    enter();
    int result = real(path);
    if (!result) note('U', 0, 0, name, strlen(name));
    leave();
    return result;
}

static int named(char kind, int result, const char *from, const char *to) {
    char both[1024];
    int size = snprintf(both, sizeof both, "%s/%s", from ? from : "", to ? to : "");
    if (!result && from && to) note(kind, 0, 0, both, (size_t)size);
    else if (!result) void_trace("a name from or to another folder");
    leave();
    return result;
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (!name_of(from) && !name_of(to)) return real(from, to);
    enter();
    return named('R', real(from, to), name_of(from), name_of(to));
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    if (!name_of(from) && !name_of(to)) return real(from, to);
    enter();
    return named('L', real(from, to), name_of(from), name_of(to));
}

/* --- syncs -------------------------------------------------------------------------------------------------------- */

/* A disk that honours a sync after a while, no two of which are alike. */
static int pretend(void) {
    static __thread uint32_t seed;
    if (!seed) seed = (uint32_t)syscall(SYS_gettid) * 2654435761u | 1;
    seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
    struct timespec nap = {0, (long)(seed % (uint32_t)(sync_us + 1)) * 1000};
    nanosleep(&nap, NULL);
    return 0;
}

/* As the kernel reports a failed sync: once to each descriptor that was open then, and to none that is opened later. */
static int end_sync(int fd, struct slot is, int64_t number, int fails, int result) {
    enter();
    uint64_t count = is.state == TRACKED ? failed_syncs(is.file, fails) : 0;
    if (is.state == TRACKED && count != what_is(fd).seen) {
        told_of_failure(fd, count);
        result = -1, errno = EIO;
    }
    note(fails ? 'G' : result ? 'F' : 'E', is.file, number, "", 0);
    leave();
    return result;
}

static int do_sync(int fd, int (*real)(int)) {
    struct slot is = what_is(fd);
    if (is.state != TRACKED && is.state != FOLDER) return real(fd);
    enter();
    int64_t number = (int64_t)++control->syncs;
    int fails = is.is_wal && control->fail_in && !--control->fail_in;
    note('B', is.file, number, "", 0);
    leave();
    return end_sync(fd, is, number, fails, sync_us < 0 ? real(fd) : pretend());
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    return do_sync(fd, real);
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    return do_sync(fd, real);
}

/* --- what the model does not know --------------------------------------------------------------------------------- */

static void refuse(int fd, const char *why) {
    if (what_is(fd).state != TRACKED) return;
    enter();
    void_trace(why);
    leave();
}

void *mmap(void *near, size_t size, int protection, int flags, int fd, off_t at) {
    REAL(void *, "mmap", void *, size_t, int, int, int, off_t);
    if (is_active && fd >= 0 && flags & MAP_SHARED && protection & PROT_WRITE) refuse(fd, "mmap");
    return real(near, size, protection, flags, fd, at);
}

ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned);
    refuse(out, "copy_file_range");
    return real(in, in_at, out, out_at, size, flags);
}

ssize_t sendfile(int out, int in, off_t *at, size_t size) {
    REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
    refuse(out, "sendfile");
    return real(out, in, at, size);
}

int fallocate(int fd, int mode, off_t at, off_t size) {
    REAL(int, "fallocate", int, int, off_t, off_t);
    refuse(fd, "fallocate");
    return real(fd, mode, at, size);
}

int posix_fallocate(int fd, off_t at, off_t size) {
    REAL(int, "posix_fallocate", int, off_t, off_t);
    refuse(fd, "posix_fallocate");
    return real(fd, at, size);
}

int truncate(const char *path, off_t size) {
    REAL(int, "truncate", const char *, off_t);
    if (name_of(path)) enter(), void_trace("truncate by path"), leave();
    return real(path, size);
}

/* A process that kills itself is inside no operation: neither this thread nor, once it has the lock, another. */
int kill(pid_t pid, int signal) {
    REAL(int, "kill", pid_t, int);
    if (is_active && pid == getpid() && signal == SIGKILL) {
        enter();
        unlock_to_die();
    }
    return real(pid, signal);
}

/* Nor does a process end while one of its threads is inside an operation. */
void _exit(int code) {
    REAL(void, "_exit", int);
    if (is_active) {
        enter();
        unlock_to_die();
    }
    for (;;) real(code);
}

/* The same under their 64-bit names; off_t has 64 bits. */
#define SAME(name) __attribute__((alias(#name)))
ssize_t pwrite64(int, const void *, size_t, off_t) SAME(pwrite);
ssize_t pwritev64(int, const struct iovec *, int, off_t) SAME(pwritev);
ssize_t pwritev64v2(int, const struct iovec *, int, off_t, int) SAME(pwritev2);
int ftruncate64(int, off_t) SAME(ftruncate);
void *mmap64(void *, size_t, int, int, int, off_t) SAME(mmap);
ssize_t sendfile64(int, int, off_t *, size_t) SAME(sendfile);
int truncate64(const char *, off_t) SAME(truncate);
int fallocate64(int, int, off_t, off_t) SAME(fallocate);
int posix_fallocate64(int, off_t, off_t) SAME(posix_fallocate);
