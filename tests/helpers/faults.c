/* Makes one call fail that writes below a folder, or all that take space from one call on: a library to preload.

   Counted are calls of the C library that change files or folders, in the order in which they come, from any thread.
   What a program does past the C library is not seen. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ONCE, HALF, FULL };
enum { SPACE = 1, WRITES = 2 }; /* calls that take space on the disk; calls that may be done by half */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX], hit[PATH_MAX + 64];
static long armed, count, faults;
static int code, how, is_counting;

/* Counts calls below `below` from now on; call number `n` fails with `error`, none if `n` is 0.
   `manner`: 0 this call alone; 1 the same, and a write writes half before; 2 also all after it that take space. */
void faults_arm(const char *below, long n, int error, int manner) {
  pthread_mutex_lock(&lock);
  snprintf(folder, sizeof folder, "%s", below);
  armed = n, code = error, how = manner, count = faults = 0, hit[0] = 0, is_counting = 1;
  pthread_mutex_unlock(&lock);
}

/* Ends it; returns how many calls there were, and writes which failed first, and how many did. */
long faults_disarm(char *which, int size, long *failed) {
  pthread_mutex_lock(&lock);
  is_counting = 0;
  snprintf(which, size, "%s", hit);
  *failed = faults;
  long counted = count;
  pthread_mutex_unlock(&lock);
  return counted;
}

static int of_descriptor(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
  return length > 0;
}

static void absolute(int at, const char *path, char *out) {
  char where[PATH_MAX] = "";
  if (path[0] != '/') {
    if (at == AT_FDCWD) {
      if (!getcwd(where, sizeof where)) where[0] = 0;
    } else {
      of_descriptor(at, where);
    }
  }
  snprintf(out, PATH_MAX, "%.2000s%s%.2000s", where, where[0] ? "/" : "", path);
}

/* Whether a call fails: 0, or 1, or 2 if it is to write half of what it should. */
static int fails(const char *call, const char *path, int kind) {
  size_t length = strlen(folder);
  if (!is_counting || strncmp(path, folder, length) || (path[length] != '/' && path[length])) return 0;
  pthread_mutex_lock(&lock);
  count++;
  int result = 0;
  if (armed && (count == armed || (how == FULL && count > armed && kind & SPACE))) {
    result = 1;
    faults++;
    if (!hit[0]) snprintf(hit, sizeof hit, "%s %.4000s", call, path);
    if (how == HALF && kind & WRITES) {
      result = 2;
      how = ONCE, armed = count + 1; /* the next call fails too, as the rest would */
    }
  }
  pthread_mutex_unlock(&lock);
  if (result) errno = code;
  return result;
}

static int fails_at(const char *call, int at, const char *path, int kind) {
  if (!is_counting || !path) return 0;
  char whole[PATH_MAX];
  absolute(at, path, whole);
  return fails(call, whole, kind);
}

static int fails_by(const char *call, int fd, int kind) {
  if (!is_counting) return 0;
  char path[PATH_MAX];
  return of_descriptor(fd, path) ? fails(call, path, kind) : 0;
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define WRITE(name, half, arguments, ...) \
  ssize_t name arguments { \
    REAL(name); \
    int found = fails_by(#name, fd, SPACE | WRITES); \
    if (found == 1) return -1; \
    if (found == 2) half; \
    return real(__VA_ARGS__); \
  }
WRITE(write, size /= 2, (int fd, const void *data, size_t size), fd, data, size)
WRITE(pwrite, size /= 2, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
WRITE(pwrite64, size /= 2, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
WRITE(writev, parts = (parts + 1) / 2, (int fd, const struct iovec *data, int parts), fd, data, parts)
WRITE(pwritev, parts = (parts + 1) / 2, (int fd, const struct iovec *data, int parts, off_t at), fd, data, parts, at)
WRITE(sendfile, size = (size + 1) / 2, (int fd, int from, off_t *at, size_t size), fd, from, at, size)
WRITE(sendfile64, size = (size + 1) / 2, (int fd, int from, off64_t *at, size_t size), fd, from, at, size)

ssize_t copy_file_range(int from, off64_t *at, int fd, off64_t *to, size_t size, unsigned flags) {
  REAL(copy_file_range);
  int found = fails_by("copy_file_range", fd, SPACE | WRITES);
  return found == 1 ? -1 : real(from, at, fd, to, found ? (size + 1) / 2 : size, flags);
}

#define BY(name, kind, arguments, ...) \
  int name arguments { \
    REAL(name); \
    return fails_by(#name, fd, kind) ? -1 : real(__VA_ARGS__); \
  }
BY(fsync, 0, (int fd), fd)
BY(fdatasync, 0, (int fd), fd)
BY(ftruncate, SPACE, (int fd, off_t size), fd, size)
BY(ftruncate64, SPACE, (int fd, off64_t size), fd, size)

#define AT(name, kind, at, path, arguments, ...) \
  int name arguments { \
    REAL(name); \
    return fails_at(#name, at, path, kind) ? -1 : real(__VA_ARGS__); \
  }
AT(mkdir, SPACE, AT_FDCWD, path, (const char *path, mode_t mode), path, mode)
AT(mkdirat, SPACE, at, path, (int at, const char *path, mode_t mode), at, path, mode)
AT(unlink, 0, AT_FDCWD, path, (const char *path), path)
AT(unlinkat, 0, at, path, (int at, const char *path, int flags), at, path, flags)
AT(rmdir, 0, AT_FDCWD, path, (const char *path), path)
AT(rename, 0, AT_FDCWD, path, (const char *from, const char *path), from, path)
AT(renameat, 0, at, path, (int source, const char *from, int at, const char *path), source, from, at, path)
AT(renameat2, 0, at, path, (int source, const char *from, int at, const char *path, unsigned flags), source, from, at,
   path, flags)
AT(link, SPACE, AT_FDCWD, path, (const char *from, const char *path), from, path)
AT(linkat, SPACE, at, path, (int source, const char *from, int at, const char *path, int flags), source, from, at, path,
   flags)
AT(symlink, SPACE, AT_FDCWD, path, (const char *to, const char *path), to, path)

#define OPEN(name, at, declared, ...) \
  int name(declared const char *path, int flags, ...) { \
    REAL(name); \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
      va_list more; \
      va_start(more, flags); \
      mode = va_arg(more, mode_t); \
      va_end(more); \
    } \
    if ((flags & O_ACCMODE) != O_RDONLY && fails_at(#name, at, path, flags & O_CREAT ? SPACE : 0)) return -1; \
    return real(__VA_ARGS__, flags, mode); \
  }
#define NONE
#define OF_FOLDER int at,
OPEN(open, AT_FDCWD, NONE, path)
OPEN(open64, AT_FDCWD, NONE, path)
OPEN(openat, at, OF_FOLDER, at, path)
OPEN(openat64, at, OF_FOLDER, at, path)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(name); \
    return strpbrk(mode, "wa+") && fails_at(#name, AT_FDCWD, path, SPACE) ? NULL : real(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

/* Network file systems report here what they could not write; the descriptor is closed all the same. */
int close(int fd) {
  REAL(close);
  int was_writing = is_counting && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
  int failed = was_writing && fails_by("close", fd, 0), error = errno;
  int result = real(fd);
  if (!failed) return result;
  errno = error;
  return -1;
}
