/* What the two halves of the shim share. record.c: the log, its lock, and which descriptor is what. shim.c: the
 * functions of the C library that it stands in front of.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 4096  /* descriptors whose meaning is remembered */
#define FAULTY 64   /* files whose sync has failed */
#define DIRECTORY 0 /* as the file of a record: the folder itself */

enum state { UNKNOWN, IGNORED, TRACKED, FOLDER, TOLD };

/* Shared by all processes; recorder.py writes fail_in. */
struct control {
    uint32_t busy;    /* the process that is inside an operation */
    uint32_t fail_in; /* the sync of a -wal that shall fail, counted from now; 0 = none */
    uint64_t syncs;
    struct { uint64_t file, count; } faulty[FAULTY];
};

/* What a descriptor is. */
struct slot {
    uint8_t state, is_wal;
    uint64_t file; /* inode */
    uint64_t seen; /* how many failed syncs of the file this descriptor has been told of */
};

/* The function that the shim hides. */
#define REAL(type, name, ...)              \
    static type (*real)(__VA_ARGS__);      \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

extern struct control *control;
extern int is_active;
extern long sync_us; /* a simulated sync takes up to this long; -1: the real one */

_Noreturn void die(const char *why);
void enter(void);
void leave(void);
void unlock_to_die(void);
void record(char kind, uint64_t file, int64_t at, const struct iovec *parts, int count, size_t size);
void note(char kind, uint64_t file, int64_t at, const char *text, size_t size);
void void_trace(const char *why);
const char *name_of(const char *path);
struct slot look(int fd, const char *path);
struct slot what_is(int fd);
void forget(int fd);
void told_of_failure(int fd, uint64_t count);
uint64_t failed_syncs(uint64_t file, int fails);
