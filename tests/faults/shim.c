/* Faults at the border to the kernel, for processes that were started with this library in LD_PRELOAD.

   FAULT_PLAN names a file of rules that the test maps into memory too, so that it can arm and disarm them while the
   process runs. A rule is about one kind of call on files whose path (as in /proc/self/fd) holds `match`; calls from its
   `first` to its `last` fail with `error`, or with -1 kill the process before anything happens. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, FDATASYNC, FSYNC, PWRITE, UNLINK, WRITE };
enum { RULES = 4 };

struct rule {
  atomic_int call;
  int first, last, error;
  atomic_int seen, injected;
  char match[104];
};

static struct rule *rules;

__attribute__((constructor)) static void open_plan(void) {
  const char *path = getenv("FAULT_PLAN");
  int file = path ? open(path, O_RDWR) : -1;
  if (file < 0) return;
  void *found = mmap(NULL, RULES * sizeof(struct rule), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (found != MAP_FAILED) rules = found;
}

static int fails(int call, int fd, const char *path) {
  for (int i = 0; rules && i < RULES; i++) {
    struct rule *rule = &rules[i];
    if (atomic_load(&rule->call) != call) continue;
    char known[512], link[32];
    if (!path) {
      snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
      ssize_t length = readlink(link, known, sizeof known - 1);
      known[length > 0 ? length : 0] = 0;
    }
    if (!strstr(path ? path : known, rule->match)) continue;
    int number = atomic_fetch_add(&rule->seen, 1) + 1;
    if (number < rule->first || number > rule->last) continue;
    atomic_fetch_add(&rule->injected, 1);
    if (rule->error < 0) kill(getpid(), SIGKILL);
    errno = rule->error;
    return 1;
  }
  return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(kind, result, name, parameters, arguments)     \
  result name parameters {                                  \
    static __typeof__(&name) real;                          \
    if (!real) real = REAL(name);                           \
    return fails(kind, fd, NULL) ? -1 : real arguments;     \
  }

WRAP(FDATASYNC, int, fdatasync, (int fd), (fd))
WRAP(FSYNC, int, fsync, (int fd), (fd))
WRAP(PWRITE, ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRAP(PWRITE, ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
WRAP(WRITE, ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
WRAP(WRITE, ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
WRAP(WRITE, ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))

int unlink(const char *path) {
  static __typeof__(&unlink) real;
  if (!real) real = REAL(unlink);
  return fails(UNLINK, -1, path) ? -1 : real(path);
}
