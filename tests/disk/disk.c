// A library to preload: it counts every operation that changes what is on the disk under one folder, writes each down,
// and at the operation asked for kills, stops or signals the process, or lets the operation fail.
//
//   DISK_UNDER   the folder, absolute, without links
//   DISK_TRACE   a file outside it: a line `N operation path` for each operation, there before the operation is begun
//   DISK_AT      the operation at which something happens, counted from 1; 0 for none
//   DISK_DO      kill | half (the first half of a write, then kill; other operations are done, then killed)
//                stop (SIGSTOP before it) | signal-N (before it) | ENOSPC-once | ENOSPC-on | EIO-once | EIO-on
//
// Children of the process are left alone.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char under[PATH_MAX];
static char action[32];
static long at;
static int trace = -1;
static long count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("DISK_UNDER"), *report = getenv("DISK_TRACE");
    const char *number = getenv("DISK_AT"), *what = getenv("DISK_DO");
    unsetenv("LD_PRELOAD");
    if (!folder || !report) return;
    snprintf(under, sizeof under, "%s", folder);
    snprintf(action, sizeof action, "%s", what ? what : "");
    at = number ? atol(number) : 0;
    trace = syscall(SYS_openat, AT_FDCWD, report, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

// ---- paths ----

// An absolute path without `.` and `..`; links are left as they are.
static void normal(const char *base, const char *path, char *out) {
    char whole[2 * PATH_MAX];
    if (path[0] == '/') snprintf(whole, sizeof whole, "%s", path);
    else snprintf(whole, sizeof whole, "%s/%s", base, path);
    size_t n = 0;
    for (char *rest = whole, *part; (part = strsep(&rest, "/"));) {
        if (!*part || !strcmp(part, ".")) continue;
        if (!strcmp(part, "..")) {
            while (n && out[--n] != '/') {}
            continue;
        }
        size_t length = strlen(part);
        if (n + length + 2 > PATH_MAX) break;
        out[n++] = '/';
        memcpy(out + n, part, length);
        n += length;
    }
    out[n] = 0;
}

static int of_descriptor(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    out[n < 0 ? 0 : n] = 0;
    return n > 0;
}

static void of_name(int folder, const char *path, char *out) {
    char base[PATH_MAX] = "";
    if (path[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) base[0] = 0;
        } else of_descriptor(folder, base);
    }
    normal(base, path, out);
}

static int inside(const char *path) {
    size_t n = strlen(under);
    return trace >= 0 && n && !strncmp(path, under, n) && (path[n] == '/' || !path[n]);
}

// ---- what happens ----

enum { GO, FAIL, HALF };

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

// Counts an operation and says what is to become of it. `frees` is true for one that takes no room on the disk.
static int met(const char *operation, const char *path, int frees) {
    pthread_mutex_lock(&lock);
    long n = ++count;
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", n, operation, path);
    syscall(SYS_write, trace, line, (size_t)length);
    pthread_mutex_unlock(&lock);
    if (!at || n < at) return GO;
    size_t name = strcspn(action, "-");
    int full = !strncmp(action, "ENOSPC", name), broken = !strncmp(action, "EIO", name);
    if (full || broken) {
        if (n > at && strcmp(action + name, "-on")) return GO;
        if (full && frees) return GO;
        errno = full ? ENOSPC : EIO;
        return FAIL;
    }
    if (n > at) return GO;
    if (!strcmp(action, "kill")) end();
    if (!strcmp(action, "half")) return HALF;
    if (!strcmp(action, "stop")) kill(getpid(), SIGSTOP);
    if (!strncmp(action, "signal-", 7)) kill(getpid(), atoi(action + 7));
    return GO;
}

#define REAL(type, name, ...)                                   \
    static type (*real)(__VA_ARGS__);                           \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

// Does `call` unless it is to fail, and ends the process after it if it is to die in the middle.
#define DO(operation, path, frees, type, call)                  \
    do {                                                        \
        int fate = inside(path) ? met(operation, path, frees) : GO; \
        if (fate == FAIL) return -1;                            \
        type result = call;                                     \
        if (fate == HALF) end();                                \
        return result;                                          \
    } while (0)

// ---- names ----

