/* Stands between a process and its kernel: the rules in a shared control block say which call fails, is torn, waits
 * or is the process's last. Loaded with LD_PRELOAD; VIGIL_FAULT_RULES names the block. See shim.py for the layout. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OP_WRITE = 1, OP_SYNC = 2, OP_OPEN = 4, OP_GROW = 8, OP_SEND = 16, OP_RENAME = 32, OP_RESIZE = 64 };
enum { WATCH = 0, FAIL = 1, KILL_BEFORE = 2, KILL_AFTER = 3, TEAR = 4, WAIT = 5 };
enum { RULES = 16, PATH_BYTES = 256 };

struct rule {
    int32_t active, ops, action, error, pid, wait_ms;
    int64_t first, count; /* calls first .. first + count - 1 meet the fault, counted from 1 */
    int64_t seen, fired;
    char path[PATH_BYTES]; /* a part of the file's path; "socket:" for sockets */
};

struct block {
    int32_t armed, _pad;
    struct rule rules[RULES];
};

static struct block *block;

static void __attribute__((constructor)) begin(void) {
    const char *path = getenv("VIGIL_FAULT_RULES");
    if (path == NULL)
        return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return;
    void *at = mmap(NULL, sizeof(struct block), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (at != MAP_FAILED)
        block = at;
}

#define REAL(type, name, ...)                                                                                        \
    static type (*real)(__VA_ARGS__);                                                                                \
    if (real == NULL)                                                                                                \
    real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* The rule that this call meets, NULL for most calls. Dies here when the rule says so. */
static struct rule *met(int op, const char *path) {
    struct rule *found = NULL;
    int saved = errno;
    for (int i = 0; i < RULES; i++) {
        struct rule *r = &block->rules[i];
        if (!__atomic_load_n(&r->active, __ATOMIC_ACQUIRE) || !(r->ops & op))
            continue;
        if (r->pid != 0 && r->pid != getpid())
            continue;
        if (r->path[0] != 0 && strstr(path, r->path) == NULL)
            continue;
        int64_t number = __atomic_add_fetch(&r->seen, 1, __ATOMIC_ACQ_REL);
        if (number < r->first || number - r->first >= r->count || r->action == WATCH)
            continue;
        __atomic_add_fetch(&r->fired, 1, __ATOMIC_ACQ_REL);
        if (r->action == KILL_BEFORE)
            die();
        if (r->action == WAIT) {
            struct timespec t = {r->wait_ms / 1000, (r->wait_ms % 1000) * 1000000L};
            nanosleep(&t, NULL);
            continue;
        }
        found = r;
    }
    errno = saved;
    return found;
}

static struct rule *met_fd(int op, int fd) {
    if (block == NULL || !__atomic_load_n(&block->armed, __ATOMIC_ACQUIRE))
        return NULL;
    char name[64], path[PATH_MAX];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    int saved = errno;
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, name, path, sizeof path - 1);
    errno = saved;
    if (n < 0)
        return NULL;
    path[n] = 0;
    if (strncmp(path, "socket:", 7) == 0)
        op = op == OP_WRITE ? OP_SEND : op;
    return met(op, path);
}

static struct rule *met_path(int op, const char *path) {
    if (block == NULL || !__atomic_load_n(&block->armed, __ATOMIC_ACQUIRE))
        return NULL;
    return met(op, path);
}

#define GUARD(result, rule_of, call, tear)                                                                           \
    do {                                                                                                             \
        struct rule *r = rule_of;                                                                                    \
        if (r == NULL)                                                                                               \
            return call;                                                                                             \
        if (r->action == FAIL) {                                                                                     \
            errno = r->error;                                                                                        \
            return (result)-1;                                                                                       \
        }                                                                                                            \
        if (r->action == TEAR)                                                                                       \
            (void)!(tear);                                                                                           \
        else                                                                                                         \
            (void)!(call);                                                                                           \
        die();                                                                                                       \
        return (result)-1;                                                                                           \
    } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    GUARD(ssize_t, met_fd(OP_WRITE, fd), real(fd, data, size), real(fd, data, size / 2));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    GUARD(ssize_t, met_fd(OP_WRITE, fd), real(fd, data, size, at), real(fd, data, size / 2, at));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    GUARD(ssize_t, met_fd(OP_WRITE, fd), real(fd, data, size, at), real(fd, data, size / 2, at));
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    REAL(ssize_t, "sendmsg", int, const struct msghdr *, int);
    GUARD(ssize_t, met_fd(OP_SEND, fd), real(fd, message, flags), 0);
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
    REAL(ssize_t, "send", int, const void *, size_t, int);
    GUARD(ssize_t, met_fd(OP_SEND, fd), real(fd, data, size, flags), real(fd, data, size / 2, flags));
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    GUARD(int, met_fd(OP_SYNC, fd), real(fd), 0);
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    GUARD(int, met_fd(OP_SYNC, fd), real(fd), 0);
}

int ftruncate(int fd, off_t size) {
    REAL(int, "ftruncate", int, off_t);
    GUARD(int, met_fd(OP_RESIZE, fd), real(fd, size), 0);
}

int ftruncate64(int fd, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    GUARD(int, met_fd(OP_RESIZE, fd), real(fd, size), 0);
}

int posix_fallocate(int fd, off_t at, off_t size) {
    REAL(int, "posix_fallocate", int, off_t, off_t);
    struct rule *r = met_fd(OP_GROW, fd);
    return r != NULL && r->action == FAIL ? r->error : real(fd, at, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size) {
    REAL(int, "posix_fallocate64", int, off64_t, off64_t);
    struct rule *r = met_fd(OP_GROW, fd);
    return r != NULL && r->action == FAIL ? r->error : real(fd, at, size);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    GUARD(int, met_path(OP_RENAME, to), real(from, to), 0);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    GUARD(int, met_path(OP_RENAME, to), real(from_at, from, to_at, to), 0);
}

#define MODE(flags, mode)                                                                                            \
    mode_t mode = 0;                                                                                                 \
    if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) {                                                 \
        va_list more;                                                                                                \
        va_start(more, flags);                                                                                       \
        mode = va_arg(more, mode_t);                                                                                 \
        va_end(more);                                                                                                \
    }

int open(const char *path, int flags, ...) {
    MODE(flags, mode)
    REAL(int, "open", const char *, int, ...);
    GUARD(int, met_path(OP_OPEN, path), real(path, flags, mode), 0);
}

int open64(const char *path, int flags, ...) {
    MODE(flags, mode)
    REAL(int, "open64", const char *, int, ...);
    GUARD(int, met_path(OP_OPEN, path), real(path, flags, mode), 0);
}

int openat(int at, const char *path, int flags, ...) {
    MODE(flags, mode)
    REAL(int, "openat", int, const char *, int, ...);
    GUARD(int, met_path(OP_OPEN, path), real(at, path, flags, mode), 0);
}

int openat64(int at, const char *path, int flags, ...) {
    MODE(flags, mode)
    REAL(int, "openat64", int, const char *, int, ...);
    GUARD(int, met_path(OP_OPEN, path), real(at, path, flags, mode), 0);
}
