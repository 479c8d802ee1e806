/* A machine whose wall clock is SKEW seconds off: what programs read of it, and of the times of its files.
   cc -shared -fPIC -O1 -o skew.so skew.c -ldl;  SKEW=-300 LD_PRELOAD=./skew.so program */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long skew(void) {
    const char *said = getenv("SKEW");
    return said ? atol(said) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += skew();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (into) *into = found.tv_sec;
    return found.tv_sec;
}

#define SHIFTED(NAME, TAKES, GIVES)                                   \
    int NAME TAKES {                                                       \
        static int(*real) TAKES;                                           \
        if (!real) real = (int(*) TAKES)dlsym(RTLD_NEXT, #NAME);           \
        int failed = real GIVES;                                           \
        if (!failed) {                                                     \
            into->st_atim.tv_sec += skew();                                \
            into->st_mtim.tv_sec += skew();                                \
            into->st_ctim.tv_sec += skew();                                \
        }                                                                  \
        return failed;                                                     \
    }

SHIFTED(stat, (const char *path, struct stat *into), (path, into))
SHIFTED(lstat, (const char *path, struct stat *into), (path, into))
SHIFTED(fstat, (int file, struct stat *into), (file, into))
SHIFTED(fstatat, (int folder, const char *path, struct stat *into, int how), (folder, path, into, how))
SHIFTED(stat64, (const char *path, struct stat64 *into), (path, into))
SHIFTED(lstat64, (const char *path, struct stat64 *into), (path, into))
SHIFTED(fstat64, (int file, struct stat64 *into), (file, into))
SHIFTED(fstatat64, (int folder, const char *path, struct stat64 *into, int how), (folder, path, into, how))