#define OPEN(name)                                              \
    int name(const char *path, int flags, ...) {                \
        REAL(int, #name, const char *, int, ...);               \
        mode_t mode = 0;                                        \
        if (flags & (O_CREAT | O_TMPFILE)) {                    \
            va_list more;                                       \
            va_start(more, flags);                              \
            mode = va_arg(more, mode_t);                        \
            va_end(more);                                       \
        }                                                       \
        char full[PATH_MAX];                                    \
        if (!(flags & (O_CREAT | O_TRUNC))) return real(path, flags, mode); \
        of_name(AT_FDCWD, path, full);                          \
        DO("open", full, 0, int, real(path, flags, mode));      \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                            \
    int name(int folder, const char *path, int flags, ...) {    \
        REAL(int, #name, int, const char *, int, ...);          \
        mode_t mode = 0;                                        \
        if (flags & (O_CREAT | O_TMPFILE)) {                    \
            va_list more;                                       \
            va_start(more, flags);                              \
            mode = va_arg(more, mode_t);                        \
            va_end(more);                                       \
        }                                                       \
        char full[PATH_MAX];                                    \
        if (!(flags & (O_CREAT | O_TRUNC))) return real(folder, path, flags, mode); \
        of_name(folder, path, full);                            \
        DO("open", full, 0, int, real(folder, path, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)

#define CREAT(name)                                             \
    int name(const char *path, mode_t mode) {                   \
        REAL(int, #name, const char *, mode_t);                 \
        char full[PATH_MAX];                                    \
        of_name(AT_FDCWD, path, full);                          \
        DO("open", full, 0, int, real(path, mode));             \
    }
CREAT(creat)
CREAT(creat64)

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    char full[PATH_MAX];
    of_name(AT_FDCWD, path, full);
    DO("mkdir", full, 0, int, real(path, mode));
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    char full[PATH_MAX];
    of_name(folder, path, full);
    DO("mkdir", full, 0, int, real(folder, path, mode));
}

int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    char full[PATH_MAX];
    of_name(AT_FDCWD, path, full);
    DO("rmdir", full, 1, int, real(path));
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    char full[PATH_MAX];
    of_name(AT_FDCWD, path, full);
    DO("unlink", full, 1, int, real(path));
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    char full[PATH_MAX];
    of_name(folder, path, full);
    DO("unlink", full, 1, int, real(folder, path, flags));
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    char full[PATH_MAX];
    of_name(AT_FDCWD, to, full);
    DO("rename", full, 0, int, real(from, to));
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    char full[PATH_MAX];
    of_name(to_folder, to, full);
    DO("rename", full, 0, int, real(from_folder, from, to_folder, to));
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    char full[PATH_MAX];
    of_name(to_folder, to, full);
    DO("rename", full, 0, int, real(from_folder, from, to_folder, to, flags));
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    char full[PATH_MAX];
    of_name(AT_FDCWD, to, full);
    DO("link", full, 0, int, real(from, to));
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    char full[PATH_MAX];
    of_name(to_folder, to, full);
    DO("link", full, 0, int, real(from_folder, from, to_folder, to, flags));
}

// ---- bytes ----

ssize_t write(int fd, const void *bytes, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    char full[PATH_MAX];
    if (!of_descriptor(fd, full)) return real(fd, bytes, n);
    int fate = inside(full) ? met("write", full, 0) : GO;
    if (fate == FAIL) return -1;
    ssize_t result = real(fd, bytes, fate == HALF ? n / 2 : n);
    if (fate == HALF) end();
    return result;
}

#define PWRITE(name, offset)                                    \
    ssize_t name(int fd, const void *bytes, size_t n, offset from) { \
        REAL(ssize_t, #name, int, const void *, size_t, offset); \
        char full[PATH_MAX];                                    \
        if (!of_descriptor(fd, full)) return real(fd, bytes, n, from); \
        int fate = inside(full) ? met("write", full, 0) : GO;   \
        if (fate == FAIL) return -1;                            \
        ssize_t result = real(fd, bytes, fate == HALF ? n / 2 : n, from); \
        if (fate == HALF) end();                                \
        return result;                                          \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    char full[PATH_MAX];
    if (!of_descriptor(fd, full)) return real(fd, parts, n);
    DO("write", full, 0, ssize_t, real(fd, parts, n > 1 ? n / 2 : n));
}

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t n, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    char full[PATH_MAX];
    if (!of_descriptor(to, full)) return real(from, from_at, to, to_at, n, flags);
    int fate = inside(full) ? met("copy", full, 0) : GO;
    if (fate == FAIL) return -1;
    ssize_t result = real(from, from_at, to, to_at, fate == HALF && n > 8192 ? 4096 : n, flags);
    if (fate == HALF) end();
    return result;
}

#define TRUNCATE(name, offset)                                  \
    int name(int fd, offset length) {                           \
        REAL(int, #name, int, offset);                          \
        char full[PATH_MAX];                                    \
        if (!of_descriptor(fd, full)) return real(fd, length);  \
        DO("truncate", full, 1, int, real(fd, length));         \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(name)                                              \
    int name(int fd) {                                          \
        REAL(int, #name, int);                                  \
        char full[PATH_MAX];                                    \
        if (!of_descriptor(fd, full)) return real(fd);          \
        DO("sync", full, 0, int, real(fd));                     \
    }
SYNC(fsync)
SYNC(fdatasync)
